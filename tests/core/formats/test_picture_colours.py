"""Pictures of every depth and colour space become sRGB in their own depth."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.formats.icc_profiles import SRGB_PROFILE
from layered_core.formats.pictures import read_mask, read_picture, write_picture
from tests.core.formats.profiles import (
    SRGB_PARAMETERS,
    WIDE,
    by_little_cms,
    gamma,
    grey_profile,
    parametric,
    rgb_profile,
    table_profile,
)

LEVELS = np.random.default_rng(2).integers(0, 256, (9, 7, 4)).astype(np.uint8)
DEEP = np.random.default_rng(3).integers(0, 65536, (11, 6, 4)).astype(np.uint16)
LINEAR = rgb_profile(gamma(1), name="linear")
PHOTO = rgb_profile(gamma(2.2), WIDE, name="Display P3")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(levels, *chunks, kind=None):
    """Return a PNG of ``[H, W, C]``, 8 or 16 bits by its type, whose rows have the filters *none* and *up*."""
    height, width, channels = levels.shape
    deep = levels.dtype == np.uint16
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = levels.astype(">u2" if deep else "u1").view("u1").reshape(height, -1)
    up = rows - np.concatenate([rows[:1] * 0, rows[:-1]])
    raw = b"".join(bytes([2 * (y % 2)]) + (up if y % 2 else rows)[y].tobytes() for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 16 if deep else 8, kind, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def read(tmp_path, data, name="a.png"):
    """Return the pixels and the warnings of a file's bytes."""
    (tmp_path / name).write_bytes(data)
    told = []
    return read_picture(tmp_path / name, warnings=told), told


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_all_16_bits_of_a_png_are_read(tmp_path, channels):
    made, told = read(tmp_path, png(DEEP[..., :channels]))
    colours = DEEP[..., :3] if channels > 2 else DEEP[..., [0, 0, 0]]
    alpha = (
        DEEP[..., channels - 1 :][..., :1] if channels in (2, 4) else np.full_like(colours[..., :1], 65535)
    )
    assert np.array_equal((made.numpy() * 65535).round(), np.concatenate([colours, alpha], -1))
    assert told == []


def test_the_transparent_colour_of_16_bits_is_transparent(tmp_path):
    made, _ = read(tmp_path, png(DEEP[..., :3], (b"tRNS", DEEP[4, 2, :3].astype(">u2").tobytes())))
    assert (made[..., 3] == 0).nonzero().tolist() == [[4, 2]]


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bits_are_turned_as_exif_data_say(tmp_path, channels):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, _ = read(tmp_path, png(DEEP[..., :channels]))
    turned, _ = read(tmp_path, png(DEEP[..., :channels], (b"eXIf", exif.tobytes()[6:])))
    assert torch.equal(turned, plain.rot90(-1))


def tiff(levels, planes=1):
    """Return an uncompressed TIFF of ``[H, W, 3]``, 16 bits; ``planes`` 2: each channel apart."""
    height, width, _ = levels.shape
    data = (levels if planes == 1 else levels.transpose(2, 0, 1)).astype("<u2").tobytes()
    size = len(data) // (1 if planes == 1 else 3)
    bits, places, sizes = 8, 14, 26
    start = 38
    offsets = [start + k * size for k in range(1 if planes == 1 else 3)]
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, len(offsets), offsets[0] if planes == 1 else places), (277, 3, 1, 3), (278, 4, 1, height),
        (279, 4, len(offsets), size if planes == 1 else sizes), (284, 3, 1, planes),
    ]  # fmt: skip
    head = b"II*\0" + struct.pack("<I", start + len(data)) + struct.pack("<3H", 16, 16, 16)
    head += struct.pack("<3I", *(offsets * 3)[:3]) + struct.pack("<3I", size, size, size)
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)
    return head + data + table


def test_all_16_bits_of_a_tiff_are_read(tmp_path):
    made, told = read(tmp_path, tiff(DEEP[..., :3]), "a.tif")
    assert np.array_equal((made[..., :3].numpy() * 65535).round(), DEEP[..., :3])
    assert told == []


def test_a_tiff_that_pillow_would_read_wrongly_is_refused(tmp_path):
    with pytest.raises(LayeredError, match=r"a\.tif' has 16 bits a channel and each channel apart"):
        read(tmp_path, tiff(DEEP[..., :3], 2), "a.tif")


