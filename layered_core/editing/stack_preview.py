"""A preview of a document: the composite with every layer's outline, number and name drawn on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..canvas.compositing import Compositor, over_colour
from ..canvas.placement import corners
from ..document import Layer, LayerDocument, short_name
from ..formats.pixel_numbers import to_numbers

_COLOURS = ("#ff5252", "#ffd740", "#40c4ff", "#69f0ae", "#e040fb", "#ff9100", "#18ffff", "#b2ff59")
"""Outline colours, taken in turn."""

_NO_LETTER = "\U0010fffe"
"""A code point for which no font has a glyph."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "DejaVuSans.ttf",
    "msyh.ttc",
    "arial.ttf",
    "PingFang.ttc",
    "Arial Unicode.ttf",
)
"""System fonts, tried in turn for names with letters that Pillow's own font lacks."""

_CHECKS = (0.72, 0.6)
"""Greys of the checkerboard that shows through transparent parts."""


def outlined(
    document: LayerDocument,
    side: int = 768,
    rules: str = "photoshop",
    marks: Sequence[Layer] | None = None,
) -> Tensor:
    """Draw the composite over a checkerboard, with every layer's outline, number (1 is at the back), name and
    LoRAs.

    Layers without a picture get a dashed outline. Hidden layers are left out, and so are letters that no
    installed font has.

    Args:
        document: any document.
        side: longer side of the result, pixels. A smaller canvas is enlarged by a whole factor, to this size
            or somewhat more, so that names stay legible; a larger canvas is reduced.
        rules: rules of compositing, see :func:`~layered_core.canvas.compositing.composite`.
        marks: layers whose outlines are drawn instead of those of the document's own layers.

    Returns:
        RGB float32 ``[H', W', 3]`` in 0..1.
    """
    longest = max(document.width, document.height)
    scale = math.ceil(side / longest) if longest <= side else side / longest
    image = _on_board(Compositor(document, rules), document.height, document.width, scale)
    size = max(1, round(document.width * scale)), max(1, round(document.height * scale))
    image = image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
    pen = ImageDraw.Draw(image)
    drawn = document.layers if marks is None else marks
    visible = [(number, layer) for number, layer in enumerate(drawn, 1) if layer.visible]
    texts = [[f"{number} {layer.name}", *_loras(layer)] for number, layer in visible]
    face = _face([line for lines in texts for line in lines])
    labels = ["\n".join(" ".join(_written(face, line).split()) for line in lines) for lines in texts]
    font = _font(face, visible, labels, scale, max(size) // 26)
    for (number, layer), label in zip(visible, labels, strict=True):
        _draw(pen, layer, number, label, scale, font, size)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def _loras(layer: Layer) -> list[str]:
    """Return a line that names the layer's LoRAs, without folders and endings; none if it has none."""
    named = [
        f"{lora.name.split('/')[-1].removesuffix('.safetensors')} {lora.strength:g}"
        for lora in layer.recipe.loras
    ]
    return [f"+ {short_name(', '.join(named))}"] if named else []


def _on_board(stack: Compositor, height: int, width: int, scale: float) -> Image.Image:
    """Return the composite over the checkerboard, with fields of 16 pixels after scaling, in 8 bits."""
    down, across = ((torch.arange(n) * scale / 16).floor() for n in (height, width))
    shown = np.empty((height, width, 3), np.uint8)

    def draw(rows: slice, pixels: Tensor) -> None:
        board = torch.where((down[rows, None] + across) % 2 == 0, *_CHECKS)[..., None].expand(-1, -1, 3)
        shown[rows] = to_numbers(over_colour(pixels, board), "u1")

    stack.each_band(draw)
    return Image.fromarray(shown)


def _face(names: list[str]) -> str:
    """Return the font that has most letters of the names; empty for Pillow's own font."""
    text = "".join(names)
    if _written("", text) == text:
        return ""
    return max(["", *_system_fonts()], key=lambda face: len(_written(face, text)))


@cache
def _system_fonts() -> list[str]:
    found = []
    for face in _FONTS:
        with suppress(OSError):
            ImageFont.truetype(face, 10)
            found.append(face)
    return found


def _written(face: str, text: str) -> str:
    """Return the text without the letters that the font lacks: those it draws as the box of a missing
    glyph."""
    font = _loaded(face, 20)
    box = bytes(font.getmask(_NO_LETTER))
    lacks = {letter for letter in set(text) if not letter.isspace() and bytes(font.getmask(letter)) == box}
    return "".join(letter for letter in text if letter not in lacks)


def _loaded(face: str, size: float) -> Font:
    return ImageFont.truetype(face, size) if face else ImageFont.load_default(size)


def _font(face: str, layers: list[tuple[int, Layer]], labels: list[str], scale: float, largest: int) -> Font:
    """Return the font in the largest size at which every label fits its layer's width, but at least 14."""
    size, wide = float(largest), _loaded(face, 100)
    for (_, layer), label in zip(layers, labels, strict=True):
        xs = [x * scale for x, _ in corners(layer)]
        longest = max(wide.getlength(line) for line in label.split("\n"))
        size = min(size, 100 * (max(xs) - min(xs) - 8) / longest)
    return _loaded(face, max(14, int(size)))


def _draw(
    pen: ImageDraw.ImageDraw,
    layer: Layer,
    number: int,
    label: str,
    scale: float,
    font: Font,
    size: tuple[int, int],
) -> None:
    """Draw one layer's outline and label; the label is kept on the canvas."""
    colour = _COLOURS[(number - 1) % len(_COLOURS)]
    points = [(x * scale, y * scale) for x, y in corners(layer)]
    for a, b in zip(points, [*points[1:], points[0]], strict=True):
        for start, end in _dashes(a, b) if layer.image is None else [(a, b)]:
            pen.line([start, end], fill=colour, width=3)
    left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
    width, height = right - left + 8, bottom - top + 6
    x = min(max(min(p[0] for p in points), 0), max(size[0] - width, 0))
    y = min(max(min(p[1] for p in points), 0), max(size[1] - height, 0))
    pen.rectangle([x, y, x + width, y + height], fill=colour)
    pen.text((x + 4 - left, y + 3 - top), label, fill="#101014", font=font)


def _dashes(
    a: tuple[float, float], b: tuple[float, float], length: float = 10
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Cut the line from ``a`` to ``b`` into dashes of ``length`` pixels with gaps of the same length."""
    count = max(1, round(math.dist(a, b) / (2 * length)))
    at = [
        (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t)
        for t in ((i / 2) / count for i in range(2 * count + 1))
    ]
    return [(at[2 * i], at[2 * i + 1]) for i in range(count)]
