"""Flatten a document to one picture."""

from __future__ import annotations

import torch
from torch import Tensor

from .document import Layer, LayerDocument
from .errors import invalid
from .placement import place

GREY = (150 / 255, 150 / 255, 150 / 255)
"""What shows through holes where a picture must be opaque: Collage Diffusion's canvas colour."""


def premultiplied(layer: Layer, width: int, height: int) -> Tensor:
    """The layer on an empty canvas, float32 ``[H, W, 4]``, colours multiplied by alpha; empty for a hidden or pictureless layer.

    Resampling happens after the multiplication, so transparent pixels' colours never bleed into edges.
    """
    if layer.image is None or not layer.visible:
        return torch.zeros(height, width, 4)
    alpha = layer.coverage[..., None]
    pixels = torch.cat([layer.image[..., :3].float() * alpha, alpha], -1)
    return place(pixels, layer, width, height) * layer.opacity


def composite(document: LayerDocument) -> Tensor:
    """Every visible layer over those behind it (Porter and Duff's source-over, in the picture's own gamma).

    Returns:
        RGBA float32 ``[H, W, 4]``, straight alpha, 0..1.

    Raises:
        LayeredError: a visible layer's blend mode is not ``normal``.
    """
    out = torch.zeros(document.height, document.width, 4)
    if document.background is not None:
        out[...] = torch.tensor([*document.background, 1.0])
    for layer in document:
        if layer.visible and layer.blend_mode != "normal":
            raise invalid(f"layer {layer.name!r}: blend_mode", layer.blend_mode, "normal", "Other modes are read and kept but not composited yet")
        front = premultiplied(layer, document.width, document.height)
        out = front + out * (1 - front[..., 3:])
    return straight(out)


def straight(pixels: Tensor) -> Tensor:
    """Divide premultiplied colours ``[..., 4]`` by alpha; colour 0 where alpha is 0."""
    alpha = pixels[..., 3:]
    colour = torch.where(alpha > 0, pixels[..., :3] / alpha.clamp_min(1e-8), 0.0)
    return torch.cat([colour, alpha], -1).clamp_(0, 1)


def over_colour(pixels: Tensor, colour: Tensor | tuple[float, float, float]) -> Tensor:
    """Lay a straight-alpha picture ``[..., 4]`` over a plain colour; returns ``[..., 3]``."""
    backdrop = torch.as_tensor(colour, dtype=pixels.dtype, device=pixels.device)
    return pixels[..., :3] * pixels[..., 3:] + backdrop * (1 - pixels[..., 3:])
