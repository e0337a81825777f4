"""Masks made exact at their edges, by what a picture looks like without the thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from layered_core.canvas.soft_masks import grow

LEAST = 0.06
"""Least difference of a channel by which a pixel counts as the thing's, 0..1."""

FACTOR = 6.0
"""A pixel is the thing's if it differs by this many times what the painted background does nearby, where no thing
is."""


def refined(
    picture: Tensor, masks: Tensor, behind: Tensor, without: Mapping[int, Tensor], band: int, dilation: int
) -> Tensor:
    """Return masks whose edges are where the picture differs from what lies behind the things.

    Only pixels within ``band`` of a mask's edge change. Where the background was painted unlike the picture, as grass
    cannot be guessed, nothing is clear and the masks stay. A pixel goes to the nearest thing that it may belong to.

    Args:
        picture: ``[3, H, W]`` in 0..1.
        masks: ``[K, H, W]``, from the farthest to the nearest thing.
        behind: the picture without things, ``[3, H, W]``, painted where they are and ``dilation`` pixels around.
        without: by the index of a thing: the picture without what is in front of it, ``[3, H, W]``.
        band: pixels on each side of an edge. 0: nothing changes.
        dilation: pixels around things that were painted in ``behind``.
    """
    if not band or dilation <= band:
        return masks
    hard = masks >= 0.5
    anything = grow(hard.any(0).float(), band) > 0
    out = masks.clone()
    nearer = torch.zeros_like(anything)
    for k in range(len(masks) - 1, -1, -1):
        near = _grown(hard[k], band)
        ring = _grown(hard[k], dilation) & ~anything
        reference, known = behind.clone(), torch.ones_like(near)
        for i in range(k):  # what is behind thing k: the nearest of the others that are there
            if i in without:
                reference = torch.where(hard[i], without[i], reference)
                known |= hard[i]
            else:
                known &= ~hard[i]
        inner = hard[k] & ~_grown(~hard[k], band)
        edge = near & ~inner & known & ~nearer
        difference = (picture - reference).abs().amax(0)
        level = _level(picture, behind, ring, dilation)
        # A pixel that the thing covers by half differs half as much as those beside it that it covers wholly.
        half = 0.5 * grow(torch.where(hard[k], 0.0, difference), 1)
        grows = edge & ~hard[k] & (difference > level) & (difference >= half)
        leaves = edge & hard[k] & (difference <= LEAST)
        more, less = _reached(hard[k], grows, band), _reached(~hard[k], leaves, band)
        out[k] = torch.where(more & grows, 1.0, torch.where(less & leaves, 0.0, masks[k]))
        nearer |= out[k] >= 0.5
    return out


def _level(picture: Tensor, behind: Tensor, ring: Tensor, reach: int) -> Tensor:
    """Return the difference from which a pixel is the thing's, ``[H, W]``: from the mean of those in ``ring``, where no
    thing is, within ``reach`` pixels; where there are none, from the mean of all."""
    side = 2 * reach + 1
    differences = (picture - behind).abs().amax(0)
    both = torch.stack([torch.where(ring, differences, 0.0), ring.float()])
    sums = functional.avg_pool2d(both[None], side, 1, reach, count_include_pad=True)[0] * side**2
    everywhere = both[0].sum() / both[1].sum().clamp_min(1)
    mean = torch.where(sums[1] > 0.5, sums[0] / sums[1].clamp_min(1), everywhere)
    return (FACTOR * mean).clamp_min(LEAST)


def _reached(start: Tensor, way: Tensor, steps: int) -> Tensor:
    """Return the pixels of ``way`` that are reached from ``start`` in a number of steps, and the start, bool
    ``[H, W]``."""
    for _ in range(steps):
        start = start | (_grown(start, 1) & way)
    return start


def _grown(mask: Tensor, pixels: int) -> Tensor:
    return grow(mask.float(), pixels) > 0


def nearer_than(masks: Tensor | Sequence[Tensor], index: int) -> Tensor:
    """Return the union ``[H, W]`` of the masks in front of one of them, from the farthest to the nearest."""
    front = list(masks[index + 1 :])
    return torch.stack(front).amax(0) if front else torch.zeros_like(masks[index])
