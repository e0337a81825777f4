"""A layer's own picture: take it out, put another one in, make a thumbnail."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..canvas.compositing import GREY, multiplied, straight
from ..canvas.resizing import resized
from ..document import Layer
from ..errors import invalid


def take_picture(layer: Layer) -> tuple[Tensor, Tensor]:
    """Return a layer's straight colours ``[H, W, 3]`` and its alpha times mask ``[H, W]``, in its own frame.

    A layer without a picture gives grey of the size of its mask or box. For a layer with a picture
    :func:`put_picture` is the exact inverse.
    """
    alpha = layer.coverage
    if layer.image is None:
        return torch.tensor(GREY).expand(*alpha.shape, 3).clone(), alpha.contiguous()
    return layer.image[..., :3], alpha


def put_picture(layer: Layer, colours: Tensor, alpha: Tensor | None = None) -> Layer:
    """Return the layer with another picture; placement, prompts, look and recipe stay.

    Args:
        layer: the layer to change.
        colours: ``[H, W, 3]``, straight, 0..1, of any size: it is scaled to the layer's box.
        alpha: ``[H, W]``, 1 is opaque; replaces the layer's alpha and mask. None, or the alpha that
            :func:`take_picture` returned: both stay, scaled to the size of the picture if that differs.

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
    """Return a small RGBA picture ``[H', W', 4]`` of the layer in its own frame; the longer side has at most
    ``side`` pixels.

    A layer without a picture shows its mask in grey; one without picture and mask gives None.
    """
    if layer.image is None and layer.mask is None:
        return None
    colours, alpha = take_picture(layer)
    pixels = multiplied(colours, alpha)
    scale = min(1.0, side / max(alpha.shape))
    size = tuple(max(1, round(length * scale)) for length in alpha.shape)
    return straight(_resized(pixels, size))


def _resized(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return ``[H, W, C]`` scaled to ``size``; the same object if it already has that size."""
    if tuple(pixels.shape[:2]) == size:
        return pixels
    return resized(pixels.permute(2, 0, 1).float(), *size).permute(1, 2, 0).clamp(0, 1)
