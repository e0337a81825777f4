"""The examples in the docstrings of the packages and rooms do what they say."""

import doctest
import importlib

import pytest
import rooms

PACKAGES = sorted(
    module
    for module, path in rooms.files().items()
    if path.name == "__init__.py" and module.split(".")[0] != "nodes" and ">>> " in path.read_text("utf-8")
)
"""All that have an example, but for ``nodes``, which only ComfyUI can import."""


def test_the_main_entry_of_each_package_has_an_example():
    entries = {"layered_core", "layered_diffusers", "layered_cli", "demo.world", "benchmarks.bench"}
    assert entries <= set(PACKAGES)
    assert ">>> " in (rooms.ROOT / "nodes" / "__init__.py").read_text("utf-8")


@pytest.mark.parametrize("module", [*PACKAGES, "layered_core.files"])
def test_an_example_gives_what_its_docstring_says(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert not result.failed
