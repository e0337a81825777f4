"""Files that cannot be written are named, and nothing is left of them."""

import resource
from contextlib import contextmanager

import pytest
import torch

from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.formats.pictures import write_picture


@pytest.fixture
def document():
    pixels = torch.rand(96, 96, 4, generator=torch.Generator().manual_seed(3))
    return LayerDocument(96, 96, (Layer("a", pixels),))


@contextmanager
def full_disk():
    """Let no file grow beyond 4 KB; the system then fails a write as it does on a full disk.

    The limit holds for the whole process, so no test may end under it: the run's own log could not grow either.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("end", [".psd", ".psb", ".ora", ""])
def test_a_write_that_the_system_refuses_is_named_and_leaves_nothing(tmp_path, document, end):
    told = rf"scene{end}.* cannot be written: File too large"
    with full_disk(), pytest.raises(LayeredError, match=told) as caught:
        write_layers(document, tmp_path / f"scene{end}")
    assert ".part" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", [".psd", ".ora", ".png"])
def test_an_output_that_is_a_folder_is_named(tmp_path, document, end):
    path = tmp_path / f"taken{end}"
    path.mkdir()
    with pytest.raises(
        LayeredError, match=rf"output file is .*taken{end}'; allowed: a name that no folder has"
    ):
        write_picture(document.layers[0].image, path) if end == ".png" else write_layers(document, path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("end", [".psd", ".ora", ".png", ""])
@pytest.mark.parametrize("stem", ["n" * 256, "a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, document, end, stem):
    path = tmp_path / f"{stem}{end}"
    with pytest.raises(LayeredError, match="output '.*' cannot be a file's name: .*Give another") as caught:
        write_picture(document.layers[0].image, path) if end == ".png" else write_layers(document, path)
    assert len(str(caught.value)) < 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", [".psd", ".ora", ""])
def test_the_longest_name_that_the_system_allows_is_written(tmp_path, document, end):
    path = tmp_path / ("n" * (255 - len(end)) + end)
    assert len(read_layers(write_layers(document, path)).document) == 1
