"""Colour spaces of pictures: sRGB as files hold it, and linear light. Any shape, device and float type."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import hardshrink

# The two pieces of each curve meet at its knee, so each piece is taken on its own side of it and the two are added: no branch, few
# passes. What rounding leaves of black is shrunk to 0, since some blend modes divide by it.


def srgb_to_linear(colour: Tensor) -> Tensor:
    """sRGB to linear light: ``c / 12.92`` up to 0.04045, ``((c + 0.055) / 1.055) ** 2.4`` above (IEC 61966-2-1).

    Values outside 0..1 follow the same curves; 0 and 1 are kept exactly.
    """
    upper = colour.clamp_min(0.04045)
    power = ((upper + 0.055) / 1.055).pow_(2.4)
    return hardshrink(power.add_(colour - upper, alpha=1 / 12.92), 1e-7)


def linear_to_srgb(colour: Tensor) -> Tensor:
    """Linear light to sRGB: ``12.92 * c`` up to 0.0031308, ``1.055 * c ** (1 / 2.4) - 0.055`` above (IEC 61966-2-1).

    Values outside 0..1 follow the same curves; 0 and 1 are kept exactly.
    """
    upper = colour.clamp_min(0.0031308)
    power = upper.pow(1 / 2.4)
    power = power.add_(power - 1, alpha=0.055)
    return hardshrink(power.add_(colour - upper, alpha=12.92), 1e-6)
