"""Pictures in a row, each under its caption: before and after, the layers of a stack, its stages."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import check_whole, invalid
from ..formats.pictures import to_image

_GAP, _HEAD, _LETTERS = 6, 20, 12
"""Pixels between two pictures, for a caption, and of its letters' height."""


def side_by_side(pictures: Mapping[str, Tensor | Image.Image], height: int = 192) -> Image.Image:
    """Draw pictures in a row on white, scaled to the same height, each under its caption; transparent parts show a
    checkerboard.

    Args:
        pictures: at least one, by their captions, from left to right: tensors ``[H, W]``, ``[H, W, 3]`` or
            ``[H, W, 4]`` in 0..1 with straight alpha, or Pillow images, of any sizes.
        height: of every picture, 1..4096 pixels.

    Returns:
        A Pillow image in mode RGB.

    Raises:
        LayeredError: there is no picture, or ``height`` is out of range.
    """
    check_whole("height", height, 1, 4096)
    if not pictures:
        raise invalid("pictures", {}, "at least one, by its caption")
    font = ImageFont.load_default(size=_LETTERS)
    shown = []
    for caption, picture in pictures.items():
        image = to_image(picture) if isinstance(picture, Tensor) else picture
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        size = max(1, round(image.width * height / image.height)), height
        scaled = on_checkerboard(image.resize(size, Image.Resampling.LANCZOS))
        shown.append((caption, scaled, max(size[0], round(font.getlength(caption)))))
    width = sum(column for _, _, column in shown) + _GAP * (len(shown) - 1)
    row = Image.new("RGB", (width, _HEAD + height), (255, 255, 255))
    pen, left = ImageDraw.Draw(row), 0
    for caption, image, column in shown:
        pen.text((left, 2), caption, fill=(0, 0, 0), font=font)
        row.paste(image, (left, _HEAD))
        left += column + _GAP
    return row


def on_checkerboard(image: Image.Image) -> Image.Image:
    """Return a Pillow image in mode RGB, its transparent parts over fields of 8 pixels in white and light grey."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    board = Image.new("RGB", image.size, (255, 255, 255))
    pen = ImageDraw.Draw(board)
    for y in range(0, image.height, 8):
        for x in range(y % 16, image.width, 16):
            pen.rectangle((x, y, x + 7, y + 7), fill=(214, 214, 214))
    front = image.convert("RGBA")
    board.paste(front, (0, 0), front)
    return board
