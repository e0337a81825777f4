"""Classifier-free guidance, and a guidance scale that differs by region."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import invalid

FORMING = 1.0
"""Above this sigma there is more noise than picture, and the layout is still forming."""

PREDICTIONS = ("sample", "epsilon", "v_prediction")
"""What a prediction may be of: the picture, the noise, or the velocity; diffusers' names."""


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


def zero_velocity(x: Tensor, sigma: float, kind: str) -> Tensor:
    """Return the prediction of velocity 0, in the shape of ``x``.

    The velocity is ``v = alpha noise - alpha sigma picture`` with ``alpha = 1 / sqrt(1 + sigma^2)`` (Salimans and
    Ho, arXiv 2202.00512 appendix D). A prediction of any kind minus this one is the velocity times a number,
    so that ratios of velocities need no conversion.

    Args:
        x: the model's input ``[B, ..., h, w]``, ``alpha (picture + sigma noise)``.
        sigma: the current noise level.
        kind: what is predicted, one of ``PREDICTIONS``.
    """
    if kind not in PREDICTIONS:
        raise invalid("prediction type", kind, ", ".join(PREDICTIONS))
    import os

    alpha = (1 + sigma**2) ** -0.5
    if os.environ.get("SPACE") == "x0":
        return (
            x / sigma
            if kind == "v_prediction"
            else x / sigma / alpha
            if kind == "epsilon"
            else torch.zeros_like(x)
        )
    if kind == "v_prediction":
        return torch.zeros_like(x)
    return x * (sigma * alpha if kind == "epsilon" else alpha)


def rescaling(guided: Tensor, cond: Tensor, zero: Tensor, masks: Tensor, amounts: Sequence[float]) -> Tensor:
    """Return what rescaling adds to a guided prediction, so that its standard deviation within each region
    comes nearer to that of ``cond``: ``v sum_i a_i M_i (s_i(cond) / s_i(guided) - 1)``, in the shape of
    ``guided``.

    ``v`` is ``guided - zero``, and ``s_i`` the deviation of v over all channels of region i's cells, weighted by
    its mask. With one mask of ones this is the rescaling of Lin et al. (arXiv 2305.08891 section 3.4,
    equations 15 and 16). Where no mask is, and in a region of one value, exactly 0 is added.

    Args:
        guided: the prediction after guidance, ``[B, ..., h, w]``.
        cond: the conditional prediction, of the same shape.
        zero: see :func:`zero_velocity`.
        masks: visible masks M ``[L, h, w]``, summing to at most 1.
        amounts: how far each region is rescaled, a, 0..1.
    """
    velocity, target = (guided - zero).float(), (cond - zero).float()
    masks, change = masks.to(velocity), torch.zeros_like(velocity)
    # Below this, a deviation is one of rounding.
    least = 1e-5 * velocity.abs().amax(tuple(range(1, velocity.ndim)), keepdim=True)
    for mask, amount in zip(masks, amounts, strict=True):
        now, wanted = _deviation(velocity, mask), _deviation(target, mask)
        change = change + mask * amount * torch.where(now > least, wanted / now - 1, 0.0)
    return (velocity * change).to(guided)


def _deviation(values: Tensor, mask: Tensor) -> Tensor:
    """Return the standard deviation of values ``[B, ..., h, w]`` over a mask ``[h, w]``, ``[B, 1, ..., 1]``; 0 for
    an empty mask."""
    weights = mask / (mask.sum().clamp(min=1e-8) * values[0, ..., 0, 0].numel())
    dims = tuple(range(1, values.ndim))
    mean = (values * weights).sum(dims, keepdim=True)
    deviation: Tensor = ((values - mean).square() * weights).sum(dims, keepdim=True).sqrt()
    return deviation
