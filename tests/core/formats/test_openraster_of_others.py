"""OpenRaster files as other programs write them: names of entries, layers that a document cannot hold, and
clipping."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from layered_core.canvas.compositing import composite
from layered_core.files import read_layers
from tests.core.formats.test_openraster import RED, archive, layer, png

TO_THE_LEFT = 'x="-1"'


# Names of entries


@pytest.mark.parametrize(
    ("entry", "source"),
    [
        ("/data/a.png", "/data/a.png"),
        ("/data/a.png", "data/a.png"),
        ("data/a.png", "/data/a.png"),
        ("data/a.png", "./data/a.png"),
        ("data\\a.png", "data/a.png"),
        ("data/a.png", "data\\a.png"),
        ("data/a:b.png", "data/a:b.png"),
        ("data/a", "data/a"),
    ],
)
def test_a_picture_is_found_however_programs_write_its_path(tmp_path, entry, source):
    path = tmp_path / "a.ora"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("mimetype", "image/openraster")
        file.writestr("/stack.xml", f'<image w="4" h="3"><stack>{layer(src=source)}</stack></image>')
        file.writestr(entry, png(Image.new("RGBA", (4, 3), RED)))
    read = read_layers(path)
    assert read.warnings == ()
    assert read.document.layers[0].image[0, 0].tolist() == [1, 0, 0, 1]


def test_a_path_finds_the_entry_that_is_spelled_as_it_is(tmp_path):
    entries = {"/data/red.png": png(Image.new("RGBA", (4, 3), (0, 0, 255, 255)))}
    path = archive(tmp_path / "a.ora", layer(name="red") + layer(name="blue", src="/data/red.png"))
    with zipfile.ZipFile(path, "a") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    document = read_layers(path).document
    assert document.layer("red").image[0, 0].tolist() == [1, 0, 0, 1]
    assert document.layer("blue").image[0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["C:/notes.txt", "data/layer:1.txt", "data\\x.txt", "/x", "https://a/b"])
def test_entries_that_no_layer_uses_may_have_any_name_inside_the_archive(tmp_path, name):
    path = archive(tmp_path / "a.ora", layer())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"hello")
    read = read_layers(path)
    assert [x.name for x in read.document] == ["a"]
    assert read.warnings == ()


# Layers that a document cannot hold


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ('<layer name="odd"/>', "layer 'odd' has no picture, as its src is missing, and is left out"),
        ('<layer name="odd" src=""/>', "layer 'odd' has no picture, as its src is missing, and is left out"),
        (
            layer(name="odd", src="data/a.svg"),
            "layer 'odd': its picture 'data/a.svg' is not a PNG file, and the layer is left out: rasterize it to "
            "keep it",
        ),
    ],
)
def test_a_layer_without_a_png_is_left_out_and_told_of_and_the_others_are_read(tmp_path, node, says):
    path = archive(
        tmp_path / "a.ora", layer(name="top") + node + layer(name="below"), **{"data_a.svg": b"<svg/>"}
    )
    file = read_layers(path)
    assert [x.name for x in file.document] == ["below", "top"]
    assert file.warnings == (says,)


def test_layers_that_are_left_out_do_not_count_as_layers(tmp_path):
    stack = layer() * 50 + '<layer name="text"/>' * 5
    assert len(read_layers(archive(tmp_path / "a.ora", stack)).document.layers) == 50


@pytest.mark.parametrize(("text", "value"), [("1.0000001", 1), ("100", 1), ("-0.0001", 0)])
@pytest.mark.parametrize("kind", ["layer", "group"])
def test_an_opacity_beyond_the_range_is_cut_to_it_and_told_of(tmp_path, text, value, kind):
    attribute = f'opacity="{text}"'
    stack = layer(attribute) if kind == "layer" else f'<stack name="a" {attribute}>{layer()}</stack>'
    file = read_layers(archive(tmp_path / "a.ora", stack))
    assert file.document.layers[0].opacity == value
    assert file.warnings == (f"{kind} 'a': opacity {text} is read as {value}; it lies in 0..1",)


# Clipping (svg:src-atop, Krita's inherit alpha)

ATOP = 'composite-op="svg:src-atop"'


def atop(backdrop, source):
    """Composite RGBA pixels by the Porter and Duff operator source atop (W3C Compositing 9.1.9)."""
    (cb, ab), (cs, as_) = ((x[..., :3], x[..., 3:]) for x in (backdrop, source))
    premultiplied = as_ * ab * cs + ab * cb * (1 - as_)
    return np.concatenate([premultiplied / np.maximum(ab, 1e-9), ab], -1)


def coloured(colour, cut=None):
    image = Image.new("RGBA", (4, 3), colour)
    if cut is not None:
        image.paste((0, 0, 0, 0), cut)
    return image


def test_a_clipped_layer_shows_only_where_those_below_it_do(tmp_path):
    base, top = coloured(RED, (0, 0, 2, 3)), coloured((0, 0, 255, 128))
    path = archive(
        tmp_path / "a.ora",
        layer(ATOP, "top", "data/top.png") + layer(name="base", src="data/base.png"),
        (4, 3),
        **{"data_top.png": png(top), "data_base.png": png(base)},
    )
    file = read_layers(path)
    expected = atop(*(np.asarray(x, np.float64) / 255 for x in (base, top)))
    got = composite(file.document, rules="photoshop").numpy()
    assert np.abs(got[..., 3:] - expected[..., 3:]).max() < 1e-6
    assert np.abs((got - expected) * expected[..., 3:]).max() < 1e-6
    assert file.warnings == ()


def masks(stack, tmp_path, **entries):
    """Return the mean of every layer's mask in a file, None for no mask."""
    path = archive(tmp_path / "a.ora", stack, (4, 3), **entries)
    document = read_layers(path, groups="apart").document
    return {x.name: None if x.mask is None else round(float(x.mask.mean()), 4) for x in document}


