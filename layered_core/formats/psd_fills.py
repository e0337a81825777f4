"""Draw the fill layers of a PSD, which the file holds as numbers and not as pixels: a colour, a gradient or a pattern.

Format: the descriptors of Adobe's Photoshop File Formats Specification.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from psd_tools.constants import ColorMode, Tag
from psd_tools.psd.descriptor import Descriptor
from psd_tools.psd.layer_and_mask import LayerRecord
from psd_tools.psd.patterns import Pattern
from torch import Tensor

from .limits import Budget
from .psd_masks import Rectangle

_FILLS = (Tag.SOLID_COLOR_SHEET_SETTING, Tag.GRADIENT_FILL_SETTING, Tag.PATTERN_FILL_SETTING)
_SHAPE = Tag.VECTOR_STROKE_CONTENT_DATA
_STROKE = Tag.VECTOR_STROKE_DATA
_WHOLE = 4096
"""The position of a gradient's last stop, and the greatest smoothness."""
_TABLE = 1025
"""Positions at which a gradient's values are computed; between them they are interpolated."""


def drawn_fill(
    record: LayerRecord,
    box: Rectangle,
    size: tuple[int, int],
    patterns: Iterable[Pattern],
    budget: Budget,
    warnings: list[str],
    where: str,
) -> Tensor | None:
    """Return the pixels of a fill layer or shape in ``box``; None if it cannot be drawn, in which case a warning is
    added.

    Args:
        record: the layer; :func:`is_fill` says whether it is a fill.
        box: the part of the canvas to draw. The fill is laid out over it, or, if it is not aligned with its layer,
            over the canvas.
        size: width and height of the canvas.
        patterns: the patterns of the file.
        budget: the memory for the pixels is taken from it.
        warnings: warnings are added to it.
        where: name of the layer for warnings and errors.

    Returns:
        RGBA ``[H, W, 4]``, straight alpha, without the shape's vector mask.

    Raises:
        LayeredError: a limit is exceeded.
    """
    fill = _descriptor(record)
    assert fill is not None
    if not bool(fill.get(b"Algn", True)):
        whole = (0, 0, *size)
        budget.fits(where, *size)
    else:
        whole = box
    pixels = _drawn(record, fill, whole, patterns, budget, warnings, where)
    if pixels is None:
        return None
    left, top = box[0] - whole[0], box[1] - whole[1]
    return torch.from_numpy(pixels[top : top + box[3], left : left + box[2]])


def _drawn(
    record: LayerRecord,
    fill: Descriptor,
    box: Rectangle,
    patterns: Iterable[Pattern],
    budget: Budget,
    warnings: list[str],
    where: str,
) -> np.ndarray | None:
    width, height = box[2:]
    out = np.ones((height, width, 4), np.float32)
    stroke = record.tagged_blocks.get_data(_STROKE)
    if stroke is not None and bool(stroke.get(b"strokeEnabled", False)):
        warnings.append(f"{where}: the outline of the shape is left out")
    if stroke is not None and not bool(stroke.get(b"fillEnabled", True)):
        out[..., 3] = 0
    elif b"Clr " in fill:
        out[..., :3] = _colour(fill[b"Clr "])
    elif b"Grad" in fill:
        if fill[b"Grad"][b"GrdF"].enum != b"CstS":
            warnings.append(f"{where}: a gradient of noise is left out")
            return None
        out[:] = _gradient(fill, width, height)
    elif b"Ptrn" in fill:
        identity = fill[b"Ptrn"][b"Idnt"].value.rstrip("\0")
        pattern = next((p for p in patterns if p.pattern_id == identity), None)
        tile = None if pattern is None else _tile(pattern, budget, where)
        if tile is None:
            warnings.append(
                f"{where}: its pattern is not in the file or of another kind, and the layer is left out"
            )
            return None
        if float(fill.get(b"Angl", 0)) % 360:
            warnings.append(f"{where}: the angle of the pattern is left out")
        out[:] = _tiled(tile, fill, width, height)
    return out


def is_fill(record: LayerRecord) -> bool:
    """Return whether a layer is a colour, gradient or pattern fill or a shape."""
    return _descriptor(record) is not None


