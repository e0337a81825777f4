"""The sampling loop, and the base class of the methods that act on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

import torch
from diffusers import UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from layered_core.attention.regional_plan import Plan
from layered_core.canvas.soft_masks import keep_outside
from layered_core.errors import check_whole, invalid
from layered_core.noise.change_map import noise_level
from layered_core.noise.guidance import classifier_free
from layered_core.painting.repaint import Repaint

GUIDANCE = 3.0
"""Classifier-free guidance of a run for which none is given."""

Progress = Callable[[int, int], None]
"""Called after every step with the number of steps done and the number of all steps. May raise to stop."""


class JoinedProgress:
    """Join the progress of several runs, one after the other, into one."""

    def __init__(self, progress: Progress | None, total: int, done: int = 0) -> None:
        """Tell ``progress``, if it is not None, of ``total`` steps, of which ``done`` are done."""
        self.progress, self.total, self.done = progress, total, done

    def __call__(self, done: int, of: int) -> None:
        """Count one more step of the present run."""
        self.done += 1
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


class LearntTexts(Protocol):
    """What must know the texts of each pass, because learnt words act in them:
    :class:`layered_diffusers.methods.learnt_words.LearntWords`."""

    def texts(self, texts: Sequence[str]) -> AbstractContextManager[None]:
        """Let the rows of the model's next passes have these texts, in a ``with`` block."""


@dataclass
class AnyRun:
    """The state of one sampling run that models of all families have. Methods may read and change it."""

    timesteps: Tensor
    """Timesteps of the run, ``[T]``, falling. On flow models: their places in the model's schedule."""
    latents: Tensor
    """Noisy latents ``[B, C, h, w]``."""
    noise: Tensor
    """The noise of unit variance that the run began with, ``[B, C, h, w]``."""

    def level(self, index: int, threshold: str) -> float:
        """Return the noise level of a step, 0..1, as change maps with ``threshold`` compare it. See
        :data:`layered_core.noise.change_map.THRESHOLDS`."""
        raise NotImplementedError

    def add_noise(self, clean: Tensor, noise: Tensor, index: int) -> Tensor:
        """Return clean latents with ``noise``, both ``[B, C, h, w]``, at the noise level of a step."""
        raise NotImplementedError


@dataclass
class Run(AnyRun):
    """The state of one sampling run of a UNet."""

    unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    context: Tensor
    """Encoded prompts, uncond rows before cond rows, ``[2 B, N, C]``."""
    guidance: float | Tensor
    """Classifier-free guidance scale, or one for every cell, ``[B, 1, h, w]``. 1 is the conditional
    prediction alone."""
    added: dict[str, Tensor] = field(default_factory=dict)
    """SDXL's pooled text and sizes, uncond rows before cond rows; empty for other models."""
    generators: list[torch.Generator] = field(default_factory=list)
    """Sources of fresh noise, one for each picture, so that no picture depends on the rest of the batch."""
    concat: Tensor | None = None
    """Further input channels of an inpainting UNet, ``[2 B, C', h, w]``, joined to the scaled latents; None
    for other models."""
    learnt: LearntTexts | None = None
    """Told of the texts of passes that are not the run's own; None if no learnt word is loaded."""
    more: dict[str, Any] = field(default_factory=dict)
    """The UNet's further arguments in the present step, for uncond rows before cond rows."""

    def texts(self, texts: Sequence[str]) -> AbstractContextManager[None]:
        """Let the rows of the model's next passes have these texts, in a ``with`` block."""
        return nullcontext() if self.learnt is None else self.learnt.texts(texts)

    def level(self, index: int, threshold: str) -> float:
        """Return the place of the timestep between the schedule's last and first, or the run's first."""
        last = float(self.scheduler.config.num_train_timesteps) - 1
        first = float(self.timesteps[0]) if threshold == "normalised" else last
        return noise_level(float(self.timesteps[index]), first, 0.0)

    def add_noise(self, clean: Tensor, noise: Tensor, index: int) -> Tensor:
        """Return what the scheduler makes of clean latents and noise."""
        noisy: Tensor = self.scheduler.add_noise(clean, noise, self.timesteps[index].expand(len(clean)))
        return noisy


