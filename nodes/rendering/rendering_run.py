"""Layered rendering in one sampling run of ComfyUI.

While the share lasts, ComfyUI gets the entries of the parts, each with its mask, and returns their predictions
mixed by the masks; afterwards it gets all others. What is planted is added to the rows of a part when the model is
called, so it works with every network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import comfy.patcher_extension
import torch
from torch import Tensor

from ...layered_core.canvas.masks import mask_pyramid
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.noise.change_map import noise_level, schedule_place
from ...layered_core.rendering.vision_guidance import (
    noise_colours,
    picture_colours,
    unit_vectors,
    vision_guidance,
    word_colours,
)
from .parts import EMPTY, KEY, WHOLE, Job, Led, role_of

Entry = dict[str, Any]
"""A conditioning of a run, as ComfyUI's guiders hold it."""


def level_of(sampling: Any, sigma: float) -> float:
    """Return the place of a noise level in the whole schedule of ComfyUI's model sampling, 0..1."""
    return noise_level(schedule_place(sigma, sampling.sigmas), len(sampling.sigmas) - 1, 0)


@dataclass
class RenderingRun:
    """The parts of one sampling run."""

    guider: Any
    """ComfyUI's guider of the run."""
    job: Job
    first: float
    """Noise level of the run's first step, 0..1; 1 for a run that another has begun."""
    masks: Mapping[int, Tensor]
    """Where each part is seen, ``[h, w]``, by its number; parts that are not seen are missing."""
    batch: int
    """B, the number of pictures."""
    planted: dict[int, Tensor] | None = None
    """What is planted in each part that is led, ``[B, C, h, w]``, or ``[B, C, 1, h, w]``, in the scale of the
    model's input; None before the first step."""
    number: dict[UUID, int] = field(default_factory=dict)
    """The part that each entry's rows are of, by the uuid that ComfyUI gives to every conditioning of a run."""

    def acts(self, sigma: float) -> bool:
        """Return whether layers are rendered by themselves at a noise level of the sampler."""
        sampling = self.guider.model_patcher.get_model_object("model_sampling")
        return self.job.rendering.acts(level_of(sampling, sigma), self.first)

    def start(self) -> None:
        """Wrap the run, in its own copy of the model's options."""
        kinds, options = comfy.patcher_extension.WrappersMP, self.guider.model_options
        add = comfy.patcher_extension.add_wrapper_with_key
        add(kinds.CALC_COND_BATCH, KEY, self.predict, options, is_model_options=True)
        add(kinds.APPLY_MODEL, KEY, self.apply, options, is_model_options=True)
        # Before all others, which then see what the step is about.
        wrappers = options["transformer_options"]["wrappers"]
        ours = {KEY: wrappers[kinds.CALC_COND_BATCH].pop(KEY)}
        wrappers[kinds.CALC_COND_BATCH] = {**ours, **wrappers[kinds.CALC_COND_BATCH]}

    def predict(
        self, executor: comfy.patcher_extension.WrapperExecutor, model: Any,
        conds: Sequence[Sequence[Entry] | None], x: Tensor, timestep: Tensor, *more: Any,
    ) -> Any:  # fmt: skip
        """Wrap the predictions of a step: give ComfyUI the entries that it is about."""
        if not self.acts(float(timestep.flatten()[0])):
            return executor(model, [_others(c) for c in conds], x, timestep, *more)
        given = [self._given(c, x, timestep) for c in conds]
        if self.planted is None and any(KEY in e for c in given for e in c or ()):
            self.planted = self._planted(executor, model, x, timestep, *more)
        return executor(model, given, x, timestep, *more)

    def apply(
        self, executor: comfy.patcher_extension.WrapperExecutor, x: Tensor, t: Tensor, concat: Any = None,
        context: Any = None, control: Any = None, transformer_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:  # fmt: skip
        """Wrap a pass of the model: plant the colours in the rows of the parts. ComfyUI calls this in a thread for
        each GPU."""
        options = transformer_options or {}
        numbers = [self.number.get(uuid, WHOLE) for uuid in options.get("uuids", ())]
        if all(number == WHOLE for number in numbers):
            return executor(x, t, concat, context, control, options, **more)
        self._check_rows(x, len(numbers))
        planted = self.planted or {}
        if not any(number in planted for number in numbers):
            return executor(x, t, concat, context, control, options, **more)
        nothing = x.new_zeros(())
        rows = torch.cat([planted.get(n, nothing).to(x).expand(self.batch, *x.shape[1:]) for n in numbers])
        sampling = executor.class_obj.model_sampling
        shift = rows / sampling.calculate_input(t, torch.ones_like(x))
        out: Tensor = executor(x + shift, t, concat, context, control, options, **more)
        if self.job.rendering.form == "paper":
            out = out - sampling.calculate_denoised(t, torch.zeros_like(shift), shift)
        return out

    def _check_rows(self, x: Tensor, count: int) -> None:
        size = next(iter(self.masks.values())).shape
        if x.shape[-2:] != size or len(x) != self.batch * count:
            raise LayeredError(
                f"layers: a pass of the model is over {x.shape[-1]}x{x.shape[-2]} latent cells and {len(x)} rows, but "
                f"{size[1]}x{size[0]} cells of {self.batch} pictures are sampled. Take off the node that samples in "
                "tiles, or set Layered Rendering's share to 0"
            )

    def _given(self, entries: Sequence[Entry] | None, x: Tensor, timestep: Tensor) -> list[Entry] | None:
        """Return the entries of the parts, with their masks; all others if no part has one in this step."""
        found = []
        for entry in entries or ():
            role = role_of(entry)
            if role is None or role.number == EMPTY or not _is_due(entry, timestep):
                continue
            self.number[entry["uuid"]] = role.number
            if role.number == WHOLE:
                found.append(entry)
            else:
                mask = self.masks[role.number].to(x)[(None,) * (x.ndim - 3)]
                found.append({**entry, "mask": mask, "mask_strength": 1.0})
        return found or _others(entries)

    def _planted(
        self, executor: comfy.patcher_extension.WrapperExecutor, model: Any, x: Tensor, *more: Any
    ) -> dict[int, Tensor]:
        """Return what is planted in each part that is led."""
        rendering, parts = self.job.rendering, self.job.parts
        strengths = {n: rendering.strength * parts[n].led for n in self.masks}
        led = [n for n, strength in strengths.items() if strength > 0]
        if rendering.asks_vae:
            colours = self._given_colours(model, x, led)
        else:
            colours = self._asked_colours(executor, model, x, led, *more)
        self.job.led.clear()
        planted = {}
        for number, colour in colours.items():
            self.job.led[number] = Led(colour.cpu(), self.masks[number].cpu())
            masks = self.masks[number].to(x).expand(len(x), -1, -1)
            found = vision_guidance(colour, masks, x.new_full((len(x),), strengths[number]))
            planted[number] = found if x.ndim == 4 else found[:, :, None]
        return planted

    def _asked_colours(
        self, executor: comfy.patcher_extension.WrapperExecutor, model: Any, x: Tensor, led: Sequence[int],
        timestep: Tensor, *more: Any,
    ) -> dict[int, Tensor]:  # fmt: skip
        """Return the colours ``[B, C]`` that come from predictions of the model, of the parts ``led``."""
        asked: dict[int, list[Entry]] = {}
        for entry in (e for conditions in self.guider.conds.values() for e in conditions or ()):
            role = role_of(entry)
            if role is not None and role.half == "positive":
                # A uuid of its own: nothing is planted here.
                asked.setdefault(role.number, []).append({**entry, "uuid": uuid4()})
        led = [n for n in led if n in asked]
        if not led or EMPTY not in asked:
            return {}
        for entry in (e for entries in asked.values() for e in entries):
            for key in (KEY, "mask", "mask_strength"):
                entry.pop(key, None)
        *words, empty = executor(model, [*(asked[n] for n in led), asked[EMPTY]], x, timestep, *more)
        # Frames follow one another.
        noisy, empty, *words = (cells.flatten(2, -2) for cells in (x, empty, *words))
        if self.job.rendering.colour == "words":
            return {n: word_colours(cond, empty) for n, cond in zip(led, words, strict=True)}
        return {n: noise_colours(noisy, cond, empty) for n, cond in zip(led, words, strict=True)}

    def _given_colours(self, model: Any, x: Tensor, led: Sequence[int]) -> dict[int, Tensor]:
        """Return the colours ``[B, C]`` that come from encoded pictures, of the parts ``led``."""
        assert self.job.latents is not None
        latents = model.process_latent_in(self.job.latents).float().flatten(2, -2)
        if self.job.rendering.colour == "constant":
            colours = unit_vectors(latents[:1].mean((2, 3))).expand(len(self.job.parts) - 1, -1)
        else:
            masks = mask_pyramid(self.job.plan.masks, [(latents.shape[-2], latents.shape[-1])])[0]
            colours = picture_colours(
                latents[:1].expand(len(masks), -1, -1, -1), latents[1:], masks.to(latents)
            )
        return {n: colours[n - 1].to(x).expand(len(x), -1) for n in led}


def check_latents(job: Job, noise: Tensor) -> None:
    """Raise :class:`LayeredError` unless a run is over latents ``[B, C, h, w]`` or ``[B, C, frames, h, w]`` of the
    VAE that gave the colours."""
    if noise.ndim not in (4, 5):
        raise invalid(
            "latent: dimensions", noise.ndim, "4 or 5, those of pictures or frames",
            "Layered Rendering needs a model of pictures",
        )  # fmt: skip
    if job.latents is not None and job.latents.shape[1] != noise.shape[1]:
        raise invalid(
            "vae: channels of its latents", int(job.latents.shape[1]), f"{noise.shape[1]}, those of the sampled "
            "latents", "Connect the VAE that belongs to the model",
        )  # fmt: skip


def _others(entries: Sequence[Entry] | None) -> list[Entry] | None:
    """Return the entries that are no part's."""
    return None if entries is None else [e for e in entries if KEY not in e]


def _is_due(entry: Mapping[str, Any], timestep: Tensor) -> bool:
    """Return whether ComfyUI evaluates an entry at a noise level: entries may have a range of steps."""
    sigma = timestep.flatten()[0]
    return not (sigma > entry.get("timestep_start", sigma) or sigma < entry.get("timestep_end", sigma))
