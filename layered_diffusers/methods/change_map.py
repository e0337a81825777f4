"""Per-pixel noise on a diffusers run."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from layered_core.canvas.soft_masks import keep_outside
from layered_core.noise.change_map import free_places, fresh_noise, noise_level
from layered_diffusers.sampling import Method, Run, noised


class ChangeMap(Method):
    """Pin every place to a given picture, at the run's noise level, until that level has come down to the
    place's own number.

    See :mod:`layered_core.noise.change_map`. A change map of 0 and 1 alone is blended latent diffusion. A
    place that is never free comes out equal to the bit.
    """

    def __init__(
        self,
        clean: Tensor,
        change: Tensor,
        *,
        threshold: str = "absolute",
        noise: str = "fixed",
        dilation: float = 0.0,
        softness: float = 0.0,
    ) -> None:
        """``clean`` latents ``[1 or B, C, h, w]``; ``change`` ``[h, w]`` or ``[B, 1, h, w]`` in 0..1; the
        rest as in the core."""
        self.clean, self.change = clean, change
        self.threshold, self.noise, self.dilation, self.softness = threshold, noise, dilation, softness
        self.ends = (1.0, 0.0)

    def start(self, run: Run, stack: ExitStack) -> None:
        """Learn between which timesteps the level falls from 1 to 0."""
        last = int(run.scheduler.config.num_train_timesteps) - 1
        normalised = self.threshold == "normalised" and len(run.timesteps) > 0
        self.ends = (float(run.timesteps[0]), 0.0) if normalised else (float(last), 0.0)

    def before_step(self, run: Run, index: int) -> None:
        """Noise what is pinned."""
        level = noise_level(float(run.timesteps[index]), *self.ends)
        free = free_places(self.change, level, self.dilation, self.softness)
        if bool((free == 1).all()):
            return
        clean = self.clean.expand_as(run.latents)
        kept = noised(run, clean, index, fresh_noise(run.noise, level) if self.noise == "fresh" else None)
        run.latents = keep_outside(run.latents, kept, free)

    def after_step(self, run: Run, index: int) -> None:
        """At the end, give back what was never free."""
        if index + 1 == len(run.timesteps):
            run.latents = keep_outside(
                run.latents, self.clean.expand_as(run.latents), (self.change > 0).to(run.latents.dtype)
            )


class InpaintInput(Method):
    """What a UNet made for inpainting sees beside the latents: where it may paint, and the picture with a
    grey hole there."""

    def __init__(self, masked: Tensor, mask: Tensor) -> None:
        """``masked`` latents ``[1 or B, C, h, w]``; ``mask`` ``[h, w]``, 1 where to paint."""
        self.masked, self.mask = masked, mask

    def start(self, run: Run, stack: ExitStack) -> None:
        """Hand them over, for both halves of the batch."""
        batch, _, height, width = run.latents.shape
        mask = self.mask.expand(batch, 1, height, width).to(run.latents)
        run.concat = torch.cat([torch.cat([mask, self.masked.expand(batch, -1, -1, -1)], 1)] * 2)
