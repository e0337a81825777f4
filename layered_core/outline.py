"""Where layers lie: their corners, the canvas that holds them all, and a picture of both."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .compositing import composite, over_colour
from .document import Layer, LayerDocument
from .pictures import to_image

_COLOURS = ("#ff5252", "#ffd740", "#40c4ff", "#69f0ae", "#e040fb", "#ff9100", "#18ffff", "#b2ff59")
"""Outline colours, taken in turn."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_CHECKS = (0.72, 0.6)
"""Greys of the checkerboard that shows through transparent parts."""


def corners(layer: Layer) -> list[tuple[float, float]]:
    """The layer's four corners on the canvas, pixels, clockwise from its own top left: turned clockwise about its centre."""
    angle = math.radians(layer.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    cx, cy, dx, dy = layer.x + layer.width / 2, layer.y + layer.height / 2, layer.width / 2, layer.height / 2
    return [(cx + u * cos - v * sin, cy + u * sin + v * cos) for u, v in ((-dx, -dy), (dx, -dy), (dx, dy), (-dx, dy))]


def canvas_extent(layers: Iterable[Layer]) -> tuple[int, int]:
    """Width and height of the smallest canvas, from (0, 0), that holds every layer's corners; at least 1 x 1."""
    points = [point for layer in layers for point in corners(layer)]
    return max([1, *(math.ceil(x) for x, _ in points)]), max([1, *(math.ceil(y) for _, y in points)])


def is_off_canvas(layer: Layer, width: int, height: int) -> bool:
    """Whether the layer's bounding box has no pixel on a canvas of ``width`` x ``height``."""
    xs, ys = zip(*corners(layer), strict=True)
    return bool(max(xs) <= 0 or max(ys) <= 0 or min(xs) >= width or min(ys) >= height)


def outlined(document: LayerDocument, side: int = 768, rules: str = "photoshop") -> Tensor:
    """The composite over a checkerboard with every layer's outline, number (1 is at the back) and name on it.

    Layers without a picture are dashed, hidden ones are left out.

    Args:
        document: any document.
        side: the longer side of the result, pixels. A smaller canvas is enlarged a whole number of times, to this or somewhat more, so
            that words stay legible; a larger one is reduced.
        rules: of compositing, see :func:`~layered_core.compositing.composite`.

    Returns:
        RGB float32 ``[H', W', 3]`` in 0..1.
    """
    longest = max(document.width, document.height)
    scale = math.ceil(side / longest) if longest <= side else side / longest
    rows, columns = ((torch.arange(n) * scale / 16).floor() for n in (document.height, document.width))
    board = torch.where((rows[:, None] + columns) % 2 == 0, *_CHECKS)[..., None].expand(-1, -1, 3)
    image = to_image(over_colour(composite(document, rules), board))
    size = max(1, round(document.width * scale)), max(1, round(document.height * scale))
    image = image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
    pen = ImageDraw.Draw(image)
    visible = [(number, layer) for number, layer in enumerate(document, 1) if layer.visible]
    font = _font(visible, scale, max(size) // 26)
    for number, layer in visible:
        _draw(pen, layer, number, scale, font, size)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def _font(layers: list[tuple[int, Layer]], scale: float, largest: int) -> Font:
    """The largest font in which every label is as narrow as its layer, as far as it stays legible."""
    size = float(largest)
    for number, layer in layers:
        xs = [x * scale for x, _ in corners(layer)]
        size = min(size, 100 * (max(xs) - min(xs) - 8) / ImageFont.load_default(100).getlength(_label(number, layer)))
    return ImageFont.load_default(max(14, int(size)))


def _label(number: int, layer: Layer) -> str:
    return f"{number} {layer.name}"


def _draw(pen: ImageDraw.ImageDraw, layer: Layer, number: int, scale: float, font: Font, size: tuple[int, int]) -> None:
    """One layer's outline and label; the label stays on the canvas."""
    colour = _COLOURS[(number - 1) % len(_COLOURS)]
    points = [(x * scale, y * scale) for x, y in corners(layer)]
    for a, b in zip(points, [*points[1:], points[0]], strict=True):
        for start, end in _dashes(a, b) if layer.image is None else [(a, b)]:
            pen.line([start, end], fill=colour, width=3)
    label = _label(number, layer)
    left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
    width, height = right - left + 8, bottom - top + 6
    x = min(max(min(p[0] for p in points), 0), max(size[0] - width, 0))
    y = min(max(min(p[1] for p in points), 0), max(size[1] - height, 0))
    pen.rectangle([x, y, x + width, y + height], fill=colour)
    pen.text((x + 4 - left, y + 3 - top), label, fill="#101014", font=font)


def _dashes(a: tuple[float, float], b: tuple[float, float], length: float = 10) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The line from ``a`` to ``b`` cut into dashes of ``length`` pixels with gaps as long."""
    count = max(1, round(math.dist(a, b) / (2 * length)))
    at = [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t) for t in ((i / 2) / count for i in range(2 * count + 1))]
    return [(at[2 * i], at[2 * i + 1]) for i in range(count)]
