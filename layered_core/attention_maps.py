"""What words attended to: maps gathered while sampling, pictures of them, and masks made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


class AttentionMaps:
    """Mean share of attention that each layer's words had at each place, over all blocks and steps seen so far.

    The idea is DAAM's (Tang et al., arXiv 2210.04885): sum cross-attention over heads, blocks and steps at a common size.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """``names`` of the layers."""
        self.names = tuple(names)
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._counts: dict[tuple[int, int], int] = {}

    def clear(self) -> None:
        """Forget everything: a new run begins."""
        self._sums.clear()
        self._counts.clear()

    def add(self, size: tuple[int, int], shares: Tensor) -> None:
        """Count one cross-attention: ``shares`` ``[B, L, h w]`` of a feature map of ``size`` (h, w)."""
        shares = shares.detach().float().cpu().view(*shares.shape[:2], *size)
        self._sums[size] = self._sums[size] + shares if size in self._sums else shares
        self._counts[size] = self._counts.get(size, 0) + 1

    def __bool__(self) -> bool:
        return bool(self._sums)

    def mean(self, size: tuple[int, int]) -> Tensor:
        """``[B, L, h, w]`` in 0..1 at ``size`` (h, w), every cross-attention counted once, coarse ones enlarged bilinearly."""
        total = sum(functional.interpolate(s, size, mode="bilinear", antialias=True) for s in self._sums.values())
        return torch.as_tensor(total) / sum(self._counts.values())


def heat_map(share: Tensor, backdrop: Tensor) -> Tensor:
    """A map over a dimmed picture: from clear through red and yellow to white at the map's own maximum.

    Args:
        share: ``[H, W]``, 0 and more.
        backdrop: RGB ``[H, W, 3]`` in 0..1.

    Returns:
        RGB ``[H, W, 3]`` in 0..1.
    """
    heat = share / share.max().clamp_min(1e-8)
    glow = torch.stack([(3 * heat).clamp(0, 1), (3 * heat - 1).clamp(0, 1), (3 * heat - 2).clamp(0, 1)], -1)
    veil = heat.clamp(0, 1).sqrt()[..., None]
    grey = backdrop.mean(-1, keepdim=True) * 0.6
    return grey * (1 - veil) + glow * veil


def mask_from_attention(share: Tensor, threshold: float, largest: bool) -> Tensor:
    """Where a map is above ``threshold`` (0..1 between its least and greatest value), float32 ``[H, W]`` of 0 and 1.

    Args:
        share: ``[H, W]``.
        threshold: 0 keeps everything but the minimum, 1 nothing but the maximum.
        largest: keep only the largest connected patch.
    """
    low, high = share.min(), share.max()
    mask = (share - low) >= threshold * (high - low)
    mask &= share > low
    return (largest_patch(mask) if largest else mask).float()


def largest_patch(mask: Tensor) -> Tensor:
    """The largest eight-connected patch of a bool mask ``[H, W]``; the first in reading order of several as large."""
    if not bool(mask.any()):
        return mask
    height, width = mask.shape
    # Every patch takes the greatest number in it; float32 counts pixels exactly up to 2**24.
    patch = torch.arange(height * width, 0, -1, dtype=torch.float64).view(height, width) * mask
    while True:
        spread = functional.max_pool2d(patch[None, None], 3, 1, 1)[0, 0] * mask
        if torch.equal(spread, patch):
            break
        patch = spread
    areas = torch.bincount(patch[mask].long())
    best = areas.flip(0).argmax()
    return patch == len(areas) - 1 - best
