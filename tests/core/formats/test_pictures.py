"""Pictures and masks from files of any program."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_core.formats.pictures import read_mask, read_picture
from layered_core.formats.psd_masks import PixelMask


@pytest.mark.parametrize(
    ("mode", "colour", "value"),
    [
        ("RGB", (10, 200, 30), 200),
        ("L", 51, 51),
        ("RGBA", (255, 255, 255, 90), 90),
        ("RGBA", (7, 8, 9, 255), 9),
    ],
)
def test_a_mask_is_alpha_where_there_is_any_and_else_the_greatest_channel(tmp_path, mode, colour, value):
    Image.new(mode, (3, 2), colour).save(tmp_path / "mask.png")
    torch.testing.assert_close(read_mask(tmp_path / "mask.png"), torch.full((2, 3), value / 255))


@pytest.mark.parametrize(("density", "least"), [(255, 0.0), (None, 0.0), (51, 0.8), (0, 1.0)])
def test_a_mask_of_less_density_hides_as_much_less_inside_and_around_it(density, least):
    mask = PixelMask(1, 1, torch.tensor([[0.0, 1.0]]), 0.0).at(density)
    wanted = torch.tensor([[least] * 4, [least, least, 1.0, least]])
    torch.testing.assert_close(mask.over((0, 0, 4, 2)), wanted)


GREY = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
TURNS = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(np.transpose(a), 2), 8: np.rot90,
}  # fmt: skip
"""What each EXIF orientation asks for (Exif 2.3, tag 0x0112), in NumPy's terms."""


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["8.png", "8.tif", "16.png", "16.tif", "float.tif"])
def test_grey_of_every_depth_is_turned_as_its_exif_data_say(tmp_path, orientation, kind):
    depth, path = kind.split(".")[0], tmp_path / kind
    values = {"8": (GREY // 256).astype(np.uint8), "16": GREY, "float": GREY.astype(np.float32) / 65535}[
        depth
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(path, exif=exif)
    got = read_picture(path).numpy()
    wanted = TURNS[orientation](values / {"8": 255, "16": 65535, "float": 1}[depth])
    np.testing.assert_allclose(got, np.stack([wanted, wanted, wanted, np.ones_like(wanted)], -1), atol=1e-6)


def test_the_transparent_value_of_16_bit_grey_is_transparent(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png", transparency=5000)
    pixels = read_picture(tmp_path / "a.png").numpy()
    assert np.array_equal(pixels[..., 3], np.where(GREY == 5000, 0.0, 1.0))
    np.testing.assert_allclose(pixels[..., 0], GREY / 65535, atol=1e-6)


def test_16_bit_grey_whose_zero_is_white_is_inverted(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.tif", tiffinfo={262: 0})  # Pillow writes the numbers as they are
    np.testing.assert_allclose(read_picture(tmp_path / "a.tif")[..., 0].numpy(), 1 - GREY / 65535, atol=1e-6)


def test_floating_point_of_0_to_1_is_read(tmp_path):
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "depth.tif")
    np.testing.assert_allclose(read_picture(tmp_path / "depth.tif")[..., 0].numpy(), values, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([[0.5, 20]], np.float32), "floating point, from 0.5 to 20; allowed: 0..1,"),
        (np.array([[-0.5, 1]], np.float32), "floating point, from -0.5 to 1; allowed: 0..1,"),
        (np.array([[np.nan, 1]], np.float32), "floating point, from nan to nan; allowed: 0..1,"),
        (np.array([[0.5, np.inf]], np.float32), "floating point, from 0.5 to inf; allowed: 0..1,"),
        (np.array([[5, 70000]], np.int32), "more than 16 bits, from 5 to 70000; allowed: 0..65535,"),
    ],
)
def test_numbers_whose_white_is_not_known_are_refused_by_name(tmp_path, values, says):
    Image.fromarray(values).save(tmp_path / "depth.tif")
    with pytest.raises(LayeredError, match=r"picture '.*depth\.tif' has grey values of " + says):
        read_picture(tmp_path / "depth.tif")


@pytest.mark.parametrize("end", ["webp", "gif", "png", "tif"])
@pytest.mark.parametrize("count", [1, 3])
def test_frames_that_are_left_out_are_told_of(tmp_path, end, count):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")][:count]
    frames[0].save(tmp_path / f"a.{end}", save_all=True, append_images=frames[1:])
    told = []
    picture = read_picture(tmp_path / f"a.{end}", warnings=told)
    assert picture[0, 0, 0] > 0.98
    assert told == [f"picture 'a.{end}' has several frames or pages; only the first is read"] * (count > 1)
    (tmp_path / "a.json").write_text(
        json.dumps({"version": 1, "width": 8, "height": 8, "layers": [{"name": "x", "image": f"a.{end}"}]})
    )
    assert read_layers(tmp_path / "a.json").warnings == tuple(f"layer 'x': {line}" for line in told)


def test_the_further_pictures_of_a_photograph_are_not_told_of(tmp_path):
    """In an MPO they are previews or other views of the first."""
    Image.new("RGB", (8, 8)).save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))]
    )
    told = []
    read_picture(tmp_path / "a.jpg", warnings=told)
    assert told == []
