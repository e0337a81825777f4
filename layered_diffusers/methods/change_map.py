"""Change maps and inpainting models' further inputs on a diffusers run."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from layered_core.canvas.soft_masks import keep_outside
from layered_core.noise.change_map import free_places, fresh_noise
from layered_diffusers.sampling import AnyRun, Method, Run, noised


class ChangeMap(Method):
    """Replace every place by a given picture, at the run's noise level, until that level has fallen to the
    place's value in a change map.

    See :mod:`layered_core.noise.change_map`. With a change map of only 0 and 1 this is blended latent
    diffusion. A place with 0 comes out exactly as it was.
    """

    on_transformers = True

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
        """Take the picture's latents ``clean`` ``[1 or B, C, h, w]`` and the change map ``change``, ``[h,
        w]`` or ``[B, 1, h, w]`` in 0..1; the rest is as in :mod:`layered_core.noise.change_map`."""
        self.clean, self.change = clean, change
        self.threshold, self.noise, self.dilation, self.softness = threshold, noise, dilation, softness

    def before_step(self, run: AnyRun, index: int) -> None:
        """Replace the places that may not change yet by the picture at this step's noise level."""
        level = run.level(index, self.threshold)
        free = free_places(self.change, level, self.dilation, self.softness)
        if bool((free == 1).all()):
            return
        clean = self.clean.expand_as(run.latents)
        kept = noised(run, clean, index, fresh_noise(run.noise, level) if self.noise == "fresh" else None)
        run.latents = keep_outside(run.latents, kept, free)

    def after_step(self, run: AnyRun, index: int) -> None:
        """After the last step, put back the places that may not change at all."""
        if index + 1 == len(run.timesteps):
            run.latents = keep_outside(
                run.latents, self.clean.expand_as(run.latents), (self.change > 0).to(run.latents.dtype)
            )


class InpaintInput(Method):
    """Give an inpainting UNet its further inputs: the mask where it may paint, and the picture with a grey
    hole there."""

    def __init__(self, masked: Tensor, mask: Tensor) -> None:
        """Take ``masked``, the latents ``[1 or B, C, h, w]`` of the picture with its hole, and ``mask``
        ``[h, w]``, 1 where to paint."""
        self.masked, self.mask = masked, mask

    def start(self, run: Run, stack: ExitStack) -> None:
        """Set the inputs on the run, for both halves of the batch."""
        batch, _, height, width = run.latents.shape
        mask = self.mask.expand(batch, 1, height, width).to(run.latents)
        run.concat = torch.cat([torch.cat([mask, self.masked.expand(batch, -1, -1, -1)], 1)] * 2)
