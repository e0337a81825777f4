"""The sampling loop, and the place where methods act on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from diffusers import UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from layered_core.canvas.soft_masks import keep_outside
from layered_core.errors import check_whole, invalid
from layered_core.noise.guidance import classifier_free

Progress = Callable[[int, int], None]
"""Called after every step with the steps done and the steps in all. May raise to stop."""


@dataclass
class Run:
    """One sampling run: what a method may read and change."""

    unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    timesteps: Tensor
    """Timesteps still to run, ``[T]``, falling."""
    latents: Tensor
    """Noisy latents ``[B, C, h, w]``."""
    noise: Tensor
    """The unit noise the run began with, ``[B, C, h, w]``."""
    context: Tensor
    """Words, uncond then cond, ``[2 B, N, C]``."""
    guidance: float | Tensor
    """Classifier-free guidance scale, 1 is the conditional prediction alone; or one for every pixel,
    ``[B, 1, h, w]``."""
    added: dict[str, Tensor] = field(default_factory=dict)
    """SDXL's pooled words and sizes, uncond then cond."""
    generators: list[torch.Generator] = field(default_factory=list)
    """Sources of fresh noise, one a picture, so that none depends on what else is in the batch."""
    concat: Tensor | None = None
    """Further channels of the UNet's input, ``[2 B, C', h, w]``, joined to the scaled latents: what
    inpainting models take."""


class Method:
    """What a way of control does to a run. Subclasses override what they need; every default does nothing."""

    def start(self, run: Run, stack: ExitStack) -> None:
        """Before the first step. What must be undone goes on ``stack``, which is closed also after an
        error."""

    def before_step(self, run: Run, index: int) -> None:
        """Before the model sees ``run.latents`` at ``run.timesteps[index]``."""

    def model_inputs(self, run: Run, model_input: Tensor, index: int) -> dict[str, Any]:
        """Further keyword arguments of the UNet; ``model_input`` is ``[2 B, C, h, w]``, uncond then cond."""
        return {}

    def after_step(self, run: Run, index: int) -> None:
        """After the scheduler's step; ``run.latents`` are at ``run.timesteps[index + 1]``, or clean after the
        last."""


@torch.no_grad()
def sample(run: Run, methods: Sequence[Method] = (), progress: Progress | None = None) -> Tensor:
    """Denoise ``run.latents`` over ``run.timesteps``; returns clean latents ``[B, C, h, w]``."""
    with ExitStack() as stack:
        for method in methods:
            method.start(run, stack)
        total = len(run.timesteps)
        for index, t in enumerate(run.timesteps):
            for method in methods:
                method.before_step(run, index)
            model_input = run.scheduler.scale_model_input(torch.cat([run.latents] * 2), t)
            more = add_residuals([method.model_inputs(run, model_input, index) for method in methods])
            if run.added:
                more["added_cond_kwargs"] = run.added
            if run.concat is not None:
                model_input = torch.cat([model_input, run.concat], 1)
            uncond, cond = run.unet(model_input, t, run.context, **more).sample.chunk(2)
            prediction = classifier_free(uncond, cond, run.guidance)
            run.latents = run.scheduler.step(prediction, t, run.latents, **_step_arguments(run)).prev_sample
            for method in methods:
                method.after_step(run, index)
            if progress is not None:
                progress(index + 1, total)
    return run.latents


def add_residuals(inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The UNet's keyword arguments of several methods as one; residuals of ControlNets and adapters add up,
    anything else may be given once."""
    merged: dict[str, Any] = {}
    for more in inputs:
        for key, value in more.items():
            if key in merged and key in (
                "down_block_additional_residuals",
                "down_intrablock_additional_residuals",
            ):
                merged[key] = type(value)(a + b for a, b in zip(merged[key], value, strict=True))
            elif key in merged and key == "mid_block_additional_residual":
                merged[key] = merged[key] + value
            else:
                merged[key] = value
    return merged


def _step_arguments(run: Run) -> dict[str, Any]:
    """The generators, for schedulers whose step takes some."""
    names = run.scheduler.step.__code__.co_varnames[: run.scheduler.step.__code__.co_argcount]
    return {"generator": run.generators} if "generator" in names and run.generators else {}


def check_seeds(seeds: Sequence[int] | None, count: int) -> list[int]:
    """A seed for each of ``count`` pictures: 0, 1, 2, ... for None.

    Raises:
        LayeredError: there are more or fewer, or one is out of range.
    """
    found = list(range(count)) if seeds is None else list(seeds)
    if len(found) != count:
        raise invalid("seeds", found, f"one a prompt, that is {count}")
    for seed in found:
        check_whole("seed", seed, 0, 2**63 - 1)
    return found


def noised(run: Run, clean: Tensor, index: int, noise: Tensor | None = None) -> Tensor:
    """``clean`` latents at the noise level of ``run.timesteps[index]``, with ``noise`` or the run's own;
    clean past the last step."""
    if index >= len(run.timesteps):
        return clean
    t = run.timesteps[index].expand(len(clean))
    return run.scheduler.add_noise(clean, run.noise if noise is None else noise, t)


class KeepOutside(Method):
    """Hold everything outside a mask to a given picture, after each step at that step's noise: blended latent
    diffusion."""

    def __init__(self, clean: Tensor, mask: Tensor) -> None:
        """``clean`` latents ``[1 or B, C, h, w]``; ``mask`` ``[h, w]``, 1 where the picture may change."""
        self.clean, self.mask = clean, mask

    def after_step(self, run: Run, index: int) -> None:
        """See the class."""
        kept = noised(run, self.clean.expand_as(run.latents), index + 1)
        run.latents = keep_outside(run.latents, kept, self.mask)


class Sampling(TypedDict, total=False):
    """Options of :meth:`LayeredDiffusionPipeline.generate` that every way of making a picture passes on."""

    negative: str
    steps: int
    guidance: float
    methods: Sequence[Method]
    progress: Progress | None


class Drawing(Sampling, total=False):
    """Options of :meth:`~layered_diffusers.generator.Generator.generate`; see
    :meth:`~layered_diffusers.generator.Generator.sample_latents` for each."""

    width: int | None
    height: int | None
    seeds: Sequence[int] | None
    start: Tensor | None
    strength: float
