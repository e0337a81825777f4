"""A layer's own picture: take it out, put another one in, make a small one to look at."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..canvas.compositing import GREY, straight
from ..canvas.resizing import resized
from ..document import Layer
from ..errors import invalid


def take_picture(layer: Layer) -> tuple[Tensor, Tensor]:
    """The layer's colours ``[H, W, 3]``, straight, and its alpha times mask ``[H, W]``, in its own frame.

    A layer without a picture is grey, of the size of its mask or box. For one that has a picture
    :func:`put_picture` is the exact inverse.
    """
    alpha = layer.coverage
    if layer.image is None:
        return torch.tensor(GREY).expand(*alpha.shape, 3).clone(), alpha
    return layer.image[..., :3], alpha


def put_picture(layer: Layer, colours: Tensor, alpha: Tensor | None = None) -> Layer:
    """The layer with another picture; place, words, look and recipe stay.

    Args:
        layer: the one to change.
        colours: ``[H, W, 3]``, straight, 0..1, of any size: it is scaled to the layer's place.
        alpha: ``[H, W]``, 1 is opaque; takes the place of the layer's alpha and mask. None, or what
            :func:`take_picture` gave: both stay, scaled to the picture's size where that is another one.

    Raises:
        LayeredError: ``alpha`` is of another size than ``colours``.
    """
    size = tuple(colours.shape[:2])
    if alpha is not None and tuple(alpha.shape) != size:
        got = f"{alpha.shape[1]}x{alpha.shape[0]}"
        raise invalid(
            f"layer {layer.name!r}: alpha's size",
            got,
            f"{size[1]}x{size[0]}, that of the picture",
            "Scale one of them",
        )
    if alpha is not None:
        own = layer.coverage
        if own.shape != alpha.shape or not torch.equal(own, alpha):
            return replace(layer, image=torch.cat([colours, alpha[..., None]], -1), mask=None)
    kept = torch.ones(size) if layer.image is None else _resized(layer.image[..., 3:], size)[..., 0]
    return replace(layer, image=torch.cat([colours, kept[..., None]], -1))


def thumbnail(layer: Layer, side: int) -> Tensor | None:
    """A small RGBA picture ``[H', W', 4]`` of the layer's own frame, the longer side at most ``side`` pixels;
    of a layer still to be generated its mask in grey, or None where it is a bare box.
    """
    if layer.image is None and layer.mask is None:
        return None
    colours, alpha = take_picture(layer)
    pixels = torch.cat([colours * alpha[..., None], alpha[..., None]], -1)
    scale = min(1.0, side / max(alpha.shape))
    size = tuple(max(1, round(length * scale)) for length in alpha.shape)
    return straight(_resized(pixels, size))


def _resized(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """``[H, W, C]`` scaled to ``size``; the same object where it has that size."""
    if tuple(pixels.shape[:2]) == size:
        return pixels
    return resized(pixels.permute(2, 0, 1).float(), *size).permute(1, 2, 0).clamp(0, 1)
