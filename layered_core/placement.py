"""Bring a layer's own pixels onto the canvas: scale, flip, rotate, move."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .document import Layer

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in canvas pixels, right and bottom exclusive."""


def bounds(layer: Layer) -> Box:
    """The smallest whole-pixel box that holds the placed layer; may lie off the canvas."""
    if _is_plain(layer):
        return int(layer.x), int(layer.y), int(layer.x) + layer.width, int(layer.y) + layer.height
    angle = math.radians(layer.rotation)
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    half_w = (layer.width * cos + layer.height * sin) / 2
    half_h = (layer.width * sin + layer.height * cos) / 2
    cx, cy = layer.x + layer.width / 2, layer.y + layer.height / 2
    # One pixel more for the resampling filter's reach; 1e-6 keeps exact edges from growing by rounding.
    return (
        math.floor(cx - half_w - 1 + 1e-6), math.floor(cy - half_h - 1 + 1e-6),
        math.ceil(cx + half_w + 1 - 1e-6), math.ceil(cy + half_h + 1 - 1e-6),
    )  # fmt: skip


def place(pixels: Tensor, layer: Layer, width: int, height: int) -> Tensor:
    """Put ``pixels`` of the layer's own frame on an empty canvas.

    Exact copy when nothing is resampled; otherwise bilinear, antialiased when shrinking. Outside the layer the result is 0, so
    colours must come premultiplied by alpha.

    Args:
        pixels: ``[H', W', C]`` float in the layer's own frame, any size.
        layer: gives x, y, width, height, rotation, flips.
        width: canvas width W in pixels.
        height: canvas height H in pixels.

    Returns:
        ``[H, W, C]`` float.
    """
    canvas = pixels.new_zeros(height, width, pixels.shape[-1])
    left, top, right, bottom = bounds(layer)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if x0 >= x1 or y0 >= y1:
        return canvas
    own = _scaled(pixels, layer)
    if _is_plain(layer):
        canvas[y0:y1, x0:x1] = own[y0 - top : y1 - top, x0 - left : x1 - left]
        return canvas
    canvas[y0:y1, x0:x1] = _turned(own, layer, (x0, y0, x1, y1))
    return canvas


def _is_plain(layer: Layer) -> bool:
    """Whether the layer's pixels fall on the canvas's own grid."""
    return layer.rotation % 360 == 0 and float(layer.x).is_integer() and float(layer.y).is_integer()


def _scaled(pixels: Tensor, layer: Layer) -> Tensor:
    """Flip and scale to ``[height, width, C]``."""
    flips = [d for d, flip in ((0, layer.flip_v), (1, layer.flip_h)) if flip]
    pixels = pixels.flip(flips) if flips else pixels
    if pixels.shape[:2] == (layer.height, layer.width):
        return pixels
    nchw = pixels.permute(2, 0, 1)[None]
    return functional.interpolate(nchw, (layer.height, layer.width), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def _turned(own: Tensor, layer: Layer, box: Box) -> Tensor:
    """Sample the scaled layer, turned about its centre, at the pixels of ``box``."""
    x0, y0, x1, y1 = box
    angle = math.radians(layer.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    dx = torch.arange(x0, x1, dtype=torch.float32, device=own.device) + 0.5 - (layer.x + layer.width / 2)
    dy = torch.arange(y0, y1, dtype=torch.float32, device=own.device) + 0.5 - (layer.y + layer.height / 2)
    # Clockwise on a canvas whose y axis points down; -1..1 spans the layer.
    u = (dx[None, :] * cos + dy[:, None] * sin) * 2 / layer.width
    v = (dy[:, None] * cos - dx[None, :] * sin) * 2 / layer.height
    grid = torch.stack([u, v], -1)[None]
    sampled = functional.grid_sample(own.permute(2, 0, 1)[None].float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled[0].permute(1, 2, 0).to(own.dtype)
