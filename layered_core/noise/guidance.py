"""Combine a model's predictions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

FORMING = 1.0
"""Above this sigma there is more noise than picture, and what is where is still being decided."""


def classifier_free(uncond: Tensor, cond: Tensor, scale: float | Tensor) -> Tensor:
    """``uncond + scale * (cond - uncond)``, any shape (Ho and Salimans, arXiv 2207.12598). Scale 1 is
    ``cond`` alone.

    A scale for every pixel, broadcast over the predictions, guides some places more than others (Shen et al.,
    arXiv 2404.05384).
    """
    return uncond + scale * (cond - uncond)


def guided_more(guided: Tensor, uncond: Tensor, cond: Tensor, scale: float, factor: Tensor) -> Tensor:
    """What :func:`classifier_free` would have given at ``scale * factor``, from what it gave at ``scale``;
    all of one shape or broadcast."""
    return guided + scale * (factor - 1) * (cond - uncond)


def region_factor(masks: Tensor, weights: Sequence[float], factor: float, sigma: float) -> Tensor:
    """Factor on the guidance scale of every pixel, ``[H, W]``: ``1 + (factor - 1) sum_i w_i M_i (1 - a_i)``
    while sigma is above ``FORMING``, then 1.

    The smaller the share ``a_i`` of the canvas that a layer is seen on, the less likely a model of its own
    accord puts the layer's object there, so the more it takes; a background is hardly touched.

    Args:
        masks: visible masks M ``[L, H, W]``, summing to at most 1.
        weights: how much of it each layer gets, 0..1.
        factor: 1 (guidance as it is) and more.
        sigma: noise level.
    """
    if factor == 1 or sigma <= FORMING:
        return masks.new_ones(masks.shape[1:])
    share = masks.mean((1, 2), keepdim=True)
    return 1 + (factor - 1) * (masks * (1 - share) * masks.new_tensor(list(weights))[:, None, None]).sum(0)
