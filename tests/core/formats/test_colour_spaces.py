"""Conversion of other colour spaces to sRGB, against Little CMS and the spaces' own equations."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import ImageCms

from layered_core.canvas.colour import linear_to_srgb, srgb_to_linear
from layered_core.formats.colour_spaces import CMYK, LAB_8, LAB_16, of_profile, to_srgb
from layered_core.formats.icc_profiles import SRGB_PROFILE
from tests.core.formats.profiles import (
    SRGB_PARAMETERS,
    WIDE,
    by_little_cms,
    gamma,
    grey_profile,
    parametric,
    profile,
    rgb_profile,
    sampled,
    table_profile,
)

LEVELS = np.random.default_rng(0).integers(0, 256, (40, 50, 4)).astype(np.uint8)
LINEAR = gamma(1)


def converted(values, conversion, bits=8, warnings=None):
    """Convert ``[H, W, C]`` that is opaque; return ``[H, W, 3]``."""
    pixels = torch.cat([torch.as_tensor(values).float(), torch.ones(*values.shape[:2], 1)], -1)
    made = to_srgb(pixels, conversion, bits, warnings)
    assert bool((made[..., 3] == 1).all())
    return made[..., :3]


@pytest.mark.parametrize(
    "curve",
    [
        LINEAR,
        gamma(1.8),
        gamma(2.2),
        sampled(np.linspace(0, 1, 1024) ** 1.5),
        sampled([0, 0.1, 1]),
        parametric(0, 1.8),
        parametric(1, 2, 1.1, -0.1),
        parametric(2, 2, 0.9, 0.1, -0.01),
        parametric(3, *SRGB_PARAMETERS),
        parametric(4, 2.4, 0.9, 0.1, 0.3, 0.05, 0, 0),
    ],
)
@pytest.mark.parametrize("primaries", [WIDE, ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))])
def test_profiles_of_curves_and_primaries_agree_with_little_cms(curve, primaries):
    data = rgb_profile(curve, primaries)
    made = converted(LEVELS[..., :3] / 255, of_profile(data, "RGB")) * 255
    difference = np.abs(made.numpy() - by_little_cms(LEVELS[..., :3], data))
    assert (difference.max() < 3, difference.mean() < 0.1) == (True, True)


def test_the_darkest_colour_becomes_black_and_white_stays():
    """Black point compensation: linear light from 0.01 to 1 is stretched to 0..1."""
    found = of_profile(rgb_profile(parametric(1, 2, 0.9, 0.1)), "RGB")
    levels = torch.linspace(0, 1, 11)
    made = converted(levels[None, :, None].expand(1, 11, 3), found, 32)[0]
    wanted = linear_to_srgb((((0.9 * levels + 0.1) ** 2 - 0.01) / 0.99).clamp(0, 1))
    torch.testing.assert_close(made, wanted[:, None].expand(11, 3), atol=2e-4, rtol=0)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_linear_light_is_converted_in_its_own_depth(bits):
    top = 2**bits - 1 if bits < 32 else 1
    values = (np.linspace(0, 1, 9) * top).round() / top if bits < 32 else np.linspace(0, 1, 9)
    wanted = np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)
    made = converted(np.stack([values] * 3, -1)[None], of_profile(rgb_profile(LINEAR), "RGB"), bits)[0, :, 0]
    np.testing.assert_allclose(made.numpy(), wanted, atol=max(0.51 / top if bits < 32 else 0, 2e-6))
    if bits < 32:
        assert torch.equal((made * top).round() / top, made)


@pytest.mark.parametrize(
    "data",
    [
        SRGB_PROFILE,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        rgb_profile(parametric(3, *SRGB_PARAMETERS), name="Adobe RGB (1998)"),
        rgb_profile(sampled(srgb_to_linear(torch.linspace(0, 1, 1024)).tolist()), name="linear"),
    ],
)
def test_a_profile_that_equals_srgb_changes_nothing_whatever_its_name_is(data):
    assert of_profile(data, "RGB") is None
    pixels = torch.rand(3, 3, 4)
    assert to_srgb(pixels, None, 32, []) is pixels


def test_a_linear_profile_is_converted_whatever_its_name_is():
    found = of_profile(rgb_profile(LINEAR, name="sRGB IEC61966-2.1"), "RGB")
    assert (found.linear, found.exact) == (True, True)
    assert found.told == "the colours are converted from the profile 'sRGB IEC61966-2.1' to sRGB"
    assert round(float(converted(np.full((1, 1, 3), 128 / 255), found)[0, 0, 0]) * 255) == 188


def test_white_black_and_alpha_stay_and_lost_colours_are_told_of():
    found, told = of_profile(rgb_profile(gamma(2.2), WIDE), "RGB"), []
    pixels = torch.tensor([[[1.0, 1, 1, 0.3], [0, 0, 0, 0.7], [0.5, 0.5, 0.5, 1], [0, 1, 0, 0]]])
    made = to_srgb(pixels.clone(), found, 8, told)
    assert torch.equal(made[..., 3], pixels[..., 3])
    assert made[0, 0, :3].tolist() == [1, 1, 1]
    assert made[0, 1, :3].tolist() == [0, 0, 0]
    assert told == [
        "the colours are converted from the profile 'made for a test' to sRGB"
    ]  # the green is not seen
    to_srgb(torch.tensor([[[0.0, 1, 0, 1]]]), found, 8, told)
    assert told[1:] == [f"{told[0]}: colours that sRGB cannot show are clipped"]


@pytest.mark.parametrize(("value", "same"), [(1, False), (2.2, False), (1.8, False), (None, True)])
def test_grey_profiles_agree_with_their_curve(value, same):
    curve = parametric(3, *SRGB_PARAMETERS) if value is None else gamma(value)
    found = of_profile(grey_profile(curve), "GRAY")
    assert (found is None) == same
    if found is not None:
        levels = torch.arange(256) / 255
        made = converted(levels[None, :, None].expand(1, 256, 3), found, 32)
        wanted = linear_to_srgb(levels ** (round(value * 256) / 256))
        torch.testing.assert_close(made, wanted[None, :, None].expand(1, 256, 3), atol=1e-5, rtol=0)


def test_a_grey_picture_may_have_an_rgb_profile():
    found = of_profile(rgb_profile(gamma(1.8)), "GRAY")
    made = converted(np.full((1, 1, 3), 0.5), found, 32)
    torch.testing.assert_close(
        made, linear_to_srgb(torch.tensor(0.5**1.80078)).expand(1, 1, 3), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("space", "channels"), [("CMYK", 4), ("RGB", 3)])
def test_profiles_of_tables_are_converted_by_little_cms_with_8_bits(space, channels):
    data, told = table_profile(space.ljust(4).encode()), []
    found = of_profile(data, space)
    made = converted(LEVELS[..., :channels] / 255, found, 16, told) * 255
    difference = np.abs(made.numpy() - by_little_cms(LEVELS[..., :channels], data, space))
    assert difference.max() <= 1.01
    assert told[0] == "the colours are converted from the profile 'tables' to sRGB, with 8 bits a channel"


@pytest.mark.parametrize(
    ("data", "space", "says"),
    [
        (b"Adobe RGB", "RGB", "it is damaged"),
        (rgb_profile(LINEAR)[:300], "RGB", "it is damaged"),
        (rgb_profile(LINEAR), "CMYK", "it is for RGB colours, and the picture has CMYK"),
        (grey_profile(LINEAR), "RGB", "it is for GRAY colours, and the picture has RGB"),
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), "RGB", "it is for Lab colours"),
        (profile(b"RGB ", {}), "RGB", "it is damaged: a part is missing"),
        (
            rgb_profile(b"curv" + bytes(4) + struct.pack(">I", 9)),
            "RGB",
            "it is damaged: a curve is cut short",
        ),
        (rgb_profile(b"what" + bytes(20)), "RGB", "it is damaged: a curve is of an unknown type"),
        (rgb_profile(parametric(0, -5)), "RGB", "its curves do not begin at black"),
        (rgb_profile(parametric(1, 100, 30000, 0)), "RGB", "its curves give no finite numbers"),
    ],
)
def test_profiles_that_cannot_be_used_are_refused_by_name(data, space, says):
    with pytest.raises(ValueError, match=says):
        of_profile(data, space)


@pytest.mark.parametrize("bits", [8, 16])
def test_lab_is_converted_as_cie_defines_it(bits):
    """L 53.2408, a 80.0925, b 67.2032 under D65 is pure red; under D50 (Bradford) 54.2905, 80.8049, 69.8910."""
    scale, zero, found = (255, 128, LAB_8) if bits == 8 else (65535, 32768, LAB_16)
    unit = 1 if bits == 8 else 256

    def lab(light, a, b):
        return [light / 100, (zero + a * unit) / scale, (zero + b * unit) / scale]

    values = np.array([[lab(0, 0, 0), lab(100, 0, 0), lab(50, 0, 0), lab(54.2905, 80.8049, 69.891)]])
    made = converted(values, found, 32)[0] * 255
    wanted = [[0, 0, 0], [255, 255, 255], [118.9, 118.9, 118.9], [255, 0, 0]]
    np.testing.assert_allclose(made.numpy(), wanted, atol=0.2)


def test_cmyk_without_a_profile_is_ideal_ink():
    inks = np.array([[[0, 0, 0, 0], [1, 0, 0, 0], [0, 0.5, 0, 0.5], [0, 0, 0, 1]]], np.float32)
    made = converted(inks, CMYK, 32)[0]
    assert made.tolist() == [[1, 1, 1], [0, 1, 1], [0.5, 0.25, 0.5], [0, 0, 0]]


def test_the_profile_that_is_written_is_srgb_for_little_cms_too():
    read = ImageCms.ImageCmsProfile(io.BytesIO(SRGB_PROFILE)).profile
    true = ImageCms.createProfile("sRGB")
    assert (read.profile_description, read.xcolor_space, read.device_class) == ("sRGB", "RGB ", "mntr")
    for ours, theirs in zip(
        (read.red_colorant, read.green_colorant, read.blue_colorant),
        (true.red_colorant, true.green_colorant, true.blue_colorant),
        strict=True,
    ):
        np.testing.assert_allclose(ours[0], theirs[0], atol=2e-5)
    assert np.abs(by_little_cms(LEVELS[..., :3], SRGB_PROFILE).astype(int) - LEVELS[..., :3]).max() == 0
