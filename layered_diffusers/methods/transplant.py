"""Latents of runs kept, and transplanted into other runs."""

from __future__ import annotations

import torch
from torch import Tensor

from layered_core.errors import invalid
from layered_core.joint.transplant import last_step, transplanted
from layered_diffusers.sampling import AnyRun, Method


class KeepLatents(Method):
    """Keep the latents before every step of a run, and at its end."""

    on_transformers = True

    def __init__(self) -> None:
        """Begin with none."""
        self._found: list[Tensor] = []

    @property
    def latents(self) -> Tensor:
        """The latents of the run, ``[T + 1, B, C, h, w]``."""
        return torch.stack(self._found)

    def before_step(self, run: AnyRun, index: int) -> None:
        """Keep this step's."""
        self._found.append(run.latents.clone())

    def after_step(self, run: AnyRun, index: int) -> None:
        """Keep the clean ones."""
        if index + 1 == len(run.timesteps):
            self._found.append(run.latents.clone())


class Transplant(Method):
    """Put latents of other runs into the cells of their layers, up to a share of the steps. See
    :mod:`layered_core.joint.transplant`."""

    on_transformers = True

    def __init__(self, donor: Tensor, cells: Tensor, until: float) -> None:
        """Take latents.

        Args:
            donor: latents before every step and at the end, ``[T + 1, B, C, h, w]``, of a run with the same
                steps.
            cells: where they go, bool ``[B, 1, h, w]``. Neutral: False everywhere.
            until: share of the steps, 0..1. Neutral: 0; with 1 the cells come out as the donor's.
        """
        self.donor, self.cells, self.until = donor, cells, until

    def before_step(self, run: AnyRun, index: int) -> None:
        """Put in the donor's latents of this step."""
        steps = len(run.timesteps)
        if len(self.donor) != steps + 1:
            raise invalid(
                "transplant: steps of the donor's run", len(self.donor) - 1, f"the run's own, {steps}"
            )
        self._put(run, index)

    def after_step(self, run: AnyRun, index: int) -> None:
        """Put in the clean ones, if they count too."""
        if index + 1 == len(run.timesteps):
            self._put(run, index + 1)

    def _put(self, run: AnyRun, index: int) -> None:
        if index <= last_step(self.until, len(run.timesteps)):
            run.latents = transplanted(run.latents, self.donor[index], self.cells)
