"""Placement: bring a layer's own pixels onto the canvas by scaling, flipping, rotating and moving them.

Pixels are planes, ``[C, H, W]``, unless a function says otherwise. Pixels outside the layer are 0, and
resampling mixes neighbours, so the colours of a layer that is resampled must be premultiplied; otherwise the
colours of transparent pixels bleed into its edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..document import Layer
from ..progress import pause, row_bands
from .resizing import resized

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in canvas pixels; right and bottom are exclusive."""


def bounds(layer: Layer) -> Box:
    """Return the smallest whole-pixel box around the placed layer; it may lie off the canvas."""
    if _on_grid(layer):
        return int(layer.x), int(layer.y), int(layer.x) + layer.width, int(layer.y) + layer.height
    angle = math.radians(layer.rotation)
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    half_w = (layer.width * cos + layer.height * sin) / 2
    half_h = (layer.width * sin + layer.height * cos) / 2
    cx, cy = layer.x + layer.width / 2, layer.y + layer.height / 2
    # One pixel more for the soft edge; 1e-6 keeps rounding from growing the box at exact edges.
    return (
        math.floor(cx - half_w - 1 + 1e-6), math.floor(cy - half_h - 1 + 1e-6),
        math.ceil(cx + half_w + 1 - 1e-6), math.ceil(cy + half_h + 1 - 1e-6),
    )  # fmt: skip


def meet(a: Box, b: Box) -> Box | None:
    """Return the intersection of two boxes, or None if it is empty."""
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def is_exact(layer: Layer, height: int, width: int) -> bool:
    """Return whether pixels of ``height`` x ``width`` can be placed without resampling: they coincide with
    canvas pixels."""
    return _on_grid(layer) and (layer.height, layer.width) == (height, width)


def reduced(pixels: Tensor, layer: Layer) -> Tensor:
    """Reduce ``[C, H', W']`` to the layer's size on each axis on which it is larger: bilinear,
    antialiased."""
    size = min(pixels.shape[-2], layer.height), min(pixels.shape[-1], layer.width)
    return resized(pixels, *size)


def layer_window(pixels: Tensor, layer: Layer, box: Box) -> Tensor:
    """Return the part of the layer in ``box``: an exact cut if nothing is resampled, else bilinear samples.

    At the edges of a rotated or unaligned layer, a pixel is covered as far as the layer reaches into it.

    Args:
        pixels: ``[C, H', W']`` in the layer's own frame, after :func:`reduced` if larger than the layer;
            float32 or float64 if they are sampled.
        layer: its x, y, width, height, rotation and flips are used.
        box: must lie within :func:`bounds`.

    Returns:
        ``[C, H, W]``, H and W those of ``box``; may share memory with ``pixels``.
    """
    if is_exact(layer, *pixels.shape[-2:]):
        return _cut(pixels, layer, box)
    return _sampled(pixels, layer, box)


def place(pixels: Tensor, layer: Layer, width: int, height: int) -> Tensor:
    """Place ``pixels`` of the layer's own frame on an empty canvas.

    Args:
        pixels: ``[H', W', C]`` float in the layer's own frame, of any size.
        layer: its x, y, width, height, rotation and flips are used.
        width: canvas width W in pixels.
        height: canvas height H in pixels.

    Returns:
        ``[H, W, C]`` float.
    """
    canvas = pixels.new_zeros(height, width, pixels.shape[-1])
    box = meet(bounds(layer), (0, 0, width, height))
    if box is not None:
        small = reduced(pixels.movedim(-1, 0), layer)
        left, top, right, bottom = box
        for rows in row_bands(bottom - top, right - left, pixels.shape[-1]):
            pause()
            band = left, top + rows.start, right, top + rows.stop
            canvas[band[1] : band[3], left:right] = layer_window(small, layer, band).movedim(0, -1)
    return canvas


def _on_grid(layer: Layer) -> bool:
    """Return whether the layer's box consists of whole canvas pixels."""
    return layer.rotation % 360 == 0 and float(layer.x).is_integer() and float(layer.y).is_integer()


