"""What of a document goes into any file, and what is taken for unchanged when it comes back."""

import io
import zipfile

import pytest
import torch
from PIL import Image

from layered_core.document import Layer, LayerDocument
from layered_core.files import read_layers, write_layers
from layered_core.formats.to_file import PixelTypes, file_bits, title_of

EIGHT, SIXTEEN, FINER = (torch.full((2, 2, 4), x) for x in (51 / 255, 1001 / 65535, 0.123456789))


@pytest.mark.parametrize(
    ("images", "bits"),
    [
        ([EIGHT], 8),
        ([EIGHT, SIXTEEN], 16),
        ([FINER], 8),
        ([SIXTEEN, FINER], 8),
    ],
)
def test_a_file_has_16_bits_where_they_hold_every_pixel_and_are_needed(images, bits):
    """What is finer than that is kept beside the layers in any case."""
    layers = tuple(Layer(str(i), image) for i, image in enumerate(images))
    assert file_bits(LayerDocument(2, 2, layers), PixelTypes()) == bits


def test_a_title_has_255_characters_at_most():
    assert title_of(Layer("sky", EIGHT, prompt="a blue sky")) == "sky: a blue sky"
    assert title_of(Layer("sky", EIGHT, prompt="blue " * 100)) == ("sky: " + "blue " * 100)[:255]


@pytest.mark.parametrize(("level", "kept"), [(26, True), (27, False), (29, False)])
def test_a_background_is_what_it_was_only_where_the_files_colour_is_its_rounding(tmp_path, level, kept):
    document = LayerDocument(3, 2, background=(25.6 / 255, 0.2, 0.4))
    path = write_layers(document, tmp_path / "a.ora")
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    data = io.BytesIO()
    Image.new("RGBA", (3, 2), (level, 51, 102, 255)).save(data, "PNG")
    entries["data/001.png"] = data.getvalue()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    wanted = document.background if kept else (level / 255, 0.2, 0.4)
    assert read_layers(path).document.background == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("written", "opacity"), [("0.3325", 1 / 3), ("0.34", 0.34)])
def test_an_opacity_is_what_it_was_only_where_the_files_is_its_rounding(tmp_path, written, opacity):
    path = write_layers(LayerDocument(2, 2, (Layer("a", EIGHT, opacity=1 / 3),)), tmp_path / "a.ora")
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    entries["stack.xml"] = entries["stack.xml"].replace(repr(1 / 3).encode(), written.encode(), 1)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    assert read_layers(path).document.layer("a").opacity == opacity
