"""The part of a sampling run in which something acts, told by noise levels."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Window(NamedTuple):
    """Greatest and least noise level. Neutral: from before the first step to after the last."""

    first: float = math.inf
    """Sigma at which it begins to act, itself included."""
    last: float = 0.0
    """Sigma at which it has ceased: a step there is of what follows."""

    def acts(self, sigma: float) -> bool:
        """Whether a step at ``sigma`` lies inside."""
        return self.first >= sigma > self.last

    @classmethod
    def of_shares(cls, alphas_cumprod: Tensor, start: float, end: float) -> Window:
        """From the share ``start`` of the sampling to the share ``end``, 0..1, on the noise schedule
        ``alphas_cumprod`` ``[T]``."""
        return cls(sigma_at(alphas_cumprod, share=start), sigma_at(alphas_cumprod, share=end))


ALWAYS = Window()
"""No limit."""


def sigma_at(alphas_cumprod: Tensor, timestep: float | None = None, *, share: float = 0.0) -> float:
    """Sigma at a timestep, or when a share of the sampling is over: noise over picture,
    ``sqrt((1 - alpha) / alpha)``.

    Between timesteps log sigma is interpolated, and the share's timestep is ``(1 - share) (T - 1)``, both as
    in ComfyUI.

    Args:
        alphas_cumprod: of the noise schedule, ``[T]``, falling.
        timestep: 0..T-1, may lie between two.
        share: 0 (before the first step: infinite) to 1 (0).
    """
    if timestep is None:
        if share <= 0 or share >= 1:
            return math.inf if share <= 0 else 0.0
        timestep = (1 - share) * (len(alphas_cumprod) - 1)
    low, high = math.floor(timestep), math.ceil(timestep)
    # A schedule without any signal at its end would have no logarithm; ComfyUI's has this much.
    logs = [0.5 * math.log((1 - a) / a) for a in (max(float(alphas_cumprod[t]), 4.9e-8) for t in (low, high))]
    return math.exp(logs[0] + (logs[1] - logs[0]) * (timestep - low))