def _cut(pixels: Tensor, layer: Layer, box: Box) -> Tensor:
    """Cut the part of the layer's own pixels that lies in ``box``, and flip it as the layer says."""
    x0, x1 = box[0] - int(layer.x), box[2] - int(layer.x)
    y0, y1 = box[1] - int(layer.y), box[3] - int(layer.y)
    if layer.flip_h:
        x0, x1 = layer.width - x1, layer.width - x0
    if layer.flip_v:
        y0, y1 = layer.height - y1, layer.height - y0
    flips = [axis for axis, flip in ((-2, layer.flip_v), (-1, layer.flip_h)) if flip]
    own = pixels[..., y0:y1, x0:x1]
    return own.flip(flips) if flips else own


def _sampled(pixels: Tensor, layer: Layer, box: Box) -> Tensor:
    """Sample the layer at the pixel centres of ``box``: scaled, flipped and rotated about its centre."""
    angle = math.radians(layer.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    dx = torch.arange(box[0], box[2]).to(pixels) + 0.5 - (layer.x + layer.width / 2)
    dy = torch.arange(box[1], box[3]).to(pixels)[:, None] + 0.5 - (layer.y + layer.height / 2)
    # Distance from the layer's centre along its own axes, canvas pixels; as the y axis of the canvas points
    # down, the rotation is clockwise.
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    flip_u, flip_v = (-1 if flip else 1 for flip in (layer.flip_h, layer.flip_v))
    grid = torch.stack([u * (2 * flip_u / layer.width), v * (2 * flip_v / layer.height)], -1)[None]
    shown: Tensor = functional.grid_sample(
        pixels[None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    if _on_grid(layer):
        return shown
    reach_u, reach_v = (layer.width + 1) / 2 - u.abs(), (layer.height + 1) / 2 - v.abs()
    return shown * (reach_u.clamp_(0, 1) * reach_v.clamp_(0, 1))


def corners(layer: Layer) -> list[tuple[float, float]]:
    """Return the layer's four corners on the canvas in pixels, after rotation, clockwise from its own top
    left."""
    angle = math.radians(layer.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    cx, cy, dx, dy = layer.x + layer.width / 2, layer.y + layer.height / 2, layer.width / 2, layer.height / 2
    return [
        (cx + u * cos - v * sin, cy + u * sin + v * cos)
        for u, v in ((-dx, -dy), (dx, -dy), (dx, dy), (-dx, dy))
    ]


def canvas_extent(layers: Iterable[Layer]) -> tuple[int, int]:
    """Return width and height of the smallest canvas from (0, 0) that holds every layer's corners; at least 1
    x 1."""
    points = [point for layer in layers for point in corners(layer)]
    return max([1, *(math.ceil(x) for x, _ in points)]), max([1, *(math.ceil(y) for _, y in points)])


def fitted(layer: Layer, width: int, height: int) -> Layer:
    """Return the layer scaled down, if it is larger, to fit into a canvas of ``width`` x ``height``: it keeps its
    shape and its top left corner."""
    scale = min(1.0, width / layer.width, height / layer.height)
    if scale == 1:
        return layer
    return replace(
        layer, width=max(1, round(layer.width * scale)), height=max(1, round(layer.height * scale))
    )


def is_cut_off(layer: Layer, width: int, height: int) -> bool:
    """Return whether a part of the layer's box lies off a canvas of ``width`` x ``height``."""
    xs, ys = zip(*corners(layer), strict=True)
    return bool(min(*xs, *ys) < 0 or max(xs) > width or max(ys) > height)


def is_off_canvas(layer: Layer, width: int, height: int) -> bool:
    """Return whether the layer's bounding box has no pixel on a canvas of ``width`` x ``height``."""
    xs, ys = zip(*corners(layer), strict=True)
    return bool(max(xs) <= 0 or max(ys) <= 0 or min(xs) >= width or min(ys) >= height)
