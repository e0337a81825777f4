"""A command prints its progress, our own warnings and which file it wrote, and no remark of the libraries below
it."""

import logging
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from demo.world.scenes import random_scene
from layered_core import __version__
from layered_core.document import Control
from layered_core.formats.document_json import write_document

SHORT = ["--steps", "2", "--device", "cpu"]


def layered(*arguments, before="pass"):
    """The command in a process of its own, with Python's own filters of warnings; ``before`` runs first."""
    code = f"import sys; {before}; from layered_cli.command import main; sys.exit(main(sys.argv[1:]))"
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY")
    }
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def besides_the_bar(stderr, title):
    """The lines on standard error that are not the progress bar's."""
    lines = [line.strip() for line in re.split(r"[\r\n]", stderr)]
    return [line for line in lines if line and not re.match(rf"{title}: +\d+%\|.*\|.*step", line)]


def test_generate_prints_its_progress_and_its_file_and_nothing_else(tmp_path):
    done = layered("generate", "a red ball", "-o", tmp_path / "a.png", *SHORT)
    assert (done.returncode, done.stdout) == (0, f"wrote {tmp_path / 'a.png'}\n")
    assert besides_the_bar(done.stderr, "generate") == []
    assert "generate: 100%" in done.stderr


def test_render_with_a_controlnet_prints_its_progress_and_its_file_and_nothing_else(tmp_path):
    document = random_scene(4, count=2).document()
    steered = [replace(layer, recipe=replace(layer.recipe, control=Control("canny"))) for layer in document]
    scene = write_document(replace(document, layers=tuple(steered)), tmp_path / "scene")
    done = layered("render", scene, "-o", tmp_path / "a.png", "--control", *SHORT)
    assert (done.returncode, done.stdout) == (0, f"wrote {tmp_path / 'a.png'}\n")
    assert besides_the_bar(done.stderr, "render") == []
    assert "render: 100%" in done.stderr


WARN = """
import logging, warnings
from layered_diffusers.pipeline import LayeredDiffusionPipeline as pipeline
def warn(self, *args, inner=pipeline.generate_layer, **options):
    warnings.warn("planted warning")
    warnings.warn("planted warning of the future", FutureWarning)
    logging.warning("planted line of the log")
    logging.getLogger("layered_diffusers").warning("planted line of our own log")
    logging.getLogger("transformers.utils.import_utils").warning("planted line of a library's log")
    return inner(self, *args, **options)
pipeline.generate_layer = warn
"""


def test_a_warning_of_ours_is_printed(tmp_path):
    done = layered("generate", "a ball", "-o", tmp_path / "a.png", *SHORT, before=f"exec({WARN!r})")
    assert done.returncode == 0
    for text in (
        "UserWarning: planted warning\n",
        "FutureWarning: planted warning of the future\n",
        "planted line of the log\n",
        "planted line of our own log\n",
        "planted line of a library's log\n",
    ):
        assert text in done.stderr


@pytest.mark.parametrize(
    ("text", "is_kept"),
    [
        (
            "`CLIPImageProcessor` requires torchvision (not installed); falling back to `X`. Install it.",
            False,
        ),
        ("`SiglipImageProcessor` requires torchvision (not installed); falling back to `X`.", False),
        ("`ViTImageProcessor` requires torchvision (not installed); falling back to `X`.", True),
        ("Ours: `CLIPImageProcessor` requires torchvision (not installed); falling back to `X`.", True),
        ("`torch_dtype` is deprecated! Use `dtype` instead!", False),
        ("`torch_dtype` is deprecated! Use `dtype` instead! And more.", True),
    ],
)
def test_two_remarks_of_transformers_are_dropped_and_no_line_that_is_merely_like_them(text, is_kept):
    import layered_diffusers  # noqa: F401

    logger = logging.getLogger("transformers.utils.import_utils")
    record = logger.makeRecord(logger.name, logging.WARNING, "", 0, text, (), None)
    assert bool(logger.filter(record)) == is_kept


def test_the_version_is_printed_without_torch():
    done = layered("--version", before="sys.modules['torch'] = None")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"layered {__version__}\n", "")