@pytest.mark.parametrize("end", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize(("profile", "name"), [(PHOTO, "Display P3"), (LINEAR, "linear")])
def test_the_profile_of_a_picture_is_applied(tmp_path, end, profile, name):
    image = Image.fromarray(LEVELS[..., :3])
    image.save(tmp_path / f"a.{end}", icc_profile=profile, lossless=True)
    levels = np.asarray(Image.open(tmp_path / f"a.{end}").convert("RGB"))
    told = []
    made = read_picture(tmp_path / f"a.{end}", warnings=told).numpy() * 255
    assert np.abs(made[..., :3] - by_little_cms(levels, profile)).max() <= 1.01
    assert told[0] == f"the colours are converted from the profile {name!r} to sRGB"


def test_16_bits_are_converted_with_16_bits(tmp_path):
    packed = b"x\0\0" + zlib.compress(LINEAR)
    made, told = read(tmp_path, png(DEEP, (b"iCCP", packed)))
    values = DEEP[..., :3] / 65535
    wanted = np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)
    assert np.abs(made[..., :3].numpy() - wanted).max() * 65535 < 0.7
    assert np.array_equal((made[..., 3].numpy() * 65535).round(), DEEP[..., 3])
    assert told == ["the colours are converted from the profile 'linear' to sRGB"]


@pytest.mark.parametrize("kind", ["L", "LA", "P"])
def test_grey_and_palettes_are_converted_by_their_profile(tmp_path, kind):
    image = Image.new("RGB", (2, 2), (128, 128, 128))
    image = image.quantize() if kind == "P" else image.convert(kind)
    data = io.BytesIO()
    image.save(data, "PNG", icc_profile=grey_profile(gamma(1)) if kind != "P" else LINEAR)
    made, _ = read(tmp_path, data.getvalue())
    assert (made[0, 0] * 255).round().tolist() == [188, 188, 188, 255]


GAMMA = struct.pack(">I", 100000)
SRGB_PLACES = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
WIDE_PLACES = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


