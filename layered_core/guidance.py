"""Combine a model's predictions."""

from __future__ import annotations

from torch import Tensor


def classifier_free(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """``uncond + scale * (cond - uncond)``, any shape (Ho and Salimans, arXiv 2207.12598). Scale 1 is ``cond`` alone."""
    return uncond + scale * (cond - uncond)
