# make demo    layered pictures in output/demo, nothing needed but Python >= 3.10
# make test    lint, types and tests
# make help    everything else

PYTHON ?= python3
# A package index for torch, e.g. TORCH_INDEX=https://download.pytorch.org/whl/cpu for the small CPU build on Linux.
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: help demo test test-all lint bench train-demo clean
help:
	@sed -n 's/^# //p' Makefile
	@echo "make lint         ruff and mypy only"
	@echo "make test-all     the slow tests too"
	@echo "make bench        the figures of the shipped model (python -m benchmarks.storybook)"
	@echo "make train-demo   train the shipped model again: hours on a CPU, minutes on a GPU; resumes"
	@echo "make clean        remove .venv and output"

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into .venv (once, a few minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@$(PIP) -e ".[headless,dev]"
	@touch .venv/installed

demo: .venv/installed
	@$(BIN)/python -m layered_diffusers demo --out output/demo

lint: .venv/installed
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

test: lint
	@$(BIN)/python -m pytest -m "not slow"

test-all: lint
	@$(BIN)/python -m pytest

bench: .venv/installed
	@$(BIN)/python -m benchmarks.storybook

train-demo: .venv/installed
	@$(BIN)/python -m pip install --quiet --no-deps open-clip-torch
	@$(BIN)/python -m demo.train.tokenizer
	@$(BIN)/python -m demo.train text --minutes 2 --processes 1
	@$(BIN)/python -m demo.train vae --minutes 20
	@$(BIN)/python -m demo.train judge --minutes 4
	@$(BIN)/python -m demo.train unet --minutes $(or $(MINUTES),300)

clean:
	@rm -rf .venv output
