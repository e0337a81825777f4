"""Hostile documents: enormous sizes, names that no file has, values of the wrong type; each gives an error that
names the fault."""

import json
import resource
import zipfile

import pytest
import torch
from PIL import Image

from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.formats.limits import Limits


def written(path, layers=(), **canvas):
    path.write_text(json.dumps({"version": 1, "width": 9, "height": 9, **canvas, "layers": list(layers)}))
    return path


HUGE = {"width": 16384, "height": 16384}


def test_an_enormous_canvas_or_box_of_json_is_refused_before_memory_is_taken(tmp_path):
    Image.new("1", (11_000, 11_000)).save(tmp_path / "large.png")
    box = {"name": "a", **HUGE}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for canvas, layers, says in (
        (HUGE, [{"name": "p", "image": "large.png"}], "the canvas is '16384x16384'"),
        ({}, [box], "layer 'a' is '16384x16384'"),
    ):
        with pytest.raises(
            LayeredError, match=rf"^a\.json: size of {says}; allowed: at most 134,217,728 pix"
        ):
            read_layers(written(tmp_path / "a.json", layers, **canvas))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(max_side=8), "size of the canvas is '9x9'"),
        (Limits(max_side=30), "size of layer 'box' is '40x40'"),
        (Limits(max_pixels=1599), "size of layer 'box' is '40x40'"),
        (Limits(max_alloc_bytes=6399), "memory for pixels up to layer 'box' is '6,400 bytes'"),
    ],
)
def test_canvas_and_boxes_of_json_are_held_against_the_limits(tmp_path, limits, says):
    path = written(tmp_path / "a.json", [{"name": "box", "width": 40, "height": 40}])
    with pytest.raises(LayeredError) as caught:
        read_layers(path, limits)
    assert says in str(caught.value)


def test_boxes_and_enlarged_pictures_within_the_limits_are_read(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    layers = [{"name": f"{i}", "width": 8192, "height": 8192} for i in range(40)]
    layers.append({"name": "dot", "image": "dot.png", **HUGE})
    assert len(read_layers(written(tmp_path / "a.json", layers)).document) == 41


@pytest.mark.parametrize("end", [".psd", ".ora"])
def test_an_enormous_box_in_the_layer_data_of_a_file_is_refused(tmp_path, end):
    path = write_layers(LayerDocument(8, 8, (Layer("a", width=16384, height=16384),)), tmp_path / f"a{end}")
    with pytest.raises(LayeredError, match=r"layer 'a'.* is '16384x16384'; allowed: at most 134,217,728 pix"):
        read_layers(path)


def links(folder):
    (folder / "loop.png").symlink_to(folder / "loop.png")


@pytest.mark.parametrize("key", ["image", "mask"])
@pytest.mark.parametrize(
    "name", ["loop.png", "loop.png/x.png", "n" * 300 + ".png", "\ud800.png", "a\0b.png", "d/" * 4000]
)
def test_a_picture_that_cannot_exist_is_named_with_its_layer(tmp_path, key, name):
    links(tmp_path)
    with pytest.raises(LayeredError, match=r"^a\.json: layer 'sky': (image|mask|picture) "):
        read_layers(written(tmp_path / "a.json", [{"name": "sky", key: name}]))


@pytest.mark.parametrize("end", [".psd", ".ora", ".json"])
@pytest.mark.parametrize("name", ["loop", "n" * 300, "a\0b", "\ud800"])
def test_a_file_that_cannot_exist_is_not_found(tmp_path, end, name):
    (tmp_path / f"loop{end}").symlink_to(tmp_path / f"loop{end}")
    with pytest.raises(LayeredError, match="was not found. Give the path of an existing file"):
        read_layers(tmp_path / f"{name}{end}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": True}, "version is True; allowed: 1"),
        ({"width": True}, "canvas width is True"),
        ({"background": [True, 0, 0]}, "background is True"),
        *(({"layers": [{"name": "a", "width": 1, "height": 1, key: True}]}, f"layer 'a': {key} is True")
          for key in ("x", "y", "width", "height", "rotation", "opacity")),
        *(({"layers": [{"name": "a", "width": 1, "height": 1, "recipe": {key: True}}]}, f"layer 'a': {key} is True")
          for key in ("inside", "outside", "noise", "seed", "embedding")),
    ],
)  # fmt: skip
def test_true_is_no_number(tmp_path, change, says):
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, "width": 9, "height": 9, **change}))
    with pytest.raises(LayeredError) as caught:
        read_layers(tmp_path / "a.json")
    assert says in str(caught.value)


@pytest.mark.parametrize("field", ["version", "width", "height"])
def test_true_is_no_number_in_the_layer_data_of_a_file_either(tmp_path, field):
    mask = torch.full((1, 1), 0.5)
    path = write_layers(
        LayerDocument(8, 8, (Layer("a", mask=mask, x=0.5, width=1, height=1),)), tmp_path / "a.ora"
    )
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    old = f"&quot;{field}&quot;: 1".encode()
    assert old in entries["stack.xml"]
    entries["stack.xml"] = entries["stack.xml"].replace(old, old[:-1] + b"true")
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    with pytest.raises(LayeredError, match=r"True"):
        read_layers(path)


def test_a_layer_name_of_a_million_letters_is_refused_in_a_short_line(tmp_path):
    for extra in ({}, {"recipe": {"noise": 7}}):
        layer = {"name": "n" * 10**6, "width": 1, "height": 1, **extra}
        with pytest.raises(LayeredError) as caught:
            read_layers(written(tmp_path / "a.json", [layer]))
        assert len(str(caught.value)) < 1300
    assert (
        len(read_layers(written(tmp_path / "a.json", [{**layer, "name": "n" * 1000, "recipe": {}}])).document)
        == 1
    )