class Method:
    """Base class of the methods that act on a run. Subclasses override what they need; the defaults do
    nothing."""

    on_transformers = False
    """Whether the method acts on transformers too, where it gets an :class:`AnyRun`."""

    joins_rows = False
    """Whether pictures of one batch look at each other."""

    def cut_out(self, plan: Repaint) -> Method:
        """Return the method for a run over the part of a picture that ``plan`` cuts out. What is laid out on the
        whole picture is cut alike."""
        return self

    def start(self, run: Run, stack: ExitStack) -> None:
        """Prepare, before the first step. Put on ``stack`` what must be undone: it is closed after an error
        too."""

    def before_step(self, run: Run, index: int) -> None:
        """Act before the model gets ``run.latents`` at ``run.timesteps[index]``."""

    def model_inputs(self, run: Run, model_input: Tensor, index: int) -> dict[str, Any]:
        """Return further keyword arguments for the UNet; ``model_input`` is ``[2 B, C, h, w]``, uncond rows
        before cond rows."""
        return {}

    def predict(self, run: Run, index: int, more: dict[str, Any]) -> Tensor | None:
        """Return the guided prediction ``[B, C, h, w]`` of a step in place of the model's own pass, or None to
        leave it to that.

        ``more`` holds the UNet's further arguments, for uncond rows before cond rows. One method of a run at most
        may do so; then :meth:`guided` is not called at the step.
        """
        return None

    def guided(self, run: Run, prediction: Tensor, cond: Tensor, model_input: Tensor, index: int) -> Tensor:
        """Return the prediction ``[B, C, h, w]`` after classifier-free guidance, changed; ``cond`` is the
        conditional one, and ``model_input`` the scaled latents that both were predicted from."""
        return prediction

    def after_step(self, run: Run, index: int) -> None:
        """Act after the scheduler's step: ``run.latents`` are at ``run.timesteps[index + 1]``, or clean after
        the last step."""


class WordedMethod(Method):
    """A method that plans the prompts with which to sample."""

    plans: list[Plan]
    """One for each document."""
    _cut: Callable[[Tensor], Tensor] | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompt of the whole picture for every document; layers' words may have been appended to it."""
        return [p.prompt for p in self.plans]

    @property
    def negative(self) -> str:
        """The negative prompt of the whole picture, of the first document."""
        return self.plans[0].negative

    def cut_out(self, plan: Repaint) -> WordedMethod:
        """Return the same words with the layers' places cut as the picture is."""
        other = copy.copy(self)
        if not plan.is_whole:
            other._cut = plan.cut_regions
        return other


@torch.no_grad()
def sample(run: Run, methods: Sequence[Method] = (), progress: Progress | None = None) -> Tensor:
    """Denoise ``run.latents`` over ``run.timesteps`` and return the clean latents ``[B, C, h, w]``."""
    predicting = check_predicting(methods)
    with ExitStack() as stack:
        for method in methods:
            method.start(run, stack)
        total = len(run.timesteps)
        for index, t in enumerate(run.timesteps):
            for method in methods:
                method.before_step(run, index)
            scaled = model_input = run.scheduler.scale_model_input(torch.cat([run.latents] * 2), t)
            more = add_residuals([method.model_inputs(run, model_input, index) for method in methods])
            if run.added:
                more["added_cond_kwargs"] = run.added
            run.more = more
            prediction = None if predicting is None else predicting.predict(run, index, more)
            if prediction is None:
                if run.concat is not None:
                    model_input = torch.cat([model_input, run.concat], 1)
                uncond, cond = run.unet(model_input, t, run.context, **more).sample.chunk(2)
                prediction = classifier_free(uncond, cond, run.guidance)
                for method in methods:
                    prediction = method.guided(run, prediction, cond, scaled[: len(cond)], index)
            run.latents = run.scheduler.step(prediction, t, run.latents, **_step_arguments(run)).prev_sample
            for method in methods:
                method.after_step(run, index)
            if progress is not None:
                progress(index + 1, total)
    return run.latents


