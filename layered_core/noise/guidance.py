"""Classifier-free guidance, and a guidance scale that differs by region."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

FORMING = 1.0
"""Above this sigma there is more noise than picture, and the layout is still forming."""


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
