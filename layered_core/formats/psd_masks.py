"""Masks of a PSD: their position on the canvas, their density, and their product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

Rectangle = tuple[int, int, int, int]
"""Left, top, width and height on the canvas, pixels."""


@dataclass
class PixelMask:
    """A pixel mask at a position on the canvas."""

    left: int
    """Left edge, canvas pixels."""
    top: int
    """Top edge, canvas pixels."""
    values: Tensor
    """``[h, w]``, 1 where the layer is shown."""
    outside: float
    """Value everywhere else, 0..1."""

    @property
    def box(self) -> Rectangle:
        """The rectangle of ``values``."""
        return self.left, self.top, self.values.shape[1], self.values.shape[0]

    def at(self, density: int | None) -> PixelMask:
        """Return the mask at a density of 0..255; None and 255 leave it unchanged."""
        if density is None or density == 255:
            return self
        return replace(
            self, values=1 - density / 255 * (1 - self.values), outside=1 - density / 255 * (1 - self.outside)
        )

    def without(self, factor: PixelMask) -> PixelMask:
        """Return this mask divided by ``factor``; 0 where ``factor`` is 0."""
        by = factor.over(self.box)
        values = torch.where(by > 0, self.values / by.clamp_min(1e-6), 0.0).clamp(0, 1)
        return replace(
            self, values=values, outside=min(1.0, self.outside / factor.outside) if factor.outside else 0.0
        )

    def over(self, box: Rectangle) -> Tensor:
        """Return the mask's values in ``box``, ``[height, width]``."""
        left, top, width, height = box
        out = torch.full((height, width), self.outside)
        h, w = self.values.shape
        x0, y0, x1, y1 = (
            max(left, self.left),
            max(top, self.top),
            min(left + width, self.left + w),
            min(top + height, self.top + h),
        )
        if x0 < x1 and y0 < y1:
            out[y0 - top : y1 - top, x0 - left : x1 - left] = self.values[
                y0 - self.top : y1 - self.top, x0 - self.left : x1 - self.left
            ]
        return out


def product(masks: Sequence[PixelMask], box: Rectangle) -> Tensor | None:
    """Return the product of the masks in ``box``, ``[height, width]``; None if there are no masks."""
    product = None
    for mask in masks:
        values = mask.over(box)
        product = values if product is None else product * values
    return product


def is_translucent(alpha: Tensor, where: Tensor) -> bool:
    """Return whether ``alpha`` lies between 0 and 1 on more than an edge: on some pixel of ``where`` and all
    its neighbours."""
    if not alpha.numel():
        return False
    between = ((alpha > 0.02) & (alpha < 0.98)).float()[None]
    return bool(((-max_pool2d(-between, 3, 1, 1))[0] > 0)[where].any())
