"""What a word is learnt by: a diffusion model's own error, inside one layer's mask.

Textual inversion (arXiv 2208.01618) learns an embedding from pictures; Collage Diffusion (arXiv 2303.00262, section
4.4) from one layer, with the error inside its mask, averaged over the whole picture, so that a small layer learns
slowly. Here the error is divided by the mask's area. Letters: B pictures, C channels, h w latent, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import invalid

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a model predicts: the noise, v (arXiv 2202.00512), or the clean picture."""

MOST_SNR = 5.0
"""Greatest weight of a signal-to-noise ratio (Min-SNR, arXiv 2303.09556)."""


def noised(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Return ``sqrt(alpha) clean + sqrt(1 - alpha) noise``, ``[B, C, h, w]``.

    ``alpha`` is the cumulative product of the schedule's alphas at each picture's timestep, ``[B]`` in 0..1.
    """
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def target(prediction: str, clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Return what a model that predicts ``prediction`` (one of :data:`PREDICTIONS`) should say, ``[B, C, h, w]``.

    Raises:
        LayeredError: the model predicts something else.
    """
    if prediction == "epsilon":
        return noise
    alpha = alpha.view(-1, 1, 1, 1)
    if prediction == "v_prediction":
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    if prediction == "sample":
        return clean
    raise invalid("what the model predicts", prediction, ", ".join(PREDICTIONS))


def error_weights(prediction: str, alpha: Tensor) -> Tensor:
    """Return the weight of each picture's error at its noise, ``[B]``: 1 for noise, ``min(snr, 5) / snr`` for v, and
    ``min(snr, 5)`` for the clean picture, with snr = alpha / (1 - alpha)."""
    if prediction == "epsilon":
        return torch.ones_like(alpha)
    snr = alpha / (1 - alpha).clamp_min(1e-8)
    capped = snr.clamp_max(MOST_SNR)
    return capped if prediction == "sample" else capped / snr.clamp_min(1e-8)


def masked_error(predicted: Tensor, wanted: Tensor, masks: Tensor, by_area: bool = True) -> Tensor:
    """Return ``sum m (predicted - wanted)^2 / (C sum m)`` of each picture, ``[B]``.

    What lies outside the mask is not read at all.

    Args:
        predicted, wanted: ``[B, C, h, w]``.
        masks: m, ``[B, h, w]`` in 0..1, none of them empty.
        by_area: False: divide by the number of cells instead of the mask's area, as Collage Diffusion does.
    """
    m = masks[:, None].float()
    difference = torch.where(m > 0, predicted.float() - wanted.float(), 0.0)
    area = m.sum((1, 2, 3)) if by_area else torch.full((len(m),), float(m[0].numel()), device=m.device)
    return (m * difference.square()).sum((1, 2, 3)) / (predicted.shape[1] * area)


def attention_term(maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], masks: Tensor) -> Tensor:
    """Return ``(1 - share)^2`` of each picture, mean over maps, ``[B]``; share is the part of a word's attention that
    lies inside the mask. After Break-A-Scene (arXiv 2305.16311), in the form with which the storybook was trained.

    Args:
        maps: for every cross-attention how strongly each pixel attends to the word, ``[B, N]``, 0 or more.
        sizes: h, w of each map, h w = N.
        masks: ``[B, h, w]`` in 0..1.
    """
    terms = []
    for attended, size in zip(maps, sizes, strict=True):
        inside = functional.adaptive_avg_pool2d(masks[:, None].float(), size).flatten(1)
        share = (attended * inside).sum(1) / attended.sum(1).clamp_min(1e-8)
        terms.append((1 - share).square())
    return torch.stack(terms).mean(0) if terms else masks.new_zeros(len(masks))
