"""The generator: makes latents, pictures and repainted parts from prompts with one Stable Diffusion model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from layered_core.attention.attention_maps import AttentionMaps
from layered_core.attention.regional_plan import Settings
from layered_core.canvas.compositing import flat
from layered_core.canvas.masks import mask_pyramid
from layered_core.canvas.soft_masks import grow
from layered_core.document import MAX_SIDE, LayerDocument
from layered_core.errors import check_number, check_whole, invalid
from layered_core.painting.repaint import Repaint, plan_repaint, tighten
from layered_core.painting.stages import DRAFT_STRENGTH, changed_region, draft_reach, draft_steps
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers.methods.change_map import ChangeMap, InpaintInput
from layered_diffusers.methods.layered_rendering import LayeredRendering, Rendered
from layered_diffusers.methods.learnt_words import LearntWords
from layered_diffusers.methods.masked_control import InpaintControl
from layered_diffusers.methods.regional_attention import RegionalPrompts
from layered_diffusers.models import vae
from layered_diffusers.models.adapters import loaded_values
from layered_diffusers.models.loading import StableDiffusion
from layered_diffusers.models.text import encode, stack
from layered_diffusers.sampling import (
    GUIDANCE,
    Drawing,
    Method,
    Progress,
    Run,
    Sampling,
    WordedMethod,
    check_seeds,
    noised,
    sample,
)

if TYPE_CHECKING:
    from diffusers import ControlNetModel
    from typing_extensions import Unpack


class Generator:
    """Make latents and pictures from prompts with one model. The pipeline, the stages and the transparent
    layers are built on it."""

    def __init__(self, model: StableDiffusion, side: int | None = None) -> None:
        """Take ``model``, a loaded diffusers pipeline, and ``side``, the default side of a picture in pixels;
        None takes the model's own."""
        self.model = model
        self.scale = 8 if not hasattr(model, "vae_scale_factor") else int(model.vae_scale_factor)
        self.side = side or int(model.unet.config.sample_size) * self.scale

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
        """Sample a batch of latents.

        Args:
            prompts: one for each picture.
            negative: the negative prompt of all pictures.
            width, height: pixels, 1..16384; None for the size of ``start`` or the model's own. Any size is
                allowed: the latents are padded and the picture is cropped.
            steps: sampling steps, 1..1000.
            guidance: classifier-free guidance, 0..50; 1 turns it off. None for ``GUIDANCE``.
            seeds: one for each picture; its noise does not depend on the batch. None for 0, 1, 2, ...
            start: pictures ``[B or 1, 3, H, W]`` in 0..1 to start from (SDEdit, arXiv 2108.01073), or None
                to start from noise alone.
            strength: how much noise ``start`` gets, from 0 (it only passes through the VAE) to 1 (nothing of
                it is left).
            methods: act on the run, in this order.
            progress: called after each step.

        Returns:
            latents ``[B, C, h, w]``, and the height and width to which the decoded picture is cropped, pixels.

        Raises:
            LayeredError: a value is out of range; the text names it.
        """
        guidance = GUIDANCE if guidance is None else guidance
        seeds, height, width = self._checked(
            prompts, seeds, start, height, width, steps=steps, guidance=guidance, strength=strength
        )
        padded_height, padded_width = self._padded(height), self._padded(width)
        channels = int(self.model.vae.config.latent_channels)
        noise, generators = self._noise(
            seeds, (channels, padded_height // self.scale, padded_width // self.scale)
        )
        context, added = self._words(list(prompts), negative, padded_width, padded_height)
        scheduler = copy.deepcopy(self.model.scheduler)
        scheduler.set_timesteps(steps, device=self.model.device)
        skipped = steps - min(int(steps * strength + 0.5), steps) if start is not None else 0
        if self.inpaints and not any(isinstance(m, InpaintInput) for m in methods):
            everything = torch.full((1, 3, padded_height, padded_width), 0.5)
            methods = [*methods, self._inpaint_input(everything, torch.ones(padded_height, padded_width))]
        run = Run(
            unet=self.model.unet,
            scheduler=scheduler,
            timesteps=scheduler.timesteps[skipped * scheduler.order :],
            latents=noise * scheduler.init_noise_sigma,
            noise=noise,
            context=context,
            guidance=guidance,
            added=added,
            generators=generators,
        )
        if loaded_values(self.model):
            methods = [LearntWords(self.model, negative, prompts), *methods]
        if start is not None:
            clean = self.encode(start).expand_as(noise)
            if skipped or strength < 1:
                run.latents = noised(run, clean, 0)
        return sample(run, methods, progress), height, width

    def generate(self, prompts: Sequence[str], **options: Unpack[Drawing]) -> Tensor:
        """Sample a batch of pictures; all other methods call this one.

        Args:
            prompts: one for each picture.
            options: as :meth:`sample_latents`.

        Returns:
            ``[B, 3, H, W]`` float32 in 0..1 on the CPU.

        Raises:
            LayeredError: a value is out of range; the text names it.
        """
        latents, height, width = self.sample_latents(prompts, **options)
        return self.decode(latents)[..., :height, :width]

    def find_region(
        self, before: Tensor, prompt: str, *, seed: int = 0, **options: Unpack[Sampling]
    ) -> Tensor:
        """Find where the model would put ``prompt`` in a picture ``[3, H, W]``; a mask ``[H, W]`` of 0 or 1.

        It redraws the whole picture from ``prompt`` at strength 0.75 in half the steps and takes the region
        that differs most (:func:`layered_core.painting.stages.changed_region`), widened by 1/16 of the side.
        """
        options["steps"] = draft_steps(options.get("steps", 25))
        draft = self.generate([prompt], seeds=[seed], start=before[None], strength=DRAFT_STRENGTH, **options)
        return grow(changed_region(before, draft[0]), draft_reach(before.shape[-1], before.shape[-2]))

    def repaint(
        self,
        plan: Repaint,
        prompt: str,
        *,
        seed: int = 0,
        strength: float = 1.0,
        blend: str = "gradient",
        control: ControlNetModel | None = None,
        **options: Unpack[Sampling],
    ) -> Tensor:
        """Sample the part that ``plan`` cuts out, where each place may change as far as the plan's change map
        says, and paste it back; ``[3, H, W]``. The options are those of :meth:`add_layer`."""
        start = plan.cut()[None]
        inpainting: list[Method] = [self._inpaint_input(start, plan.cut_mask())] if self.inpaints else []
        if control is not None:
            inpainting.append(InpaintControl(control, start[0], plan.cut_mask()))
        given = [method.cut_out(plan) for method in options.get("methods", ())]
        options["methods"] = [self._change_map(plan, start), *inpainting, *given]
        sampled = self.generate([prompt], seeds=[seed], start=start, strength=strength, **options)
        return plan.paste(sampled, blend)[0]

    def flat(self, document: LayerDocument) -> Tensor:
        """Return the picture that sampling starts from, :func:`layered_core.canvas.compositing.flat`, as
        ``[1, 3, H, W]``."""
        return flat(document)[None]

    def latent_mask(self, mask: Tensor) -> Tensor:
        """Reduce a mask ``[H, W]`` of pixels to the cells ``[h, w]`` of the padded latents, by area; the
        padding repeats the edge."""
        height, width = self._padded(mask.shape[-2]), self._padded(mask.shape[-1])
        padded = functional.pad(
            mask[None, None], (0, width - mask.shape[-1], 0, height - mask.shape[-2]), mode="replicate"
        )
        cells = mask_pyramid(padded, [(height // self.scale, width // self.scale)])[0][0, 0]
        return cells.to(self.model.device, self.dtype)

    def regional_prompts(
        self,
        documents: Sequence[LayerDocument],
        settings: Settings | None = None,
        *,
        prompts: Sequence[str] | None = None,
        negative: str = "",
        maps: AttentionMaps | None = None,
        adapters: Path | None = None,
    ) -> WordedMethod:
        """Return the method that makes each layer's words and LoRAs act where the layer is visible. See
        :class:`~layered_diffusers.methods.regional_attention.RegionalPrompts`; sample with its ``prompts``."""
        return RegionalPrompts(
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
    ) -> Rendered:
        """Return the method that leads each layer to its place while the picture is forming, and leaves the rest to
        ``then``. See :class:`~layered_diffusers.methods.layered_rendering.Rendered`; sample with its
        ``prompts``."""
        return LayeredRendering(
            self.model, self.encode, documents, rendering or Rendering(),
            prompts=prompts, negative=negative, then=then, adapters=adapters,
        )  # fmt: skip

    def stage_plan(
        self,
        before: Tensor,
        region: Tensor,
        *,
        noise: float = 1.0,
        feather: int = 8,
        side: int = 0,
        context: float = 0.5,
    ) -> Repaint:
        """Plan how a stage repaints a region ``[H, W]`` of a picture ``[3, H, W]``. The soft border lies
        inside the region."""
        check_whole("feather", feather, 0, 1024)
        widen, soften = tighten(region, feather)
        return plan_repaint(
            before,
            region,
            noise=noise,
            widen=widen,
            soften=soften,
            context=context,
            side=side,
            unit=self.unit,
        )

    def is_guided(self, guidance: float | None = None) -> bool:
        """Return whether a run with ``guidance`` (None: ``GUIDANCE``) has classifier-free guidance."""
        return guidance is None or guidance != 1

    @property
    def inpaints(self) -> bool:
        """Whether the model is made for inpainting: its UNet takes a mask and the masked picture beside the
        latents."""
        return int(self.model.unet.config.in_channels) > int(self.model.vae.config.latent_channels)

    def _change_map(
        self,
        plan: Repaint,
        start: Tensor,
        threshold: str = "absolute",
        noise: str = "fixed",
        dilation: float = 0.0,
        softness: float = 0.0,
    ) -> ChangeMap:
        """Return the method that applies the plan's change map; ``start`` ``[1, 3, H, W]`` is the part that
        the plan cuts out."""
        cells = plan.cells(start.shape[-2] // self.scale, start.shape[-1] // self.scale).to(
            self.model.device, self.dtype
        )
        return ChangeMap(
            self.encode(start), cells, threshold=threshold, noise=noise, dilation=dilation, softness=softness
        )

    def _inpaint_input(self, pictures: Tensor, mask: Tensor) -> InpaintInput:
        """Return the method that gives an inpainting UNet its further inputs: the pictures ``[B, 3, H, W]``
        are to be repainted where ``mask`` ``[H, W]`` is at least 0.5."""
        hole = (mask >= 0.5).to(pictures.dtype)
        masked = self.encode(pictures * (1 - hole) + 0.5 * hole)
        return InpaintInput(masked, (self.latent_mask(hole) > 0).to(masked.dtype))

    def encode(self, pictures: Tensor) -> Tensor:
        """Encode pictures ``[B, 3, H, W]`` in 0..1, padded by repeating the edge, to latents ``[B, C, h, w]``
        in the UNet's scale (the mean of the VAE's distribution)."""
        return vae.encode(self.model, self.filled(pictures))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents ``[B, C, h, w]`` in the UNet's scale to pictures ``[B, 3, H, W]``, float32 in 0..1
        on the CPU."""
        return vae.decode(self.model, latents)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the latents between steps."""
        found: torch.dtype = self.model.unet.dtype
        return found

    @property
    def unit(self) -> int:
        """The number of pixels of which a side must be a multiple for the VAE and the UNet."""
        return self.scale * 2 ** (len(self.model.unet.config.block_out_channels) - 1)

    def _padded(self, side: int) -> int:
        """Return the smallest side that the model takes and that is not smaller than ``side``, pixels."""
        return -(-side // self.unit) * self.unit

    def filled(self, pictures: Tensor) -> Tensor:
        """Return pictures ``[B, C, H, W]`` with sides that the model takes; the padding repeats the edge."""
        height, width = self._padded(pictures.shape[-2]), self._padded(pictures.shape[-1])
        return functional.pad(
            pictures, (0, width - pictures.shape[-1], 0, height - pictures.shape[-2]), mode="replicate"
        )

    def _checked(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None,
        start: Tensor | None,
        height: int | None,
        width: int | None,
        *,
        steps: int,
        guidance: float,
        strength: float,
    ) -> tuple[list[int], int, int]:
        """Check what :meth:`sample_latents` gets, and return the seeds, height and width."""
        check_whole("steps", steps, 1, 1000)
        check_number("guidance", guidance, 0, 50)
        check_number("strength", strength, 0, 1)
        if not prompts:
            raise invalid("prompts", list(prompts), "at least one")
        if start is not None:
            height = start.shape[-2] if height is None else height
            width = start.shape[-1] if width is None else width
        width = self.side if width is None else width
        height = self.side if height is None else height
        check_whole("width", width, 1, MAX_SIDE)
        check_whole("height", height, 1, MAX_SIDE)
        return check_seeds(seeds, len(prompts)), height, width

    def _noise(
        self, seeds: Sequence[int], shape: tuple[int, int, int]
    ) -> tuple[Tensor, list[torch.Generator]]:
        """Return noise ``[B, C, h, w]``, each picture's from its own seed, and the generators that made it."""
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        noise = torch.cat([torch.randn(1, *shape, generator=g) for g in generators])
        return noise.to(self.model.device, self.dtype), generators

    @torch.no_grad()
    def _words(
        self, prompts: list[str], negative: str, width: int, height: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode prompts of any length: return the context, uncond rows before cond rows, and SDXL's further
        inputs (pooled text and sizes; empty for other models)."""
        contexts, pooled = encode(self.model, [negative, *prompts])
        # All pictures have the same negative prompt.
        rows = [0] * len(prompts) + list(range(1, len(contexts)))
        context = stack(contexts)[rows]
        if pooled is None:
            return context, {}
        sizes = torch.tensor(
            [height, width, 0, 0, height, width], device=context.device, dtype=context.dtype
        ).expand(len(rows), 6)
        return context, {"text_embeds": pooled[rows], "time_ids": sizes}