def check_predicting(methods: Sequence[Method]) -> Method | None:
    """Return the method that takes over predictions, None if there is none.

    Raises:
        LayeredError: there are two, or another method lets the pictures of the batch look at each other, so that
            rows of layers would mix with them; or there is another with words, see :func:`check_worded`.
    """
    found = [m for m in methods if type(m).predict is not Method.predict]
    others = [m for m in methods if m.joins_rows]
    if len(found) > 1 or (found and others):
        names = [type(m).__name__ for m in (*found, *others)]
        raise invalid(
            "methods",
            " and ".join(names),
            "one method that predicts a step by rows of its own, and none beside it that makes several pictures of a "
            "batch together",
            f"Leave out {names[-1]}",
        )
    if found:
        check_worded(methods)
    return found[0] if found else None


def check_worded(methods: Sequence[Method]) -> None:
    """Raise :class:`LayeredError` if there is more than one method that plans the prompts."""
    names = [type(m).__name__ for m in methods if isinstance(m, WordedMethod)]
    if len(names) > 1:
        raise invalid(
            "methods",
            " and ".join(names),
            "one method that plans the prompts",
            "Leave one out; regional prompts that follow layered rendering are its 'then'",
        )


def add_residuals(inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the UNet's keyword arguments of several methods: the residuals of ControlNets and adapters add
    up; of any other argument the last one counts."""
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


def taken(value: Any, rows: Tensor, count: int) -> Any:
    """Return the UNet's further arguments for some rows of a batch of ``count``."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == count else value
    if isinstance(value, dict):
        return {k: taken(v, rows, count) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(taken(v, rows, count) for v in value)
    return value


def _step_arguments(run: Run) -> dict[str, Any]:
    """Return the run's generators as an argument, if the scheduler's step takes them."""
    names = run.scheduler.step.__code__.co_varnames[: run.scheduler.step.__code__.co_argcount]
    return {"generator": run.generators} if "generator" in names and run.generators else {}


def check_seeds(seeds: Sequence[int] | None, count: int) -> list[int]:
    """Return a seed for each of ``count`` pictures: 0, 1, 2, ... for None.

    Raises:
        LayeredError: the number of seeds is not ``count``, or a seed is out of range.
    """
    found = list(range(count)) if seeds is None else list(seeds)
    if len(found) != count:
        raise invalid("seeds", found, f"one for each prompt, that is {count}")
    for seed in found:
        check_whole("seed", seed, 0, 2**63 - 1)
    return found


def noised(run: AnyRun, clean: Tensor, index: int, noise: Tensor | None = None) -> Tensor:
    """Add ``noise`` (None: the run's own) to ``clean`` latents up to the level of ``run.timesteps[index]``.
    Past the last step they stay clean."""
    if index >= len(run.timesteps):
        return clean
    return run.add_noise(clean, run.noise if noise is None else noise, index)


class KeepOutside(Method):
    """Blended latent diffusion: after each step everything outside a mask is replaced by a given picture at
    that step's noise level."""

    on_transformers = True

    def __init__(self, clean: Tensor, mask: Tensor) -> None:
        """Take the picture's latents ``clean`` ``[1 or B, C, h, w]`` and ``mask`` ``[h, w]``, 1 where it may
        change."""
        self.clean, self.mask = clean, mask

    def after_step(self, run: AnyRun, index: int) -> None:
        """Replace what lies outside the mask."""
        kept = noised(run, self.clean.expand_as(run.latents), index + 1)
        run.latents = keep_outside(run.latents, kept, self.mask)


class Sampling(TypedDict, total=False):
    """Options of :meth:`LayeredDiffusionPipeline.generate` that all methods which make pictures pass on."""

    negative: str
    steps: int
    guidance: float | None
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
