"""Conversion between sRGB, the colour space of picture files, and linear light. Any shape, device and float
type."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

# Each curve has two pieces that meet at a knee. Each piece is evaluated on its own side of the knee and the
# two are added, which needs no branch and few passes. Rounding would leave tiny values instead of black; they
# are set to 0, because some blend modes divide by them.


def srgb_to_linear(colour: Tensor) -> Tensor:
    """Convert sRGB to linear light: ``c / 12.92`` up to 0.04045, ``((c + 0.055) / 1.055) ** 2.4`` above (IEC
    61966-2-1).

    Values outside 0..1 follow the same curves; 0 and 1 are kept exactly.
    """
    upper = colour.clamp_min(0.04045)
    power = ((upper + 0.055) / 1.055).pow_(2.4)
    return hardshrink(power.add_(colour - upper, alpha=1 / 12.92), 1e-7)


def linear_to_srgb(colour: Tensor) -> Tensor:
    """Convert linear light to sRGB: ``12.92 * c`` up to 0.0031308, ``1.055 * c ** (1 / 2.4) - 0.055`` above
    (IEC 61966-2-1).

    Values outside 0..1 follow the same curves; 0 and 1 are kept exactly.
    """
    upper = colour.clamp_min(0.0031308)
    power = upper.pow(1 / 2.4)
    power = power.add_(power - 1, alpha=0.055)
    return hardshrink(power.add_(colour - upper, alpha=12.92), 1e-6)


_TOP = 65_535
"""Greatest 16-bit value."""


def by_table(curve: Callable[[Tensor], Tensor], colour: Tensor) -> Tensor:
    """Return ``curve(colour)``, on a CPU for float32 colours in 0..1 by a table of 65,536 levels, which takes
    a third of the time.

    8-bit and 16-bit colours are exact. Others are rounded by at most 1/131,070 before the curve, which is
    0.0001 after :func:`linear_to_srgb`. The table has no gradients.
    """
    if colour.device.type == "cpu" and colour.dtype == torch.float32:
        low, high = (_TOP * float(x) for x in colour.aminmax())
        # Almost half a level of tolerance, as rounding may have moved 0 and 1.
        if low > -0.4 and high < _TOP + 0.4:
            levels = torch.add(torch.tensor(0.5), colour, alpha=_TOP).to(torch.int32)
            return _table(curve).index_select(0, levels.reshape(-1)).reshape(colour.shape)
    return curve(colour)


@cache
def _table(curve: Callable[[Tensor], Tensor]) -> Tensor:
    return curve(torch.arange(_TOP + 1) / _TOP)
