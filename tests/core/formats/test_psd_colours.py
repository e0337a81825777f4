"""PSDs of every colour mode, depth and profile become sRGB, and ours are marked as sRGB."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from psd_tools import PSDImage
from psd_tools.constants import AlphaChannelMode, ChannelID, ColorMode, Compression, Resource
from psd_tools.psd import PSD
from psd_tools.psd.color_mode_data import ColorModeData
from psd_tools.psd.header import FileHeader
from psd_tools.psd.image_data import ImageData
from psd_tools.psd.image_resources import (
    AlphaChannel,
    DisplayInfo,
    ImageResource,
    ImageResources,
    ShortInteger,
)
from psd_tools.psd.layer_and_mask import ChannelData

from layered_core.canvas.colour import linear_to_srgb
from layered_core.document import identical
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.formats.icc_profiles import SRGB_PROFILE
from tests.core.formats.profiles import WIDE, by_little_cms, gamma, grey_profile, rgb_profile, table_profile
from tests.core.formats.test_psd import scene, stack_of, write

TYPES = {8: ("u1", 255), 16: (">u2", 65535), 32: (">f4", 1)}
MODES = {"L": ColorMode.GRAYSCALE, "RGB": ColorMode.RGB, "CMYK": ColorMode.CMYK, "LAB": ColorMode.LAB}


def layered(tmp_path, mode, values, depth=8, profile=None, **resources):
    """Save a file with one layer of the numbers ``[H, W, C]``, as they are stored but in 0..1; read it."""
    height, width, channels = values.shape
    psd = PSDImage.new(mode, (width, height), depth=depth)
    layer = psd.create_pixel_layer(Image.new("RGB", (width, height)), name="a")
    kind, top = TYPES[depth]
    stored = (values * top).round() if depth < 32 else values
    for k, info in enumerate(layer._record.channel_info):
        clear = info.id == ChannelID.TRANSPARENCY_MASK
        plane = np.full((height, width), top) if clear else stored[..., info.id]
        new = ChannelData(Compression.RAW)
        new.set_data(plane.astype(kind).tobytes(), width, height, depth, 1)
        layer._channels[k], info.length = new, len(new.data) + 2
    assert len(layer._record.channel_info) == channels + 1
    if profile is not None:
        resources["ICC_PROFILE"] = profile
    for name, data in resources.items():
        key = Resource[name]
        psd.image_resources[key] = ImageResource(key=key, data=data)
    return stack_of(psd, tmp_path)


def flat(tmp_path, mode, planes, depth=8, palette=b"", **resources):
    """Save a file without layers of the channels ``planes``, bytes; read its picture."""
    (height, width), channels = planes[0].shape, len(planes)
    header = FileHeader(
        channels=channels, height=height, width=width, depth=depth, color_mode=mode, version=1
    )
    data = ImageData(compression=Compression.RAW)
    raw = [
        np.packbits(p, axis=1).tobytes() if depth == 1 else p.astype(TYPES[depth][0]).tobytes()
        for p in planes
    ]
    data.set_data(raw, header)
    kept = ImageResources.new()
    for name, value in resources.items():
        kept[Resource[name]] = ImageResource(key=Resource[name], data=value)
    with (tmp_path / "flat.psd").open("wb") as file:
        PSD(
            header=header, color_mode_data=ColorModeData(palette), image_resources=kept, image_data=data
        ).write(file)
    return read_layers(tmp_path / "flat.psd")


def colours(file):
    image = file.document.layers[0].image
    assert bool((image[..., 3] == 1).all())
    return image[..., :3]


LEVELS = np.random.default_rng(1).integers(0, 256, (5, 6, 4))


@pytest.mark.parametrize("depth", [8, 16, 32])
@pytest.mark.parametrize("profile", [True, False])
def test_linear_light_is_converted_in_every_depth(tmp_path, depth, profile):
    values = np.linspace(0, 1, 24).reshape(2, 4, 3)
    file = layered(tmp_path, "RGB", values, depth, rgb_profile(gamma(1), name="sRGB") if profile else None)
    top = TYPES[depth][1]
    stored = torch.from_numpy((values * top).round() / top if depth < 32 else values).float()
    linear = profile or depth == 32  # Photoshop's own 32-bit documents are
    wanted = linear_to_srgb(stored) if linear else stored
    torch.testing.assert_close(colours(file), wanted, atol=0.51 / top if depth < 32 else 1e-5, rtol=0)
    told = {
        (True, True): "the colours are converted from the profile 'sRGB' to sRGB",
        (False, True): "the colours are converted from linear light to sRGB",
    }.get((profile, linear))
    assert file.warnings == (() if told is None else (told,))


def test_colours_beyond_white_of_32_bits_are_clipped_and_numbers_that_are_none_are_black(tmp_path):
    values = np.array([[[4, 0.5, 0], [np.nan, np.inf, -np.inf]]], np.float32)
    file = layered(tmp_path, "RGB", values, 32)
    assert [[round(v, 3) for v in row] for row in colours(file)[0].tolist()] == [[1, 0.735, 0], [0, 1, 0]]
    assert file.warnings[1] == (
        "the colours are converted from linear light to sRGB: colours that sRGB cannot show are clipped"
    )


def test_a_profile_of_wide_colours_is_applied_to_layers(tmp_path):
    profile = rgb_profile(gamma(2.2), WIDE)
    made = colours(layered(tmp_path, "RGB", LEVELS[..., :3] / 255, 8, profile)) * 255
    assert np.abs(made.numpy() - by_little_cms(LEVELS[..., :3], profile)).max() <= 1
    assert torch.equal(made.round() / 255, made / 255)  # 8 bits stay 8 bits


def test_an_srgb_profile_changes_no_bit(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = layered(tmp_path, "RGB", LEVELS[..., :3] / 255, 8, profile)
    assert torch.equal(colours(file), torch.from_numpy(LEVELS[..., :3]).float() / 255)
    assert file.warnings == ()


def test_grey_is_converted_by_its_profile(tmp_path):
    file = layered(tmp_path, "L", np.array([[[128 / 255]]]), 8, grey_profile(gamma(1)))
    assert (colours(file)[0, 0] * 255).round().tolist() == [188, 188, 188]


@pytest.mark.parametrize("depth", [8, 16])
def test_cmyk_is_converted_by_its_profile(tmp_path, depth):
    profile = table_profile()
    file = layered(tmp_path, "CMYK", 1 - LEVELS / 255, depth, profile)  # Photoshop stores 0 for full ink
    assert np.abs(colours(file).numpy() * 255 - by_little_cms(LEVELS, profile, "CMYK")).max() <= 1.01
    extra = ", with 8 bits a channel" * (depth == 16)
    assert file.warnings == (f"the colours are converted from the profile 'tables' to sRGB{extra}",)


def test_cmyk_without_a_profile_is_approximate_and_told(tmp_path):
    file = layered(tmp_path, "CMYK", np.array([[[1.0, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 0]]]))
    assert (colours(file)[0] * 255).tolist() == [[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]]
    assert file.warnings == (
        "the CMYK colours have no profile: they are converted to sRGB approximately, as ideal inks",
    )


@pytest.mark.parametrize(("depth", "stored"), [(8, (138, 209, 198)), (16, (35579, 53453, 50660))])
def test_lab_is_converted(tmp_path, depth, stored):
    """L 54.29, a 80.80, b 69.89 is pure red; the numbers of 16 bits are as Photoshop writes them."""
    file = layered(tmp_path, "LAB", np.array([[stored]]) / TYPES[depth][1], depth)
    assert (colours(file)[0, 0] * 255 - torch.tensor([255.0, 0, 0])).abs().max() < (2 if depth == 8 else 0.3)
    assert file.warnings[0] == "the colours are converted from Lab to sRGB"


def test_a_document_that_another_space_mixes_is_told_of_if_it_has_several_layers(tmp_path):
    for mode, profile, says in (
        ("CMYK", None, "as CMYK"),
        ("LAB", None, "as Lab"),
        ("RGB", rgb_profile(gamma(1)), "in linear light"),
    ):
        psd = PSDImage.new(mode, (2, 2))
        for name in "ab":
            psd.create_pixel_layer(Image.new("RGB", (2, 2)), name=name)
        if profile:
            psd.image_resources[Resource.ICC_PROFILE] = ImageResource(key=Resource.ICC_PROFILE, data=profile)
        told = [w for w in stack_of(psd, tmp_path).warnings if "mixes its layers" in w]
        assert len(told) == 1
        assert says in told[0]


def test_flat_pictures_of_every_mode_are_read(tmp_path):
    ramp = np.arange(12).reshape(3, 4) * 20
    assert torch.equal(
        colours(flat(tmp_path, ColorMode.DUOTONE, [ramp])),
        torch.from_numpy(ramp).float()[..., None].expand(3, 4, 3) / 255,
    )
    wide = np.eye(3, 11).astype(np.uint8)  # rows of 11 bits, of which 1 is black
    assert torch.equal(colours(flat(tmp_path, ColorMode.BITMAP, [wide], 1))[..., 0], 1 - torch.eye(3, 11))
    inks = colours(flat(tmp_path, ColorMode.MULTICHANNEL, [ramp, ramp * 0 + 255, ramp * 0, ramp * 0 + 51]))
    assert (inks * 255)[0, 2].tolist() == pytest.approx([8, 51, 0])
    grey = flat(tmp_path, ColorMode.MULTICHANNEL, [ramp])
    assert colours(grey)[2, 3].tolist() == pytest.approx([220 / 255] * 3)
    assert grey.warnings == (
        "the document is multichannel: its first channels are read as cyan, magenta, yellow and black ink",
    )


def test_indexed_colours_are_looked_up_and_one_may_be_transparent(tmp_path):
    palette = np.zeros((3, 256), np.uint8)
    palette[:, 7], palette[:, 8] = (10, 20, 30), (200, 100, 50)
    places = np.array([[7, 8, 9]])
    file = flat(
        tmp_path, ColorMode.INDEXED, [places], palette=palette.tobytes(), TRANSPARENCY_INDEX=ShortInteger(9)
    )
    image = file.document.layers[0].image
    assert (image[0] * 255).tolist() == [[10, 20, 30, 255], [200, 100, 50, 255], [0, 0, 0, 0]]
    with pytest.raises(LayeredError, match=r"flat\.psd: the table of the indexed colours is cut short"):
        flat(tmp_path, ColorMode.INDEXED, [places], palette=b"\0" * 700)


def test_spot_colours_are_told_of(tmp_path):
    spot = DisplayInfo(1, [AlphaChannel(mode=AlphaChannelMode.SPOT)])
    file = flat(tmp_path, ColorMode.RGB, [np.zeros((1, 1))] * 4, DISPLAY_INFO=spot)
    assert file.warnings == ("the document's spot colours are left out",)


@pytest.mark.parametrize(
    ("mode", "depth"), [(ColorMode.INDEXED, 16), (ColorMode.RGB, 1), (ColorMode.DUOTONE, 32)]
)
def test_depths_that_a_mode_lacks_are_refused(tmp_path, mode, depth):
    planes = [np.zeros((1, 8), np.uint8)] * 3
    with pytest.raises(LayeredError, match=rf"bits a channel of {mode.name} is {depth}; allowed: 8"):
        flat(tmp_path, mode, planes, depth)


@pytest.mark.parametrize("profile", [b"Adobe RGB", grey_profile(gamma(1))])
def test_a_profile_that_cannot_be_used_is_told_of_and_left_out(tmp_path, profile):
    file = layered(tmp_path, "RGB", LEVELS[..., :3] / 255, 8, profile)
    assert torch.equal(colours(file), torch.from_numpy(LEVELS[..., :3]).float() / 255)
    (told,) = file.warnings
    assert told.startswith("the colour profile is left out: it is ")


@pytest.mark.parametrize("top", [255, 65535])
def test_our_files_have_the_profile_of_srgb_and_equal_bytes_every_time(tmp_path, top):
    document = scene(top)
    path = write(tmp_path, document)
    first = path.read_bytes()
    assert PSDImage.open(path).image_resources.get_data(Resource.ICC_PROFILE) == SRGB_PROFILE
    assert write(tmp_path, document).read_bytes() == first
    assert identical(read_layers(path).document, document)
    ora = write_layers(document, tmp_path / "a.ora").read_bytes()
    assert write_layers(document, tmp_path / "a.ora").read_bytes() == ora


def test_converted_colours_are_written_and_read_again_exactly(tmp_path):
    document = layered(tmp_path, "RGB", LEVELS[..., :3] / 255, 8, rgb_profile(gamma(1), WIDE)).document
    for name in ("b.psd", "b.ora"):
        assert identical(read_layers(write_layers(document, tmp_path / name)).document, document)
