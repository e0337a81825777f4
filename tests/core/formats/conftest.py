"""Intact files of every format, which tests then break."""

import pytest
import torch
from PIL import Image
from psd_tools import PSDImage

from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.files import write_layers


def noise(*shape, top=255):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(3)) * top).round() / top


def document(top=255):
    layers = (
        Layer("a", noise(6, 7, 4, top=top), noise(6, 7, top=top), prompt="a sky", recipe=Recipe(noise=0.1)),
        Layer("b", noise(5, 4, 4, top=top), x=1.5, width=9, height=3, rotation=12, blend_mode="grain-merge"),
        Layer("c", width=4, height=4, prompt="a ball"),
    )
    return LayerDocument(12, 10, layers, (0.5, 0.2, 0.1), "all")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Return (ending of the name, bytes) of intact files of every format."""
    folder = tmp_path_factory.mktemp("seeds")
    files = []
    for name, top in (("8.psd", 255), ("16.psd", 65535), ("8.psb", 255), ("a.ora", 255)):
        files.append(
            (name[-4:], write_layers(document(top), folder / name, {"workflow": {"a": 1}}).read_bytes())
        )
    psd = PSDImage.new("RGBA", (9, 9))
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), (1, 2, 3, 4)), name="in")
    layer.create_mask(Image.new("L", (4, 4), 9))
    psd.create_group([layer], name="group")
    psd.save(folder / "group.psd")
    json_file = write_layers(document(), folder / "scene")
    return [
        *files,
        (".psd", (folder / "group.psd").read_bytes()),
        (".json", json_file.read_bytes()),
        (".png", next(json_file.parent.glob("*.png")).read_bytes()),
    ]
