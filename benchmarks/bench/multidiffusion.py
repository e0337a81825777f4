"""Regions by blending whole predictions: baselines in which every region needs a pass of the model. They are
not part of the package."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.bench.scenes import Case
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Method, Run


class Rows(NamedTuple):
    """The rows of a batch: for every picture one row for the whole or the background, then one row for each
    object."""

    prompts: list[str]
    seeds: list[int]
    """Seeds of the rows; all rows of a picture have the picture's seed, so that they start from one noise."""
    picture: list[int]
    """Index of the row's picture, ascending."""
    masks: Tensor
    """Mask of the row's region, ``[R, H, W]``; all ones for the first row of a picture."""
    first: list[bool]
    """Whether the row is the first one of its picture."""


def region_rows(scenes: Sequence[Case], seeds: Sequence[int], base: bool, boxes: bool = False) -> Rows:
    """Return the rows of ``scenes``: the whole caption (``base``) or the background's words, then the
    objects, in their outlines or in the ``boxes`` around them."""
    rows = Rows([], [], [], torch.empty(0), [])
    masks = []
    for index, (scene, seed) in enumerate(zip(scenes, seeds, strict=True)):
        prompts = [scene.words if base else scene.background_words, *(t.words for t in scene.things)]
        rows.prompts.extend(prompts)
        rows.seeds.extend([seed] * len(prompts))
        rows.picture.extend([index] * len(prompts))
        rows.first.extend([True] + [False] * len(scene.things))
        masks += [torch.ones(1, *scene.masks.shape[1:]), scene.visible_boxes if boxes else scene.masks]
    return rows._replace(masks=torch.cat(masks))


class RegionFusion(Method):
    """Replace the rows of a picture after each step by their average, weighted by masks.

    Because a step is linear, and the rows of a picture draw the same fresh noise, this equals averaging the
    predictions. It covers two known methods:

    * ``hard``: MultiDiffusion (Bar-Tal et al., arXiv 2302.08113; github omerbt/MultiDiffusion
      ``region_based.py``): masks are cut at one half and the first row fills the places that no other covers.
      For the first ``bootstrapping`` steps the objects' rows get a plain random colour, at the step's noise
      level, outside their masks.
    * soft: the first row has weight 1 everywhere, the others ``strength`` times their mask, as ComfyUI
      averages conditionings with masks.
    """

    def __init__(
        self,
        rows: Rows,
        pipeline: LayeredDiffusionPipeline,
        *,
        hard: bool,
        bootstrapping: int = 0,
        strength: float = 1.0,
    ) -> None:
        self.picture, self.first = torch.tensor(rows.picture), torch.tensor(rows.first)
        cells = torch.stack([pipeline.latent_mask(m) for m in rows.masks])[:, None]
        device = cells.device
        self.picture, self.first = self.picture.to(device), self.first.to(device)
        later = ~self.first[:, None, None, None]
        if hard:
            objects = (cells > 0.5).to(cells) * later
            self.weights = torch.where(later, objects, (1 - self._sum(objects)[self.picture]).clamp_min(0))
        else:
            self.weights = torch.where(later, strength * cells, 1.0)
        self.bootstrapping, self.pipeline = bootstrapping, pipeline
        self.generator = torch.Generator().manual_seed(rows.seeds[0])

    def start(self, run: Run, stack: ExitStack) -> None:
        """Encode the plain colours, if any step needs them."""
        if self.bootstrapping:
            colours = torch.rand(16, 3, 1, 1, generator=self.generator)
            side = run.latents.shape[-1] * self.pipeline.scale, run.latents.shape[-2] * self.pipeline.scale
            self.plain = self.pipeline.encode(colours.expand(-1, -1, side[1], side[0]))

    def before_step(self, run: Run, index: int) -> None:
        """Put plain colours around the objects in the first ``bootstrapping`` steps."""
        if index < self.bootstrapping:
            chosen = torch.randint(len(self.plain), (len(run.latents),), generator=self.generator)
            noisy = run.scheduler.add_noise(
                self.plain[chosen.to(self.plain.device)], run.noise, run.timesteps[index].expand(len(chosen))
            )
            outside = ~self.first[:, None, None, None] & (self.weights == 0)
            run.latents = torch.where(outside, noisy, run.latents)

    def after_step(self, run: Run, index: int) -> None:
        """Average the rows; after the last step keep one row for each picture."""
        fused = self._sum(self.weights * run.latents) / self._sum(self.weights)
        run.latents = fused if index == len(run.timesteps) - 1 else fused[self.picture]

    def _sum(self, values: Tensor) -> Tensor:
        """Return the sum over the rows of each picture."""
        out = values.new_zeros(int(self.picture[-1]) + 1, *values.shape[1:])
        return out.index_add_(0, self.picture, values)


def multidiffusion(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    bootstrapping: float = 0.4,
    boxes: bool = False,
) -> Tensor:
    """Denoise every region by itself and average by hard masks at every step (Bar-Tal et al., arXiv
    2302.08113, region-based).

    ``bootstrapping``: share of the steps in which a foreground region has a plain colour around itself; the
    authors use 20 of 50 steps. ``boxes``: regions are the boxes around the objects.
    """
    rows = region_rows(scenes, seeds, base=False, boxes=boxes)
    fusion = RegionFusion(rows, pipeline, hard=True, bootstrapping=round(bootstrapping * steps))
    return pipeline.generate(rows.prompts, seeds=rows.seeds, steps=steps, guidance=guidance, methods=[fusion])


def prediction_blending(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    strength: float = 1.0,
    boxes: bool = False,
) -> Tensor:
    """Average predictions as ComfyUI's ConditioningSetMask and Combine do: of the caption everywhere and of
    each region's words inside the region.

    ``strength``: weight of a region against the caption. ``boxes``: as in :func:`multidiffusion`.
    """
    rows = region_rows(scenes, seeds, base=True, boxes=boxes)
    fusion = RegionFusion(rows, pipeline, hard=False, strength=strength)
    return pipeline.generate(rows.prompts, seeds=rows.seeds, steps=steps, guidance=guidance, methods=[fusion])
