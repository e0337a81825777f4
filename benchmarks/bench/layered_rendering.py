"""Layered rendering as a method of the bench, and two readings of it by others that the package does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.multidiffusion import Rows, region_rows
from benchmarks.bench.scenes import Case
from layered_core.attention.regional_plan import Settings
from layered_core.errors import invalid
from layered_core.noise.window import sigma_at
from layered_core.rendering.rendering_plan import Rendering
from layered_core.rendering.vision_guidance import fuse, mean_over, strongest_cells
from layered_diffusers.methods import layered_rendering as product
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import AnyRun, Method, Run


def layered_rendering(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    boxes: bool = False,
    then: Mapping[str, Any] | None = None,
    rendering: Mapping[str, Any] | None = None,
    weights: str = "masks",
) -> Tensor:
    """Lead each layer to its place while the picture is forming: ``LayeredDiffusionPipeline.layered_rendering``.

    ``then``: fields of ``layered_core.attention.regional_plan.Settings`` for the regional prompts that follow;
    None: the caption alone follows. ``rendering``: fields of
    ``layered_core.rendering.rendering_plan.Rendering``. ``boxes``: the layers are as large as the boxes around the
    objects. ``weights``: ``masks``, or ``area``: the layers' predictions are fused everywhere in proportion to the
    layers' areas, as an unofficial implementation of the paper reads its equation 8b (UNets only).
    """
    if weights not in ("masks", "area"):
        raise invalid("weights", weights, "masks, area")
    documents = [s.boxes if boxes else s.scene.document() for s in scenes]
    words = [s.words for s in scenes]
    later = None if then is None else pipeline.regional_prompts(documents, Settings(**then), prompts=words)
    method = pipeline.layered_rendering(documents, Rendering(**(rendering or {})), prompts=words, then=later)
    if weights == "area":
        method = ByArea(
            pipeline.model, pipeline.encode, documents, method.rendering, prompts=words, then=later
        )
    return pipeline.generate(method.prompts, seeds=seeds, steps=steps, guidance=guidance, methods=[method])


class ByArea(product.LayeredRendering):
    """Layered rendering whose predictions are fused by numbers that carry no place."""

    def _laid_out(self, run: AnyRun) -> product.Rows:
        rows = super()._laid_out(run)
        self._places = rows.masks
        return replace(rows, masks=rows.masks.mean((1, 2), keepdim=True).expand_as(rows.masks))

    def _planted(self, run: AnyRun, ask: Callable[[Sequence[str], Tensor], Tensor], sign: float) -> Tensor:
        areas, self.rows.masks = self.rows.masks, self._places
        planted = super()._planted(run, ask, sign)
        self.rows.masks = areas
        return planted


def published_rendering(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    colour: str = "constant",
    share: float = 0.3,
    inside: float = 0.05,
    outside: float = 0.2,
) -> Tensor:
    """Make pictures by the scheme of the authors' code (``LRDiff.py`` of LRDiff): every part of
    a picture goes its own way for the first ``share`` of the steps, then they are pasted together by their masks
    and the caption alone goes on. What is planted is added to the first latents, and again, divided by
    ``sigma^2 + 1``, after each of the next five steps.

    ``colour``: ``constant`` (white) or ``noise`` (the mean of the noise where the words act). ``inside``,
    ``outside``: factors on it inside and outside an object's mask.
    """
    if colour not in ("constant", "noise"):
        raise invalid("colour", colour, "constant, noise")
    rows = region_rows(scenes, seeds, base=False)
    method = _Published(pipeline, rows, [s.words for s in scenes], colour, share, inside, outside)
    return pipeline.generate(rows.prompts, seeds=rows.seeds, steps=steps, guidance=guidance, methods=[method])


class _Published(Method):
    """The scheme of :func:`published_rendering`. The run begins with a row for every part."""

    def __init__(
        self,
        pipeline: LayeredDiffusionPipeline,
        rows: Rows,
        captions: Sequence[str],
        colour: str,
        share: float,
        inside: float,
        outside: float,
    ) -> None:
        self.pipeline, self.captions, self.colour, self.share = pipeline, captions, colour, share
        cells = torch.stack([pipeline.latent_mask(m) for m in rows.masks])
        self.picture = torch.tensor(rows.picture, device=cells.device)
        self.first = torch.tensor(rows.first, device=cells.device)
        objects = cells * ~self.first[:, None, None]
        rest = cells.new_zeros(int(self.picture[-1]) + 1, *cells.shape[1:])
        rest.index_add_(0, self.picture, objects)
        self.masks = torch.where(self.first[:, None, None], (1 - rest[self.picture]).clamp_min(0), objects)
        shift = inside * objects - outside * (1 - objects)
        self.shift = (shift * ~self.first[:, None, None])[:, None]

    def start(self, run: Run, stack: ExitStack) -> None:
        """Plant the colours in the first latents."""
        self.switch = max(1, round(self.share * len(run.timesteps)))
        self.planted = self._colours(run)[..., None, None] * self.shift
        run.latents = run.latents + self.planted * (self._sigma(run, 0) ** 2 + 1) ** 0.5

    def after_step(self, run: Run, index: int) -> None:
        """Plant again; at the end of the share paste the parts together."""
        if index < min(self.switch - 1, 5):
            run.latents = run.latents + self.planted / (self._sigma(run, index + 1) ** 2 + 1) ** 0.5
        if index == self.switch - 1:
            run.latents = fuse(run.latents, self.masks, self.picture)
            kept = self.first.nonzero()[:, 0]
            run.noise = run.noise[kept]
            run.generators = [run.generators[i] for i in kept.tolist()]
            side = run.latents.shape[-1] * self.pipeline.scale, run.latents.shape[-2] * self.pipeline.scale
            run.context, run.added = self.pipeline._words(list(self.captions), "", *side)

    def _colours(self, run: Run) -> Tensor:
        scaled = run.scheduler.scale_model_input(run.latents, run.timesteps[0])
        if self.colour == "constant":
            white = torch.ones(
                1, 3, scaled.shape[-2] * self.pipeline.scale, scaled.shape[-1] * self.pipeline.scale
            )
            return self.pipeline.encode(white).mean((2, 3)).expand(len(scaled), -1)
        words = run.unet(scaled, run.timesteps[0], run.context.chunk(2)[1]).sample
        empty = run.unet(scaled, run.timesteps[0], run.context.chunk(2)[0]).sample
        return mean_over(scaled, strongest_cells(words - empty))

    def _sigma(self, run: Run, index: int) -> float:
        return sigma_at(run.scheduler.alphas_cumprod, float(run.timesteps[index]))