@pytest.mark.parametrize(
    ("chunks", "wanted", "says"),
    [
        ([(b"sRGB", b"\0")], 128, ""),
        ([(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", SRGB_PLACES)], 128, ""),
        ([(b"gAMA", GAMMA)], 188, "converted from gamma 1 to sRGB"),
        ([(b"sRGB", b"\0"), (b"gAMA", GAMMA)], 128, ""),
        ([(b"iCCP", b"x\0\0" + zlib.compress(SRGB_PROFILE)), (b"gAMA", GAMMA)], 128, ""),
        ([(b"cICP", bytes([1, 8, 0, 1])), (b"sRGB", b"\0")], 188, "converted from cICP 1, 8 to sRGB"),
        ([(b"cICP", bytes([1, 13, 0, 1]))], 128, ""),
        ([(b"cICP", bytes([9, 16, 0, 1]))], 128, "left out: its numbers 9, 16, 0, 1 are not known"),
        (
            [(b"gAMA", struct.pack(">I", 1))],
            128,
            "left out: its gamma of 1e-05 and 0 chromaticities cannot be meant",
        ),
        ([(b"cHRM", bytes(32))], 128, "left out: a chromaticity is not of any colour"),
        ([(b"iCCP", b"x\0\0no")], 128, "left out: it is damaged"),
    ],
)
def test_what_a_png_states_of_its_colours_is_heeded(tmp_path, chunks, wanted, says):
    made, told = read(tmp_path, png(np.full((2, 2, 3), 128, np.uint8), *chunks))
    assert (made[0, 0] * 255).round().tolist() == [wanted, wanted, wanted, 255]
    assert len(told) == bool(says)
    assert says in "".join(told)


@pytest.mark.parametrize("chunks", [[(b"cHRM", WIDE_PLACES)], [(b"cICP", bytes([12, 13, 0, 1]))]])
def test_wide_primaries_of_a_png_are_converted(tmp_path, chunks):
    made, told = read(tmp_path, png(LEVELS[..., :3], *chunks))
    wanted = by_little_cms(LEVELS[..., :3], rgb_profile(parametric(3, *SRGB_PARAMETERS), WIDE))
    assert np.abs(made[..., :3].numpy() * 255 - wanted).max() <= 1.01
    assert told[1].endswith("colours that sRGB cannot show are clipped")


def test_a_photograph_that_exif_calls_adobe_rgb_is_converted(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    Image.new("RGB", (8, 8), (100, 150, 100)).save(tmp_path / "a.jpg", exif=exif, quality=100)
    told = []
    made = read_picture(tmp_path / "a.jpg", warnings=told)[0, 0] * 255
    adobe = rgb_profile(gamma(2.2), ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)))
    wanted = by_little_cms(np.array([[[100, 150, 100]]]), adobe)[0, 0]
    assert np.abs(made[:3].numpy() - wanted).max() <= 2
    assert told == ["the colours are converted from Adobe RGB to sRGB"]


@pytest.mark.parametrize("end", ["jpg", "tif"])
@pytest.mark.parametrize("profile", [table_profile(), None])
def test_cmyk_is_converted(tmp_path, end, profile):
    image = Image.frombytes("CMYK", (8, 8), bytes([255, 0, 51, 0]) * 64)
    image.save(tmp_path / f"a.{end}", icc_profile=profile, quality=100)
    levels = np.full((8, 8, 4), (255, 0, 51, 0))
    told = []
    made = read_picture(tmp_path / f"a.{end}", warnings=told)[..., :3].numpy() * 255
    wanted = np.full((8, 8, 3), (0, 255, 204)) if profile is None else by_little_cms(levels, profile, "CMYK")
    assert np.abs(made - wanted).max() <= 2
    assert told == [
        "the CMYK colours have no profile: they are converted to sRGB approximately, as ideal inks"
        if profile is None
        else "the colours are converted from the profile 'tables' to sRGB"
    ]


def test_lab_is_converted(tmp_path):
    """L 54.29, a 80.80, b 69.89 is pure red."""
    bands = [Image.new("L", (2, 2), level) for level in (138, 209, 198)]
    Image.merge("LAB", bands).save(tmp_path / "a.tif")
    made = read_picture(tmp_path / "a.tif")[0, 0] * 255
    assert (made - torch.tensor([255.0, 0, 0, 255])).abs().max() < 2


def test_a_mask_is_numbers_whatever_its_profile_is(tmp_path):
    Image.new("L", (2, 2), 128).save(tmp_path / "a.png", icc_profile=grey_profile(gamma(1)))
    assert torch.equal(read_mask(tmp_path / "a.png"), torch.full((2, 2), 128 / 255))


def test_profiles_are_applied_in_openraster_and_json_documents(tmp_path):
    image = torch.full((4, 4, 4), 128 / 255)
    document = LayerDocument(4, 4, (Layer("a", image), Layer("b", image)))
    ora = write_layers(document, tmp_path / "a.ora")
    data = io.BytesIO()
    Image.new("RGB", (4, 4), (128, 128, 128)).save(data, "PNG", icc_profile=LINEAR)
    with zipfile.ZipFile(ora) as old, zipfile.ZipFile(tmp_path / "b.ora", "w") as new:
        for entry in old.infolist():
            foreign = entry.filename.startswith("data/")
            new.writestr(entry, data.getvalue() if foreign else old.read(entry))
    (tmp_path / "a.png").write_bytes(data.getvalue())
    layers = [{"name": name, "image": "a.png"} for name in "ab"]
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, "width": 4, "height": 4, "layers": layers}))
    line = "the colours are converted from the profile 'linear' to sRGB"
    for name, told in (("b.ora", (line,)), ("a.json", (f"layer 'a': {line}", f"layer 'b': {line}"))):
        file = read_layers(tmp_path / name)
        assert [round(float(layer.image[0, 0, 0]) * 255) for layer in file.document] == [188, 188]
        assert file.warnings == told


def test_pictures_are_written_with_the_profile_of_srgb_and_masks_without(tmp_path):
    write_picture(torch.rand(3, 3, 4), tmp_path / "a.png")
    write_picture(torch.rand(3, 3), tmp_path / "mask.png")
    assert Image.open(tmp_path / "a.png").info["icc_profile"] == SRGB_PROFILE
    assert "icc_profile" not in Image.open(tmp_path / "mask.png").info
    document = LayerDocument(3, 3, (Layer("a", torch.rand(3, 3, 4)),))
    with zipfile.ZipFile(write_layers(document, tmp_path / "a.ora")) as archive:
        for name in ("data/001.png", "mergedimage.png"):
            image = Image.open(io.BytesIO(archive.read(name)))
            assert image.info["icc_profile"] == SRGB_PROFILE