def _descriptor(record: LayerRecord) -> Descriptor | None:
    blocks = record.tagged_blocks
    for tag in (*_FILLS, _SHAPE):
        found = blocks.get_data(tag)
        if found is not None:
            return found
    return None


def _colour(colour: Descriptor) -> tuple[float, float, float]:
    """Return sRGB 0..1 of a colour's descriptor."""

    def values(*keys: bytes) -> list[float]:
        return [float(colour[key]) for key in keys]

    kind = colour.classID
    if kind == b"HSBC":
        hue, saturation, brightness = values(b"H   ", b"Strt", b"Brgh")
        return colorsys.hsv_to_rgb(hue / 360 % 1, _unit(saturation / 100), _unit(brightness / 100))
    if kind == b"Grsc":
        grey = _unit(1 - values(b"Gry ")[0] / 100)
        return grey, grey, grey
    if kind == b"CMYC":
        cyan, magenta, yellow, black = (_unit(v / 100) for v in values(b"Cyn ", b"Mgnt", b"Ylw ", b"Blck"))
        return (1 - cyan) * (1 - black), (1 - magenta) * (1 - black), (1 - yellow) * (1 - black)
    if kind == b"LbCl":
        return _lab(*values(b"Lmnc", b"A   ", b"B   "))
    if b"Rd  " in colour:
        red, green, blue = (_unit(v / 255) for v in values(b"Rd  ", b"Grn ", b"Bl  "))
    else:
        red, green, blue = (_unit(v) for v in values(b"redFloat", b"greenFloat", b"blueFloat"))
    return red, green, blue


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))


def _lab(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    pixel = Image.new(
        "LAB", (1, 1), tuple(min(255, max(0, round(v))) for v in (lightness * 2.55, a + 128, b + 128))
    )
    to_rgb = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )
    red, green, blue = ImageCms.applyTransform(pixel, to_rgb).getpixel((0, 0))  # type: ignore[misc, union-attr]
    return red / 255, green / 255, blue / 255


def _gradient(fill: Descriptor, width: int, height: int) -> np.ndarray:
    """Return RGBA ``[H, W, 4]`` of a gradient that is laid out over the whole of it."""
    offset = fill.get(b"Ofst")
    dx, dy = (float(offset[key]) / 100 if offset is not None else 0.0 for key in (b"Hrzn", b"Vrtc"))
    x = (np.arange(width, dtype=np.float32) - width * (0.5 + dx))[None]
    y = (np.arange(height, dtype=np.float32) - height * (0.5 + dy))[:, None]
    angle = np.radians(float(fill.get(b"Angl", 0)))
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    # Half the line through the middle that lies inside the box, as Photoshop's own pixels show.
    half = min(width / max(abs(cos), 1e-6), height / max(abs(sin), 1e-6)) / 2
    half = max(half * float(fill.get(b"Scl ", 100.0)) / 100, 1e-6)
    along, across = (x * cos - y * sin) / half, (x * sin + y * cos) / half
    kind = fill[b"Type"].enum
    if kind == b"Rdl ":
        at = np.hypot(x, y) / half
    elif kind == b"Angl":
        at = (np.arctan2(y, x) + angle) / (2 * np.pi) % 1
    elif kind == b"Rflc":
        at = np.abs(along)
    elif kind == b"Dmnd":
        at = np.abs(along) + np.abs(across)
    else:
        at = (along + 1) / 2
    at = np.broadcast_to(at, (height, width)).clip(0, 1)
    if bool(fill.get(b"Rvrs", False)):
        at = 1 - at
    gradient = fill[b"Grad"]
    smooth = float(gradient.get(b"Intr", _WHOLE)) / _WHOLE
    out = np.ones((height, width, 4), np.float32)
    out[..., :3] = _ramp(gradient[b"Clrs"], lambda stop: _colour(stop[b"Clr "]), smooth)(at)
    if b"Trns" in gradient:
        out[..., 3:] = _ramp(gradient[b"Trns"], lambda stop: (_unit(float(stop[b"Opct"]) / 100),), smooth)(at)
    return out


