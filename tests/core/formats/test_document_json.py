"""Documents on disk are read back complete, and errors in them are named in one line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from layered_core.document import Control, Layer, LayerDocument, Lora, Recipe, identical
from layered_core.errors import LayeredError
from layered_core.formats.document_json import pictures_of, read_document, write_document
from layered_core.formats.pictures import read_mask, read_picture, write_picture, write_whole


def pixels(height, width, seed=0):
    return (torch.rand(height, width, 4, generator=torch.Generator().manual_seed(seed)) * 255).round() / 255


def full_document():
    recipe = Recipe(
        0.5,
        0.25,
        0.1,
        Control("canny", 0.7, 0.1, 0.9),
        embedding="krk",
        loras=(Lora("ink.safetensors", 0.8), Lora("b.safetensors")),
        seed=2**63 - 1,
    )
    mask = (torch.rand(4, 6, generator=torch.Generator().manual_seed(9)) * 255).round() / 255
    layers = (
        Layer(
            "Himmel über/..",
            pixels(8, 12),
            prompt="a sky",
            negative="rain",
            x=-3.5,
            y=2,
            width=24,
            rotation=30,
            flip_h=True,
            recipe=recipe,
        ),
        Layer(
            "Himmel über.. ",
            pixels(8, 12, 1),
            mask=mask,
            opacity=0.5,
            blend_mode="soft-light",
            visible=False,
            flip_v=True,
        ),
        Layer("only a box", width=5, height=7, prompt="a ball"),
    )
    return LayerDocument(40, 30, layers, background=(0.25, 0.5, 1.0), prompt="everything", negative="nothing")


def test_every_field_and_every_pixel_comes_back(tmp_path):
    path = write_document(full_document(), tmp_path / "new" / "folder")
    assert identical(read_document(path), full_document())
    assert len(list(path.parent.iterdir())) == 4  # two pictures, one mask, the JSON; no temporary files


def test_a_byte_order_mark_as_windows_editors_write_it_is_no_matter(tmp_path):
    path = write_document(full_document(), tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert identical(read_document(path), full_document())
    assert len(pictures_of(path)) == 3


def test_neutral_fields_are_not_written(tmp_path):
    data = json.loads(write_document(LayerDocument(4, 4, (Layer("a", pixels(2, 2)),)), tmp_path).read_text())
    assert data == {
        "version": 1,
        "width": 4,
        "height": 4,
        "layers": [{"name": "a", "image": "01_a.png", "width": 2, "height": 2}],
    }


def document(**layer):
    return {
        "version": 1,
        "width": 8,
        "height": 8,
        "layers": [{"name": "sky", "width": 4, "height": 4, **layer}],
    }


BAD = {
    "not json": ("{", "cannot be read"),
    "a list": ([], "document is []; allowed: a JSON object"),
    "no version": ({"width": 8, "height": 8}, "version is None; allowed: 1"),
    "another version": ({"version": 2, "width": 8, "height": 8}, "version is 2; allowed: 1"),
    "no size": ({"version": 1, "height": 8}, "canvas width is None"),
    "an unknown key": ({"version": 1, "width": 8, "height": 8, "layer": []}, "Did you mean 'layers'?"),
    "layers no list": (
        {"version": 1, "width": 8, "height": 8, "layers": {}},
        "layers is {}; allowed: a list",
    ),
    "a layer no object": ({"version": 1, "width": 8, "height": 8, "layers": ["x"]}, "layer number 1 is 'x'"),
    "a nameless layer": (
        {"version": 1, "width": 8, "height": 8, "layers": [{"width": 1}]},
        "layer number 1: name is None",
    ),
    "an unknown layer key": (document(promt="x"), "layer 'sky': key is 'promt'"),
    "an unknown recipe key": (document(recipe={"noize": 1}), "layer 'sky': recipe: key is 'noize'"),
    "a bad recipe value": (document(recipe={"noise": 7}), "layer 'sky': noise is 7; allowed: a number 0..1"),
    "NaN": (document(opacity=float("nan")), "layer 'sky': opacity is nan"),
    "a string for a number": (document(x="left"), "layer 'sky': x is 'left'"),
    "an absurd size": (
        document(width=10**9),
        "layer 'sky': width is 1000000000; allowed: a whole number 0..16384",
    ),
    "a missing picture": (document(image="gone.png"), "gone.png"),
    "a picture outside": (
        document(image="../x.png"),
        "layer 'sky': image is '../x.png'; allowed: a file name relative to the document",
    ),
    "an absolute picture": (document(image="/x.png"), "relative to the document"),
    "a picture that is a number": (document(image=3), "layer 'sky': image is 3"),
    "a bad background": ({"version": 1, "width": 8, "height": 8, "background": [0, 2, 0]}, "background is 2"),
    "twin names": (
        {"version": 1, "width": 8, "height": 8, "layers": [{"name": "a", "width": 1, "height": 1}] * 2},
        "2 layers have it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_document_is_named_in_one_line(case, tmp_path):
    data, says = BAD[case]
    path = tmp_path / "scene.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(LayeredError) as caught:
        read_document(path)
    assert says in str(caught.value)
    assert "scene.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_document_is_named(tmp_path):
    with pytest.raises(LayeredError, match=r"nothing.json"):
        read_document(tmp_path / "nothing.json")


def test_a_cut_picture_is_named(tmp_path):
    whole = tmp_path / "a.png"
    write_picture(pixels(50, 50), whole)
    whole.write_bytes(whole.read_bytes()[:-2000])
    (tmp_path / "scene.json").write_text(json.dumps(document(image="a.png")))
    with pytest.raises(LayeredError, match=r"layer 'sky': picture '.*a.png' cannot be read"):
        read_document(tmp_path / "scene.json")


def test_a_picture_larger_than_allowed_is_refused_before_it_is_decoded(tmp_path):
    Image.new("L", (20_000, 1)).save(tmp_path / "wide.png")
    with pytest.raises(LayeredError, match="20000x1"):
        read_picture(tmp_path / "wide.png")


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 51, (0.2, 0.2, 0.2, 1.0)),
        ("RGB", (255, 0, 51), (1.0, 0.0, 0.2, 1.0)),
        ("1", 1, (1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_a_picture_without_alpha_is_opaque(tmp_path, mode, value, expected):
    Image.new(mode, (2, 2), value).save(tmp_path / "a.png")
    torch.testing.assert_close(read_picture(tmp_path / "a.png"), torch.tensor(expected).expand(2, 2, 4))


def test_a_mask_is_alpha_where_there_is_alpha_else_brightness(tmp_path):
    Image.fromarray(np.array([[0, 255], [128, 64]], np.uint8)).save(tmp_path / "grey.png")
    assert [round(x * 255) for x in read_mask(tmp_path / "grey.png").flatten().tolist()] == [0, 255, 128, 64]
    write_picture(torch.tensor([[[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]]), tmp_path / "alpha.png")
    assert read_mask(tmp_path / "alpha.png").tolist() == [[0.0, 1.0]]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail(file):
        file.write(b"new")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_whole(target, fail)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    pixels = read_picture(tmp_path / "a.png")
    assert pixels.shape == (4, 2, 4)
    assert pixels[0, 1, 0] == 1


def test_a_layer_without_size_is_the_whole_canvas_and_one_without_noise_says_so(tmp_path):
    path = tmp_path / "d.json"
    layers = [
        {"name": "sky", "prompt": "a sky"},
        {"name": "ball", "width": 4, "height": 4, "recipe": {"noise": 0.8}},
    ]
    path.write_text(json.dumps({"version": 1, "width": 8, "height": 6, "layers": layers}))
    read = read_document(path)
    sky, ball = read
    assert (sky.width, sky.height, sky.recipe.noise, ball.recipe.noise) == (8, 6, None, 0.8)
    write_document(read, tmp_path / "again")
    assert identical(read_document(tmp_path / "again" / "document.json"), read)
