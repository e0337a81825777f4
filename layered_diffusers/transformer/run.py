"""The sampling run of a transformer: the pipeline's own call, with methods that act between its steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from layered_core.noise.change_map import noise_level
from layered_diffusers.sampling import AnyRun, Method, Progress
from layered_diffusers.transformer.hosts import Host
from layered_diffusers.transformer.joining import Row
from layered_diffusers.transformer.joint import Joint
from layered_diffusers.transformer.latents import pack, unpack
from layered_diffusers.transformer.schedule import FlowSchedule
from layered_diffusers.transformer.text import Text


@dataclass
class FlowRun(AnyRun):
    """The state of one sampling run of a transformer."""

    model: Any
    """The pipeline."""
    host: Host
    schedule: FlowSchedule
    texts: dict[str, list[Text]]
    """Prompts of cond, one for each picture, and of uncond if it is computed."""
    guidance: float
    """Classifier-free guidance scale, 1 or more; 1 is the conditional prediction alone."""
    embedded_guidance: float | None = None
    """Guidance that the transformer gets as an input; None for models without that input."""
    joint: Joint = field(init=False)
    """The attention of the run."""

    def __post_init__(self) -> None:
        size = int(self.latents.shape[-2]), int(self.latents.shape[-1])
        self.joint = Joint(self.host, self.model.transformer, size, self.schedule.sigmas)
        self.joint.scale = self.guidance
        self.joint.halves = {half: [Row(len(t.states)) for t in texts] for half, texts in self.texts.items()}

    @property
    def sigmas(self) -> list[float]:
        """Noise levels, falling to 0, ``[T + 1]``."""
        return self.schedule.sigmas

    def level(self, index: int, threshold: str) -> float:
        """Return the place of the noise level in the model's whole schedule, or, ``normalised``, where it lies
        between the lowest and the run's first."""
        if threshold == "absolute":
            return noise_level(float(self.timesteps[index]), len(self.schedule.levels) - 1, 0.0)
        return noise_level(self.sigmas[index], self.sigmas[0], float(self.schedule.levels[0]))

    def add_noise(self, clean: Tensor, noise: Tensor, index: int) -> Tensor:
        """Return ``(1 - sigma) x + sigma n``."""
        sigma = self.sigmas[index]
        return (1 - sigma) * clean + sigma * noise


@torch.no_grad()
def sample(run: FlowRun, methods: Sequence[Method] = (), progress: Progress | None = None) -> Tensor:
    """Denoise ``run.latents`` by the pipeline's own call and return the clean latents ``[B, C, h, w]``."""
    total = len(run.timesteps)
    with ExitStack() as stack:
        for method in methods:
            method.start(run, stack)  # type: ignore[arg-type]  # checked: methods on transformers
        if not total:
            return run.latents
        run.joint.install(stack)
        _before_step(run, methods, 0)

        def after_step(pipeline: Any, index: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            rows = tensors["latents"]
            run.latents = _unpacked(run, rows).to(run.noise)
            run.joint.next_step()
            for method in methods:
                method.after_step(run, index)  # type: ignore[arg-type]
            _before_step(run, methods, index + 1)
            if progress is not None:
                progress(index + 1, total)
            return {"latents": _packed(run).to(rows)}

        height, width = (int(s) * int(run.model.vae_scale_factor) for s in run.latents.shape[-2:])
        run.model(
            **_prompts(run),
            height=height,
            width=width,
            latents=_packed(run),
            sigmas=run.schedule.even,
            num_inference_steps=total,
            callback_on_step_end=after_step,
            output_type="latent",
        )
    return run.latents


def _before_step(run: FlowRun, methods: Sequence[Method], index: int) -> None:
    if index < len(run.timesteps):
        for method in methods:
            method.before_step(run, index)  # type: ignore[arg-type]


def _packed(run: FlowRun) -> Tensor:
    return pack(run.latents) if run.host.packed else run.latents


def _unpacked(run: FlowRun, latents: Tensor) -> Tensor:
    size = int(run.latents.shape[-2]), int(run.latents.shape[-1])
    return unpack(latents, size) if run.host.packed else latents


def _prompts(run: FlowRun) -> dict[str, Any]:
    """Return the encoded prompts and the guidance, under the pipeline's names."""
    dtype, device = run.model.transformer.dtype, run.latents.device
    texts = {half: [t.states.to(device, dtype) for t in found] for half, found in run.texts.items()}
    names = {"cond": "prompt_embeds", "uncond": "negative_prompt_embeds"}
    found: dict[str, Any] = {"qwen": {"max_sequence_length": run.host.family.limit}}.get(run.host.key, {})
    if run.host.listed:
        # This pipeline's scale counts from the conditional prediction.
        found |= {names[half]: rows for half, rows in texts.items()}
        return found | {"guidance_scale": run.guidance - 1 if "uncond" in texts else 0.0}
    longest = max(len(t) for rows in texts.values() for t in rows)
    for half, rows in texts.items():
        # Only a pipeline that masks its texts takes halves of different length.
        room = max(len(t) for t in rows) if run.host.masks else longest
        found[names[half]] = torch.stack([_filled(t, room) for t in rows])
        if run.host.masks:
            lengths = torch.tensor([[len(t)] for t in rows], device=device)
            found[f"{names[half]}_mask"] = (torch.arange(room, device=device) < lengths).long()
        pooled = [t.pooled.to(device, dtype) for t in run.texts[half] if t.pooled is not None]
        if pooled:
            found[names[half].replace("prompt", "pooled_prompt")] = torch.stack(pooled)
    if run.host.key == "sd3":
        return found | {"guidance_scale": run.guidance if "uncond" in texts else 1.0}
    found["true_cfg_scale"] = run.guidance if "uncond" in texts else 1.0
    if run.embedded_guidance is not None:
        found["guidance_scale"] = run.embedded_guidance
    return found


def _filled(text: Tensor, room: int) -> Tensor:
    return torch.cat([text, text.new_zeros(room - len(text), text.shape[1])])
