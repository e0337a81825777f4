# make demo         make layered pictures in output/demo; needs only Python >= 3.10
# make test         run linter, type checker and tests
# make help         list all commands

PYTHON ?= python3
# A package index for torch, e.g. TORCH_INDEX=https://download.pytorch.org/whl/cpu for the small CPU build on Linux.
TORCH_INDEX ?=
# Folder for the results of make bench-all; give the same folder again to continue after an interruption.
BENCH ?= results/$(shell date +%F)-$(shell git rev-parse --short HEAD)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: help demo demo-images docs notebook test test-all fuzz soak lint bench bench-all bench-model train-demo clean
help:
	@sed -n 's/^# //p' Makefile
	@echo "make lint         run linter and type checker only"
	@echo "make test-all     run the slow tests too"
	@echo "make fuzz         open 2,000 broken files (FILES=2000), each of which must be read or refused, and count them"
	@echo "make soak         run 200 prompts (PROMPTS=200) on a ComfyUI server with each of three caches, and look what is left"
	@echo "make demo-images  make the demo and copy its pictures into the README"
	@echo "make docs         build the site of the docs into output/site, or show it at 127.0.0.1:8000 (SERVE=1)"
	@echo "make notebook     run the notebook and store its outputs in it"
	@echo "make bench        run one suite of the bench (SUITE=layout N=32), or all of them (SUITE=all)"
	@echo "make bench-all    run all suites (N=32) and write their results into docs/evaluation.md"
	@echo "make bench-model  measure the shipped model, as in docs/storybook.md"
	@echo "make train-demo   train the shipped model: hours on a CPU, minutes on a GPU; resumes when interrupted"
	@echo "make clean        remove .venv and output"

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into .venv (once, a few minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@$(PIP) -e ".[headless,eval,dev]"
	@touch .venv/installed

demo: .venv/installed
	@$(BIN)/python -m layered_cli demo --out output/demo

demo-images: demo
	@cp output/demo/overview.jpg docs/images/demo.jpg
	@cp output/demo/preserve.jpg output/demo/stages.jpg output/demo/redo.jpg docs/images

docs: .venv/installed
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(if $(SERVE),serve,build --quiet) --strict
	@echo "output/site/index.html"

notebook: .venv/installed
	@$(BIN)/python tests/project/run_notebook.py

lint: .venv/installed
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

## The type checker and the suites of ComfyUI and its page, which wait much, run beside all others.
test: .venv/installed
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@mkdir -p output; $(BIN)/mypy > output/mypy.log 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -m "not slow" --ignore tests/browser --ignore tests/comfyui \
	> output/test.log 2>&1 & others=$$!; trap 'kill $$types $$others' INT TERM; \
	$(BIN)/python -m pytest -m "not slow" tests/browser tests/comfyui; page=$$?; \
	wait $$types; types=$$?; cat output/mypy.log; \
	wait $$others; others=$$?; cat output/test.log; exit $$((page | types | others))

test-all: lint
	@$(BIN)/python -m pytest

fuzz: .venv/installed
	@LAYERED_FUZZ=$(or $(FILES),2000) $(BIN)/python -m pytest tests/core/formats/test_files_fuzz.py

soak: .venv/installed
	@$(BIN)/python tests/comfyui/soak.py --prompts $(or $(PROMPTS),200)

bench: .venv/installed
	@$(BIN)/python -m layered_cli bench $(or $(SUITE),layout) -n $(or $(N),32)

bench-all: .venv/installed
	@$(BIN)/python -m layered_cli bench all -n $(or $(N),32) --out $(BENCH)
	@$(BIN)/python -m benchmarks.page $(BENCH)

bench-model: .venv/installed
	@$(BIN)/python -m benchmarks.storybook

train-demo: .venv/installed
	@$(BIN)/python -m pip install --quiet --no-deps open-clip-torch
	@$(BIN)/python -m demo.train.tokenizer
	@$(BIN)/python -m demo.train text --minutes 2 --processes 1
	@$(BIN)/python -m demo.train vae --minutes 20
	@$(BIN)/python -m demo.train judge --minutes 4
	@$(BIN)/python -m demo.train.harmony --minutes 12
	@$(BIN)/python -m demo.train unet --minutes $(or $(MINUTES),300)
	@$(BIN)/python -m demo.train transformer --minutes 140
	@$(BIN)/python -m demo.train control --minutes 70
	@$(BIN)/python -m demo.train transparent --minutes 60
	@$(BIN)/python -m demo.train transparent_lora --minutes 130
	@$(BIN)/python -m demo.train joint --minutes 110
	@$(BIN)/python -m demo.train joint_layers --minutes 150 --processes 1

clean:
	@rm -rf .venv output
