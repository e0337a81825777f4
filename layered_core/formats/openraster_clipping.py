"""Clipping in OpenRaster: layers and stacks with the operator ``svg:src-atop``, which Krita calls inherit alpha,
show only where the layers below them in the same isolated stack do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from .psd_masks import PixelMask, Rectangle


@dataclass(frozen=True)
class Scope:
    """An isolated stack, in which layers are composited before they meet what is below the stack."""

    number: int
    """Unique number; 0 is the root stack."""
    opacity: float = 1.0
    """The stack's own opacity, 0..1."""
    visible: bool = True
    """Whether the stack itself is shown."""
    clipped: bool = False
    """Whether the stack has the operator ``svg:src-atop``: its result is clipped to what is below it."""


@dataclass(frozen=True)
class Covering:
    """What a layer adds to the alpha of the isolated stacks around it."""

    scopes: tuple[Scope, ...]
    """The isolated stacks around the layer, from the root inwards."""
    clipped: bool
    """Whether the layer itself is clipped; it then adds nothing to the stack in which it lies."""
    shape: PixelMask
    """The layer's alpha."""
    opacity: float
    """The layer's own opacity, 0..1; 0 if the layer itself is hidden or only cuts."""


def clipping_mask(
    below: Sequence[Covering], scopes: Sequence[Scope], clipped: bool, box: Rectangle
) -> Tensor | None:
    """Return the mask ``[height, width]`` in ``box`` that clips a layer; None if nothing clips it.

    Args:
        below: the layers below it, back to front.
        scopes: the isolated stacks around the layer, from the root inwards.
        clipped: whether the layer itself is clipped.
        box: where the layer's pixels are, on the canvas.
    """
    mask = None
    for depth, scope in enumerate(scopes):
        if not (clipped if depth + 1 == len(scopes) else scopes[depth + 1].clipped):
            continue
        inside = [item for item in below if scope in item.scopes]
        alpha = _alpha(inside, depth, box)
        mask = alpha if mask is None else mask * alpha
    return mask


def _alpha(items: Sequence[Covering], depth: int, box: Rectangle) -> Tensor:
    """Return the alpha in ``box`` of the isolated stack at ``depth`` of ``items``: 1 minus the product of
    ``1 - alpha`` of its layers and stacks, without the clipped ones, which do not change it."""
    clear = torch.ones(box[3], box[2])
    for scope, group in groupby(
        items, lambda item: item.scopes[depth + 1] if depth + 1 < len(item.scopes) else None
    ):
        if scope is None:
            for item in group:
                if item.opacity and not item.clipped:
                    clear *= 1 - item.opacity * item.shape.over(box)
        elif scope.visible and scope.opacity and not scope.clipped:
            clear *= 1 - scope.opacity * _alpha(list(group), depth + 1, box)
    return 1 - clear
