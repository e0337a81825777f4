"""The generator on transformers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layered_core.attention.attention_maps import AttentionMaps
from layered_core.attention.regional_plan import Settings
from layered_core.document import LayerDocument
from layered_core.errors import check_number, invalid
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers.generator import Generator
from layered_diffusers.sampling import GUIDANCE, Method, Progress, WordedMethod, check_worded, noised
from layered_diffusers.transformer import latents
from layered_diffusers.transformer.hosts import host_of
from layered_diffusers.transformer.layered_rendering import TransformerRendering
from layered_diffusers.transformer.regional_prompts import JointPrompts
from layered_diffusers.transformer.run import FlowRun, sample
from layered_diffusers.transformer.schedule import FlowSchedule
from layered_diffusers.transformer.text import encode


class TransformerGenerator(Generator):
    """Make latents and pictures from prompts with one of
    :data:`layered_diffusers.models.loading.TRANSFORMERS`.

    On models whose guidance is an input of the transformer (Flux dev), ``guidance`` is that input, and
    :attr:`true_guidance` the classifier-free one.
    """

    def __init__(self, model: Any, side: int | None = None) -> None:
        """Take ``model``, a loaded diffusers pipeline, and ``side``, the default side of a picture in pixels;
        None takes the model's own."""
        self.model, self.host = model, host_of(model)
        self.scale = int(model.vae_scale_factor)
        sizes = getattr(model, "default_sample_size", 128)
        self.side = side or int(sizes) * self.scale
        self.true_guidance = 1.0
        """Classifier-free guidance of models whose guidance is an input, 1..50. Neutral: 1, without a
        negative prompt."""

    def sample_latents(
        self,
        prompts: Sequence[str],
        *,
        negative: str = "",
        width: int | None = None,
        height: int | None = None,
        steps: int = 25,
        guidance: float | None = None,
        seeds: Sequence[int] | None = None,
        start: Tensor | None = None,
        strength: float = 1.0,
        methods: Sequence[Method] = (),
        progress: Progress | None = None,
    ) -> tuple[Tensor, int, int]:
        """Sample a batch of latents. As :meth:`Generator.sample_latents`, but ``guidance`` is 1..50."""
        guidance = GUIDANCE if guidance is None else guidance
        seeds, height, width = self._checked(
            prompts, seeds, start, height, width, steps=steps, guidance=guidance, strength=strength
        )
        embeds = self._embeds_guidance
        check_number("guidance", guidance, 0 if embeds else 1, 50)
        check_number("true_guidance", self.true_guidance, 1, 50)
        self._check_methods(methods)
        rows, columns = self._padded(height) // self.scale, self._padded(width) // self.scale
        self._check_size(rows, columns)
        true_guidance = self.true_guidance if embeds else guidance
        texts = {"cond": [encode(self.model, p, f"prompt {p!r}") for p in prompts]}
        if true_guidance > 1:
            texts["uncond"] = [encode(self.model, negative, "negative prompt")] * len(prompts)
        elif negative:
            logging.getLogger(__name__).warning(
                "Classifier-free guidance is off, so the negative prompt has no effect"
            )
        skipped = steps - min(int(steps * strength + 0.5), steps) if start is not None else 0
        unit = latents.PATCH
        tokens = (rows // unit) * (columns // unit)
        schedule = FlowSchedule(self.model, self.host.key, tokens, steps, skipped)
        noise, _ = self._noise(seeds, (latents.channels(self.model), rows, columns))
        run = FlowRun(
            model=self.model,
            host=self.host,
            schedule=schedule,
            timesteps=schedule.places,
            latents=noise,
            noise=noise,
            texts=texts,
            guidance=true_guidance,
            embedded_guidance=guidance if embeds else None,
        )
        if start is not None and (skipped or strength < 1):
            run.latents = noised(run, self.encode(start).expand_as(noise), 0)
        return sample(run, methods, progress), height, width

    def regional_prompts(
        self,
        documents: Sequence[LayerDocument],
        settings: Settings | None = None,
        *,
        prompts: Sequence[str] | None = None,
        negative: str = "",
        maps: AttentionMaps | None = None,
        adapters: Path | None = None,
    ) -> JointPrompts:
        """Return the method that makes each layer's words and LoRAs act where the layer is visible."""
        return JointPrompts(
            self.model, documents, settings, prompts=prompts, negative=negative, maps=maps, adapters=adapters
        )

    def layered_rendering(
        self,
        documents: Sequence[LayerDocument],
        rendering: Rendering | None = None,
        *,
        prompts: Sequence[str] | None = None,
        negative: str = "",
        then: WordedMethod | None = None,
        adapters: Path | None = None,
    ) -> TransformerRendering:
        """Return the method that leads each layer to its place while the picture is forming, and leaves the rest
        to ``then``."""
        return TransformerRendering(
            self.model, self.encode, documents, rendering or Rendering(),
            prompts=prompts, negative=negative, then=then, adapters=adapters,
        )  # fmt: skip

    def encode(self, pictures: Tensor) -> Tensor:
        """Encode pictures ``[B, 3, H, W]`` in 0..1, padded by repeating the edge, to latents ``[B, C, h, w]``
        in the transformer's scale (the mean of the VAE's distribution)."""
        return latents.encode(self.model, self.filled(pictures))

    def decode(self, found: Tensor) -> Tensor:
        """Decode latents ``[B, C, h, w]`` in the transformer's scale to pictures ``[B, 3, H, W]``, float32 in
        0..1 on the CPU."""
        return latents.decode(self.model, found)

    def is_guided(self, guidance: float | None = None) -> bool:
        """Return whether a run with ``guidance`` (None: ``GUIDANCE``) has classifier-free guidance."""
        scale = GUIDANCE if guidance is None else guidance
        return (self.true_guidance if self._embeds_guidance else scale) > 1

    @property
    def _embeds_guidance(self) -> bool:
        """Whether guidance is an input of the transformer."""
        return bool(self.model.transformer.config.get("guidance_embeds", False))

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the latents between steps."""
        return torch.float32

    @property
    def unit(self) -> int:
        """The number of pixels of which a side must be a multiple for the VAE and the patches."""
        return self.scale * latents.PATCH

    @property
    def inpaints(self) -> bool:
        """Whether the model is made for inpainting: none of these is."""
        return False

    def _check_methods(self, methods: Sequence[Method]) -> None:
        for method in methods:
            if not method.on_transformers:
                raise invalid(
                    "methods",
                    type(method).__name__,
                    f"methods that act on transformers, with {self.host.family.name}: regional prompts, layered "
                    f"rendering, change maps, keeping what is outside a mask",
                    "Leave it out, or use a Stable Diffusion model",
                )
        check_worded(methods)

    def _check_size(self, rows: int, columns: int) -> None:
        """Raise :class:`LayeredError` for a picture larger than the positions that the model knows."""
        most = self.model.transformer.config.get("pos_embed_max_size")
        if most is not None and max(rows, columns) // latents.PATCH > most:
            side = int(most) * self.unit
            raise invalid(
                "size of the picture", f"{columns * self.scale} x {rows * self.scale}", f"sides up to {side}"
            )