def _ramp(
    stops: Sequence[Any], value: Callable[[Any], Sequence[float]], smooth: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from positions 0..1 to the values between stops.

    The positions between two stops are shifted so that the mean lies at the midpoint. ``smooth`` is Photoshop's
    smoothness, 0..1, from straight lines to a Catmull-Rom spline, which is what Photoshop's own pixels show.
    """
    ordered = sorted(stops, key=lambda stop: float(stop[b"Lctn"]))
    places = np.array([float(stop[b"Lctn"]) / _WHOLE for stop in ordered])
    middles = [min(0.95, max(0.05, float(stop.get(b"Mdpn", 50)) / 100)) for stop in ordered]
    values = np.array([value(stop) for stop in ordered])
    table = np.empty((_TABLE, values.shape[1]))
    for number, place in enumerate(np.linspace(0, 1, _TABLE)):
        after = int(np.searchsorted(places, place, "right"))
        if after in (0, len(places)):
            table[number] = values[max(0, after - 1)]
            continue
        part = (place - places[after - 1]) / (places[after] - places[after - 1])
        middle = middles[after]
        t = part / middle / 2 if part < middle else 0.5 + (part - middle) / (1 - middle) / 2
        left, right = values[after - 1], values[after]
        slope = (right - values[max(0, after - 2)]) / 2, (values[min(len(values) - 1, after + 1)] - left) / 2
        spline = (
            (2 * t**3 - 3 * t**2 + 1) * left
            + (t**3 - 2 * t**2 + t) * slope[0]
            + (3 * t**2 - 2 * t**3) * right
            + (t**3 - t**2) * slope[1]
        )
        table[number] = (1 - smooth) * (left + (right - left) * t) + smooth * spline
    table = table.clip(0, 1)

    def at(positions: np.ndarray) -> np.ndarray:
        index = positions * (_TABLE - 1)
        grid = np.arange(_TABLE)
        return np.stack([np.interp(index, grid, table[:, channel]) for channel in range(table.shape[1])], -1)

    return at


def _tile(pattern: Pattern, budget: Budget, where: str) -> np.ndarray | None:
    """Return a pattern's pixels, RGBA ``[H, W, 4]``; None if it is in another colour mode than RGB and grey, or has
    not 8 bits."""
    top, left, bottom, right = pattern.data.rectangle
    height, width = bottom - top, right - left
    if pattern.image_mode not in (ColorMode.RGB, ColorMode.GRAYSCALE) or height < 1 or width < 1:
        return None
    budget.fits(f"the pattern of {where}", width, height, 8)
    slots = pattern.data.channels
    colours = [c for c in slots[:-2] if c.is_written and c.rectangle is not None]
    if len(colours) not in (1, 3) or any(c.depth != 8 for c in colours):
        return None
    out = np.ones((height, width, 4), np.float32)
    alpha = slots[-1]
    written = [(range(3), colours[0])] if len(colours) == 1 else [((n,), c) for n, c in enumerate(colours)]
    for places, channel in [*written, *([((3,), alpha)] if alpha.is_written and alpha.depth == 8 else [])]:
        if tuple(channel.rectangle) != (top, left, bottom, right):
            return None
        plane = np.frombuffer(channel.get_data(), np.uint8).reshape(height, width) / np.float32(255)
        for place in places:
            out[..., place] = plane
    return out


def _tiled(tile: np.ndarray, fill: Descriptor, width: int, height: int) -> np.ndarray:
    scale = float(fill.get(b"Scl ", 100.0)) / 100
    if scale != 1:
        h, w = (max(1, min(16384, round(side * scale))) for side in tile.shape[:2])
        image = Image.fromarray((tile * 255).round().astype(np.uint8), "RGBA").resize((w, h))
        tile = np.asarray(image, np.float32) / 255
    phase = fill.get(b"phase")
    dx, dy = (round(float(phase[key])) if phase is not None else 0 for key in (b"Hrzn", b"Vrtc"))
    rows = (np.arange(height) - dy) % tile.shape[0]
    columns = (np.arange(width) - dx) % tile.shape[1]
    out: np.ndarray = tile[rows[:, None], columns[None]]
    return out
