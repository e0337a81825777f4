"""Windows: the part of a sampling run in which a method acts, given as a range of sigmas."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Window(NamedTuple):
    """A range of sigmas. Neutral: from before the first step to after the last."""

    first: float = math.inf
    """The sigma at which the window begins, inclusive."""
    last: float = 0.0
    """The sigma at which the window ends, exclusive."""

    def acts(self, sigma: float) -> bool:
        """Return whether a step at ``sigma`` lies inside the window."""
        return self.first >= sigma > self.last

    @classmethod
    def of_shares(cls, alphas_cumprod: Tensor, start: float, end: float) -> Window:
        """Return the window from the fraction ``start`` of the sampling to ``end``, each 0..1, on the noise
        schedule ``alphas_cumprod`` ``[T]``."""
        return cls(sigma_at(alphas_cumprod, share=start), sigma_at(alphas_cumprod, share=end))


ALWAYS = Window()
"""The window that every step lies in."""


def sigma_at(alphas_cumprod: Tensor, timestep: float | None = None, *, share: float = 0.0) -> float:
    """Compute sigma, ``sqrt((1 - alpha) / alpha)``, at a timestep or after a share of the sampling.

    Between timesteps log sigma is interpolated; the timestep of a share is ``(1 - share) (T - 1)``. Both are
    as in ComfyUI.

    Args:
        alphas_cumprod: the noise schedule, ``[T]``, falling.
        timestep: 0..T-1, may lie between two whole ones. None: given by ``share``.
        share: fraction of the sampling, from 0 (sigma is infinite) to 1 (sigma is 0).
    """
    if timestep is None:
        if share <= 0 or share >= 1:
            return math.inf if share <= 0 else 0.0
        timestep = (1 - share) * (len(alphas_cumprod) - 1)
    low, high = math.floor(timestep), math.ceil(timestep)
    # alpha may be 0 at the end of a schedule, which has no logarithm; this is ComfyUI's least alpha.
    logs = [0.5 * math.log((1 - a) / a) for a in (max(float(alphas_cumprod[t]), 4.9e-8) for t in (low, high))]
    return math.exp(logs[0] + (logs[1] - logs[0]) * (timestep - low))
