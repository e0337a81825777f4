"""The noise levels of a flow model's run."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from layered_core.attention.joint_regions import relative_noise
from layered_core.errors import LayeredError, invalid
from layered_core.noise.change_map import schedule_place
from layered_core.noise.window import Window

_OTHER_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class FlowSchedule:
    """The noise levels of a run in which latents are ``(1 - sigma) x + sigma n``.

    They are the pipeline's own: the same evenly spaced levels, shifted by the model's scheduler.
    """

    def __init__(self, model: Any, key: str, tokens: int, steps: int, skipped: int) -> None:
        """Compute the levels.

        Args:
            model: the pipeline.
            key: its row in :data:`~layered_diffusers.transformer.hosts.HOSTS`.
            tokens: number of the picture's tokens, by which some models shift.
            steps: number of steps of a whole run.
            skipped: number of steps left out at the beginning.

        Raises:
            LayeredError: steps are left out, and the scheduler spaces levels in a way that depends on the
                first; or the scheduler needs more steps.
        """
        self.scheduler = copy.deepcopy(model.scheduler)
        config = self.scheduler.config
        other = next((name for name in _OTHER_SPACINGS if config.get(name)), None)
        if skipped and other is not None:
            raise LayeredError(
                f"scheduler of the model: {other} is on, with which a run cannot begin in the middle. "
                f"Switch it off, or generate from noise alone"
            )
        self.mu = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.16 if key == "sd3" else 1.15),
        )
        first, last = (self.scheduler.sigma_max, self.scheduler.sigma_min) if key == "sd3" else (1, 1 / steps)
        self.even: list[float] = np.linspace(first, last, steps).tolist()[skipped:]
        """Levels to give to the pipeline, not yet shifted, ``[T]``."""
        self.sigmas: list[float] = [0.0]
        """Levels of the run, falling to 0, ``[T + 1]``."""
        if self.even:
            self.scheduler.set_timesteps(sigmas=self.even, mu=self.mu)
            self.sigmas = self.scheduler.sigmas.tolist()
            if not all(
                map(math.isfinite, self.sigmas)
            ):  # the only step's level would be 1 and shift_terminal
                raise invalid("steps", steps, "2 or more with this model")
        count = int(config.num_train_timesteps)
        self.levels = self.shifted(torch.arange(1, count + 1) / count)
        """Levels of the model's whole schedule, rising."""
        self.places = torch.tensor([float(schedule_place(s, self.levels)) for s in self.sigmas[:-1]])
        """Index in ``levels`` of every step, ``[T]``."""

    def shifted(self, t: Tensor) -> Tensor:
        """Shift evenly spaced levels as the scheduler does."""
        if self.scheduler.config.use_dynamic_shifting:
            rising: Tensor = self.scheduler.time_shift(self.mu, 1.0, t.clamp_min(1e-9))
            return rising
        shift = self.scheduler.shift
        return shift * t / (1 + (shift - 1) * t)

    def window(self, start: float, end: float) -> Window:
        """Return the window from a fraction of the sampling to another, each 0..1, in
        :func:`~layered_core.attention.joint_regions.relative_noise`."""
        edges = [float(self.shifted(torch.tensor(1 - share))) for share in (start, end)]
        first, last = (relative_noise(s) for s in edges)
        return Window(float("inf") if start <= 0 else first, 0.0 if end >= 1 else last)
