"""Classifier-free guidance, and a guidance scale that differs by region."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import invalid

FORMING = 1.0
"""Above this sigma there is more noise than picture, and the layout is still forming."""

PREDICTIONS = ("sample", "epsilon", "v_prediction", "flow_prediction")
"""What a model may predict: the picture, the noise, the velocity, or the flow; diffusers' names."""


def classifier_free(uncond: Tensor, cond: Tensor, scale: float | Tensor) -> Tensor:
    """Return ``uncond + scale * (cond - uncond)``, any shape (Ho and Salimans, arXiv 2207.12598). Scale 1
    gives ``cond``.

    A scale tensor that broadcasts over the predictions guides some pixels more than others (Shen et al.,
    arXiv 2404.05384).
    """
    return uncond + scale * (cond - uncond)


def guided_more(guided: Tensor, uncond: Tensor, cond: Tensor, scale: float, factor: Tensor) -> Tensor:
    """Return the guided prediction at ``scale * factor``, computed from ``guided``, the prediction at
    ``scale``.

    All tensors have one shape or broadcast. See :func:`classifier_free`.
    """
    return guided + scale * (factor - 1) * (cond - uncond)


def region_factor(masks: Tensor, weights: Sequence[float], factor: float, sigma: float) -> Tensor:
    """Compute the factor on the guidance scale of every pixel, ``[H, W]``:
    ``1 + (factor - 1) sum_i w_i M_i (1 - a_i)`` while sigma is above ``FORMING``, then 1.

    ``a_i`` is the share of the canvas on which layer i is visible. The smaller it is, the less likely the
    model places the layer's object there by itself, so the larger the factor; a background is hardly
    affected.

    Args:
        masks: visible masks M ``[L, H, W]``, summing to at most 1.
        weights: how much of the factor each layer gets, w, 0..1.
        factor: 1 (guidance unchanged) or more.
        sigma: the current noise level.
    """
    if factor == 1 or sigma <= FORMING:
        return masks.new_ones(masks.shape[1:])
    share = masks.mean((1, 2), keepdim=True)
    return 1 + (factor - 1) * (masks * (1 - share) * masks.new_tensor(list(weights))[:, None, None]).sum(0)


def of_empty_picture(x: Tensor, sigma: float, kind: str) -> Tensor:
    """Return what a model predicts if the picture is 0, in the shape of ``x``.

    A prediction of any kind minus this one is the predicted picture times a number. Ratios of pictures
    therefore need no conversion.

    Args:
        x: the model's input ``[B, ..., h, w]``: ``(picture + sigma noise) / sqrt(1 + sigma^2)``, or for
            ``flow_prediction`` ``(1 - sigma) picture + sigma noise``.
        sigma: the current noise level.
        kind: what is predicted, one of ``PREDICTIONS``.
    """
    if kind not in PREDICTIONS:
        raise invalid("prediction type", kind, ", ".join(PREDICTIONS))
    if kind == "sample":
        return torch.zeros_like(x)
    return x.float() / sigma * (math.sqrt(1 + sigma**2) if kind == "epsilon" else 1)


def rescaling(
    guided: Tensor, cond: Tensor, empty: Tensor | float, masks: Tensor, amounts: Sequence[float]
) -> Tensor:
    """Return what rescaling adds to a guided prediction, so that the picture's standard deviation within each
    region comes nearer to that of ``cond``: ``p sum_i a_i M_i (s_i(cond) / s_i(guided) - 1)``, in the shape
    of ``guided``.

    ``p`` is ``guided - empty``, and ``s_i`` its deviation over all channels of region i's cells, weighted by the
    mask. With one mask of ones this is the rescaling of Lin et al. (arXiv 2305.08891 section 3.4, equations
    15 and 16) of the predicted picture. Where no mask is, and in a region of one value, exactly 0 is added.

    Args:
        guided: the prediction after guidance, ``[B, ..., h, w]``.
        cond: the conditional prediction, of the same shape.
        empty: see :func:`of_empty_picture`; 0 if pictures are predicted.
        masks: visible masks M ``[L, h, w]``, summing to at most 1.
        amounts: how far each region is rescaled, a, 0..1.
    """
    picture, target = (guided - empty).float(), (cond - empty).float()
    masks, change = masks.to(picture), torch.zeros_like(picture)
    # Below this, a deviation is one of rounding.
    least = 1e-5 * picture.abs().amax(tuple(range(1, picture.ndim)), keepdim=True)
    for mask, amount in zip(masks, amounts, strict=True):
        now, wanted = _deviation(picture, mask), _deviation(target, mask)
        change = change + mask * amount * torch.where(now > least, wanted / now - 1, 0.0)
    return (picture * change).to(guided)


def _deviation(values: Tensor, mask: Tensor) -> Tensor:
    """Return the standard deviation of values ``[B, ..., h, w]`` over a mask ``[h, w]``, ``[B, 1, ..., 1]``; 0 for
    an empty mask."""
    weights = mask / (mask.sum().clamp(min=1e-8) * values[0, ..., 0, 0].numel())
    dims = tuple(range(1, values.ndim))
    mean = (values * weights).sum(dims, keepdim=True)
    deviation: Tensor = ((values - mean).square() * weights).sum(dims, keepdim=True).sqrt()
    return deviation
