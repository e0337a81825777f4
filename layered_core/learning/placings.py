"""Pictures for training a LoRA: one layer in many places, and an error that counts inside the layer alone."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from ..canvas.placement import bounds
from ..document import Layer, LayerDocument

SMALLEST = 0.7
"""Least scale of a layer that is moved."""


def placed(
    layer: Layer, document: LayerDocument, chance: random.Random, *, flips: bool = True, moves: bool = True
) -> Layer:
    """Return a layer in another place of its document's canvas: it may be mirrored, is at most as large as before,
    and lies on the canvas with all of it that was there before.

    Args:
        layer: a layer of the document.
        document: gives the canvas.
        chance: source of chance.
        flips: whether to mirror the layer left to right, half of the time.
        moves: whether to scale it, by 0.7 to 1, and to move it.
    """
    if flips and chance.random() < 0.5:
        layer = replace(layer, flip_h=not layer.flip_h)
    if not moves:
        return layer
    scale = chance.uniform(SMALLEST, 1.0)
    width, height = (max(1, round(side * scale)) for side in (layer.width, layer.height))
    layer = replace(layer, width=width, height=height)
    left, top, right, bottom = bounds(layer)
    return replace(
        layer,
        x=layer.x + _shift(left, right, document.width, chance),
        y=layer.y + _shift(top, bottom, document.height, chance),
    )


def seen_inside(predicted: Tensor, clean: Tensor, masks: Tensor) -> Tensor:
    """Return ``clean + (predicted - clean) sqrt(m / mean m)``: a prediction whose mean squared error over all cells
    is the error inside the masks alone, divided by their area. What is predicted elsewhere has no gradient.

    Args:
        predicted, clean: the predicted and the true picture, ``[B, C, h, w]``, or ``[B, C, frames, h, w]``.
        masks: m, ``[B, h, w]`` in 0..1, none of them empty.
    """
    m = masks.to(predicted).view(len(masks), *[1] * (predicted.ndim - 3), *masks.shape[-2:])
    share = (m / m.mean((-2, -1), keepdim=True)).sqrt()
    return clean + torch.where(m > 0, (predicted - clean) * share, 0.0)


def _shift(low: float, high: float, side: int, chance: random.Random) -> int:
    """Return by how much to move a box so that it lies on a canvas; a box that is larger than the canvas stays on all
    of it."""
    least, most = sorted((-low, side - high))
    return round(chance.uniform(least, most))
