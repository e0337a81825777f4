"""Fill layers, shapes and vector masks of a PSD, which the file holds as numbers, are drawn."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import Tag
from psd_tools.psd.descriptor import (
    Bool,
    Descriptor,
    DescriptorBlock,
    Double,
    Enumerated,
    Integer,
    List,
    String,
)
from psd_tools.psd.patterns import Pattern, Patterns, VirtualMemoryArray, VirtualMemoryArrayList
from psd_tools.psd.tagged_blocks import TaggedBlock, TaggedBlocks
from psd_tools.psd.vector import (
    ClosedKnotLinked,
    ClosedPath,
    InitialFillRule,
    Path,
    PathFillRule,
    VectorMaskSetting,
)

from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_core.formats.limits import Limits
from tests.core.formats.test_psd import stack_of

RED, BLUE = (255, 0, 0), (0, 0, 255)


def described(kind, **values):
    """A descriptor; names of fewer than four letters are filled up with spaces."""
    out = Descriptor(classID=kind)
    for name, value in values.items():
        out[name.ljust(4).encode()] = value
    return out


def rgb(red, green, blue):
    return described(b"RGBC", Rd=Double(red), Grn=Double(green), Bl=Double(blue))


def filled(psd, tag, values, name="fill"):
    """Add a layer without pixels that is filled as ``values`` say."""
    layer = psd.create_pixel_layer(Image.new("RGB", (1, 1)), name=name)
    record = layer._record
    record.right = record.bottom = 0
    block = DescriptorBlock(classID=b"null")
    for key, value in values.items():
        block[key.ljust(4).encode()] = value
    record.tagged_blocks[tag] = TaggedBlock(key=tag, data=block)
    return layer


def plain(psd, colour, name="fill"):
    return filled(psd, Tag.SOLID_COLOR_SHEET_SETTING, {"Clr": colour}, name)


def gradient(psd, kind, angle=0.0, smooth=0.0, **values):
    stops = [
        described(b"Clrt", Clr=rgb(*colour), Lctn=Integer(place), Mdpn=Integer(50))
        for colour, place in ((RED, 0), (BLUE, 4096))
    ]
    ramp = described(b"Grdn", GrdF=Enumerated(b"GrdF", b"CstS"), Intr=Double(smooth * 4096), Clrs=List(stops))
    given = {"Angl": Double(angle), "Type": Enumerated(b"GrdT", kind), "Grad": ramp, **values}
    return filled(psd, Tag.GRADIENT_FILL_SETTING, given)


def path(*subpaths, first=1):
    """A vector mask of polygons, given as (x, y) fractions of the canvas, and how each is combined."""
    made = [PathFillRule(), InitialFillRule(0)]
    for operation, points in subpaths:
        knots = [ClosedKnotLinked((y, x), (y, x), (y, x)) for x, y in points]
        made.append(ClosedPath(knots, operation=operation))
    return VectorMaskSetting(path=Path(made))


def masked(layer, setting):
    key = Tag.VECTOR_MASK_SETTING1
    layer._record.tagged_blocks[key] = TaggedBlock(key=key, data=setting)
    return layer


def box(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


@pytest.mark.parametrize(
    ("colour", "right"),
    [
        (rgb(255, 128, 0), (1, 128 / 255, 0)),
        (described(b"HSBC", **{"H": Double(120), "Strt": Double(100), "Brgh": Double(50)}), (0, 0.5, 0)),
        (described(b"Grsc", Gry=Double(25)), (0.75, 0.75, 0.75)),
        (described(b"CMYC", Cyn=Double(100), Mgnt=Double(0), Ylw=Double(50), Blck=Double(0)), (0, 1, 0.5)),
        (described(b"LbCl", Lmnc=Double(53.24), A=Double(80.1), B=Double(67.2)), (1, 0, 0)),
    ],
)
def test_a_colour_fill_covers_the_canvas(tmp_path, colour, right):
    psd = PSDImage.new("RGB", (20, 10))
    plain(psd, colour)
    read = stack_of(psd, tmp_path)
    (layer,) = read.document
    assert read.warnings == ()
    assert layer.image.shape == (10, 20, 4)
    torch.testing.assert_close(layer.image[0, 0], torch.tensor([*right, 1.0]), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("angle", "length"), [(0, 40), (90, 20), (30, 40 * math.cos(math.radians(30)) ** -1)]
)
def test_a_linear_gradient_runs_along_its_angle(tmp_path, angle, length):
    """Its length is that of the line through the middle inside the box, as Photoshop's own pixels show."""
    psd = PSDImage.new("RGB", (40, 20))
    gradient(psd, b"Lnr ", angle)
    red = stack_of(psd, tmp_path).document.layers[0].image[..., 0].numpy()
    length = min(40 / max(1e-6, math.cos(math.radians(angle))), 20 / max(1e-6, math.sin(math.radians(angle))))
    y, x = np.mgrid[0:20, 0:40]
    along = (
        (x - 20) * math.cos(math.radians(angle)) - (y - 10) * math.sin(math.radians(angle))
    ) / length + 0.5
    np.testing.assert_allclose(red, 1 - along.clip(0, 1), atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        (b"Rdl ", lambda x, y: np.hypot(x, y) / 20),
        (b"Rflc", lambda x, y: abs(x) / 20),
        (b"Dmnd", lambda x, y: (abs(x) + abs(y)) / 20),
        (b"Angl", lambda x, y: np.degrees(np.arctan2(y, x)) % 360 / 360),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_other_gradients(tmp_path, kind, at, reverse):
    psd = PSDImage.new("RGB", (40, 40))
    gradient(psd, kind, Rvrs=Bool(reverse))
    red = stack_of(psd, tmp_path).document.layers[0].image[..., 0].numpy()
    y, x = np.mgrid[0:40, 0:40] - 20
    share = at(x, y).clip(0, 1)
    np.testing.assert_allclose(red, share if reverse else 1 - share, atol=2e-3)


def test_a_smooth_gradient_is_a_spline(tmp_path):
    psd = PSDImage.new("RGB", (40, 4))
    gradient(psd, b"Lnr ", smooth=1.0)
    blue = stack_of(psd, tmp_path).document.layers[0].image[0, :, 2].numpy()
    t = np.arange(40) / 40
    np.testing.assert_allclose(blue, -(t**3) + 1.5 * t**2 + 0.5 * t, atol=2e-3)


def test_a_pattern_is_tiled(tmp_path):
    psd = PSDImage.new("RGB", (10, 7))
    rng = np.random.default_rng(2)
    tile = rng.integers(0, 256, (3, 4, 3), np.uint8)
    channels = [VirtualMemoryArray() for _ in range(26)]
    for number in range(3):
        channels[number].set_data((4, 3), tile[..., number].tobytes(), 8)
    pattern = Pattern(
        pattern_id="p1", name="dots", point=(3, 4), data=VirtualMemoryArrayList(3, (0, 0, 3, 4), channels)
    )
    psd._record.layer_and_mask_information.tagged_blocks = TaggedBlocks()
    psd.tagged_blocks[Tag.PATTERNS1] = TaggedBlock(key=Tag.PATTERNS1, data=Patterns([pattern]))
    named = described(b"Ptrn", Nm=String("dots"), Idnt=String("p1"))
    filled(psd, Tag.PATTERN_FILL_SETTING, {"Ptrn": named})
    filled(
        psd,
        Tag.PATTERN_FILL_SETTING,
        {"Ptrn": described(b"Ptrn", Nm=String("x"), Idnt=String("lost"))},
        "no tile",
    )
    read = stack_of(psd, tmp_path)
    (layer,) = read.document
    right = np.tile(tile, (3, 3, 1))[:7, :10] / 255
    np.testing.assert_allclose(layer.image[..., :3].numpy(), right, atol=1e-6)
    assert len(read.warnings) == 1
    assert "layer 'no tile': its pattern is not in the file" in read.warnings[0]


def test_a_shape_without_pixels_is_cut_by_its_path(tmp_path):
    psd = PSDImage.new("RGB", (20, 10))
    masked(plain(psd, rgb(*RED)), path((1, box(0.25, 0.3, 0.775, 0.8))))
    (layer,) = stack_of(psd, tmp_path).document
    assert (layer.x, layer.y, layer.width, layer.height) == (5, 3, 11, 5)
    shown = layer.image[..., 3] * (1 if layer.mask is None else layer.mask)
    right = torch.ones(5, 11)
    right[:, -1] = 0.5  # the path ends in the middle of this column
    torch.testing.assert_close(shown, right, atol=1e-4, rtol=0)


def test_a_vector_mask_cuts_a_layer_of_pixels_and_a_group(tmp_path):
    psd = PSDImage.new("RGBA", (20, 10))
    layer = psd.create_pixel_layer(Image.new("RGBA", (20, 10), (255, 0, 0, 255)), name="a")
    masked(layer, path((1, box(0.1, 0, 0.6, 1))))
    inner = psd.create_pixel_layer(Image.new("RGBA", (20, 10), (0, 255, 0, 255)), name="b")
    masked(psd.create_group([inner], name="g"), path((1, box(0.5, 0, 1, 1))))
    read = stack_of(psd, tmp_path)
    first, second = (x.image[0, :, 3] * (1 if x.mask is None else x.mask[0]) for x in read.document)
    assert [round(v, 4) for v in first.tolist()] == [0] * 2 + [1] * 10 + [0] * 8
    assert [round(v, 4) for v in second.tolist()] == [0] * 10 + [1] * 10
    assert read.warnings == ()


@pytest.mark.parametrize(
    ("operations", "right"),
    [
        ((1, 1), [0, 1, 1, 1, 0]),
        ((1, 0), [0, 1, 0, 1, 0]),
        ((1, 2), [0, 1, 0, 0, 0]),
        ((1, 3), [0, 0, 1, 0, 0]),
        ((2, 2), [1, 0, 0, 0, 1]),
        ((1, -1), [0, 1, 0, 1, 0]),  # one shape of two contours, by the even-odd rule
    ],
)
def test_paths_are_combined(tmp_path, operations, right):
    psd = PSDImage.new("RGB", (10, 10))
    first, second = box(0.2, 0, 0.6, 1), box(0.4, 0, 0.8, 1)
    masked(plain(psd, rgb(*RED)), path((operations[0], first), (operations[1], second)))
    (layer,) = stack_of(psd, tmp_path).document
    row = torch.zeros(10)
    shown = layer.image[0, :, 3] * (1 if layer.mask is None else layer.mask[0])
    row[int(layer.x) : int(layer.x) + shown.numel()] = shown
    assert [round(v, 4) for v in row[::2].tolist()] == right


def test_an_inverted_mask_shows_what_lies_outside(tmp_path):
    psd = PSDImage.new("RGB", (10, 10))
    setting = path((1, box(0.2, 0, 0.6, 1)))
    setting.flags = 1
    masked(plain(psd, rgb(*RED)), setting)
    (layer,) = stack_of(psd, tmp_path).document
    shown = (layer.image[0, :, 3] * layer.mask[0]).tolist()
    assert [round(v, 4) for v in shown] == [1, 1, 0, 0, 0, 0, 1, 1, 1, 1]


def test_a_curve_encloses_the_area_of_a_circle(tmp_path):
    psd = PSDImage.new("RGB", (100, 100))
    k = 0.3 * 0.5522847498  # handles of a quarter of a circle of radius 0.3
    points = [((0.5, 0.2), (k, 0)), ((0.8, 0.5), (0, k)), ((0.5, 0.8), (-k, 0)), ((0.2, 0.5), (0, -k))]
    knots = [ClosedKnotLinked((y - dy, x - dx), (y, x), (y + dy, x + dx)) for (x, y), (dx, dy) in points]
    layer = plain(psd, rgb(*RED))
    masked(layer, VectorMaskSetting(path=Path([PathFillRule(), ClosedPath(knots, operation=1)])))
    (layer,) = stack_of(psd, tmp_path).document
    assert float((layer.image[..., 3] * layer.mask).sum()) == pytest.approx(math.pi * 30**2, rel=2e-3)


def test_a_huge_fill_is_refused_by_name(tmp_path):
    psd = PSDImage.new("RGB", (200, 200))
    plain(psd, rgb(*RED), "wide")
    psd.save(tmp_path / "a.psd")
    with pytest.raises(LayeredError, match="layer 'wide'"):
        read_layers(tmp_path / "a.psd", Limits(max_alloc_bytes=100_000))
