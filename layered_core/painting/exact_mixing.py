"""Exact mixing: a front and a back colour that give a picture again to the bit when one is laid over the
other."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

LEVELS = 255
"""Steps of an 8-bit value: colours on this grid keep their values in PSD, OpenRaster and PNG files."""

_STEPS = sorted(
    [*product((0,), (0, -1, 1, -2, 2), range(-24, 25)), *product((1, -1), (0,), range(-24, 25))],
    key=lambda x: (abs(x[0]), 8 * abs(x[1]) + abs(x[2])),
)
"""What is tried. For the colour that is seen less: levels, and steps that move the other by about a last
bit; between them, last bits by which the other moves alone."""

_ONE = 0x3F800000
"""The float32 number 1, its bits read as a whole number."""


def on_grid(values: Tensor) -> Tensor:
    """Return values in 0..1 rounded to the nearest of 256 levels."""
    return (values * LEVELS).round_() / LEVELS


def mix_exactly(
    seen: Tensor, front: Tensor, back: Tensor, alpha: Tensor, *, keep_back: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Change one of two colours, so that the front one laid over the opaque back one gives ``seen`` to the
    bit: ``seen = alpha * front + (1 - alpha) * back``.

    The colour that is seen less is put on the 8-bit grid, and moved if the other would leave 0..1. The
    other is solved for. So rounding both to 8 bits moves the mixture by less than half a level, and an
    8-bit picture comes back from 8-bit layers too. The last bits are then searched with the very arithmetic
    of :func:`torch.lerp`, both with fused and with separate rounding, as processors differ.

    Args:
        seen: ``[N, 3]`` float32 in 0..1.
        front: ``[N, 3]`` in 0..1, the colour that is wanted in front.
        back: ``[N, 3]`` in 0..1, the one that is wanted behind.
        alpha: ``[N]``, above 0 and below 1.
        keep_back: put the back colour on the grid and solve for the front one, also where the back is seen
            more. Neutral: False.

    Returns:
        The front colours, the back colours, both ``[N, 3]``, and ``[N]`` bool: whether the pixel is exact. A
        few in ten thousand are not, if the colours have nothing to do with each other.
    """
    share = alpha.double()[:, None].expand(-1, 3).reshape(-1)
    i, f, b = (x.double().reshape(-1) for x in (seen, front, back))
    rest = 1 - share
    less_front = torch.zeros_like(share, dtype=torch.bool) if keep_back else share < 0.5
    weight = torch.where(less_front, share, rest)
    # The colour that is seen less, within the range in which the other stays in 0..1.
    first = torch.where(less_front, f, b)
    low = ((i - (1 - weight)) / weight).clamp(0, 1)
    high = (i / weight).clamp(0, 1)
    first = _snapped(torch.maximum(torch.minimum(first, high), low), low, high)
    target = seen.float().reshape(-1)
    mixed = alpha.float()[:, None].expand(-1, 3).reshape(-1)
    kept = torch.stack([first.float(), _other(i, first, weight).float()])
    exact = torch.zeros_like(less_front)
    todo = torch.arange(len(target), device=target.device)
    for levels, ulps, fine_steps in _STEPS:
        if not len(todo):
            break
        start = first[todo] + levels / LEVELS + fine_steps * 2.0**-27 * i[todo] / weight[todo]
        fine = (start >= low[todo]) & (start <= high[todo])
        one = start.clamp(0, 1).float()
        two = moved(_other(i[todo], one.double(), weight[todo]).clamp(0, 1).float(), ulps)
        flip = less_front[todo]
        fore, aft = torch.where(flip, one, two), torch.where(flip, two, one)
        fine &= is_exact_mix(target[todo], fore, aft, mixed[todo])
        found = todo[fine]
        kept[:, found] = torch.stack([one[fine], two[fine]])
        exact[found] = True
        todo = todo[~fine]
    fore = torch.where(less_front, kept[0], kept[1]).clamp(0, 1)
    aft = torch.where(less_front, kept[1], kept[0]).clamp(0, 1)
    return fore.reshape(-1, 3), aft.reshape(-1, 3), exact.reshape(-1, 3).all(1)


def _other(seen: Tensor, first: Tensor, weight: Tensor) -> Tensor:
    """Return the colour that makes up ``seen`` with ``first``, which has the weight ``weight``."""
    return (seen - weight * first) / (1 - weight)


def _snapped(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return values put on the 8-bit grid inside ``low``..``high``, or as they are where no level lies
    there."""
    level = on_grid(value)
    level = torch.where(level > high, (high * LEVELS + 1e-9).floor() / LEVELS, level)
    level = torch.where(level < low, (low * LEVELS - 1e-9).ceil() / LEVELS, level)
    return torch.where((level >= low - 1e-12) & (level <= high + 1e-12), level, value)


def moved(values: Tensor, ulps: int) -> Tensor:
    """Return float32 values in 0..1 moved by a number of units in the last place, and kept in 0..1."""
    return (values.view(torch.int32) + ulps).clamp_(0, _ONE).view(torch.float32)


def is_exact_mix(seen: Tensor, front: Tensor, back: Tensor, alpha: Tensor) -> Tensor:
    """Return where ``lerp(back, front, alpha)`` equals ``seen`` to the bit, whether or not the processor
    rounds between multiplying and adding. All float32, of one shape."""
    difference = front - back
    near = alpha < 0.5
    base, factor = torch.where(near, back, front), torch.where(near, alpha, alpha - 1)
    separate = base + difference * factor
    # A product of two float32 numbers is exact in float64.
    fused = (base.double() + difference.double() * factor.double()).float()
    return (separate == seen) & (fused == seen)