HALF = {"data_half.png": png(coloured(RED, (0, 0, 2, 3)))}


def half(attributes="", name="half"):
    return layer(attributes, name, "data/half.png")


@pytest.mark.parametrize(
    ("stack", "mask"),
    [
        (layer(ATOP, "x"), 0.0),
        (layer(ATOP, "x") + half(), 0.5),
        (layer(ATOP, "x") + layer(ATOP, "y") + half(), 0.5),
        (layer(ATOP, "x") + half('opacity="0.5"'), 0.25),
        (layer(ATOP, "x") + layer('visibility="hidden"', "y") + half(), 0.5),
        (layer(ATOP, "x") + half('composite-op="svg:multiply"'), 0.5),
        (f'<stack isolation="isolate">{layer(ATOP, "x")}{half()}</stack>' + layer(name="z"), 0.5),
        (f'<stack opacity="0.5">{layer(ATOP, "x")}{half()}</stack>' + layer(name="z"), 0.5),
        (f'<stack isolation="auto">{layer(ATOP, "x")}</stack>' + half(), 0.5),
        (layer(ATOP, "x") + f'<stack opacity="0.5">{half()}{half(name="again")}</stack>', 0.25),
        (layer(ATOP, "x") + f'<stack visibility="hidden">{layer(name="y")}</stack>' + half(), 0.5),
        (f'<stack {ATOP}>{layer(name="x")}{layer(name="y")}</stack>' + half(), 0.5),
        (f'<stack {ATOP}>{layer(ATOP, "x")}{half(TO_THE_LEFT, "y")}</stack>' + half(), 0.25),
        (layer(ATOP, "x") + f"<stack {ATOP}>{layer(name='y')}</stack>" + half(), 0.5),
    ],
    ids=[
        "nothing below", "one below", "clipped layers do not cover", "translucent", "hidden", "another mode",
        "isolated group", "translucent group", "group that is not isolated", "group below", "hidden group",
        "clipped group", "clipped in a clipped group", "clipped group below",
    ],
)  # fmt: skip
def test_what_clips_is_the_alpha_below_in_the_same_isolated_group(tmp_path, stack, mask):
    assert masks(stack, tmp_path, **HALF)["x"] == mask
