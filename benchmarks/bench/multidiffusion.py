"""Regions by blending whole predictions: the ways that every region costs a pass of the model. Baselines, not
part of the package."""

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
    """The passes that a batch of pictures takes: for every picture one for the whole or its background, then
    one an object."""

    prompts: list[str]
    seeds: list[int]
    """A picture's own, in all of its rows: they begin as one."""
    picture: list[int]
    """Which picture the row belongs to, rising."""
    masks: Tensor
    """Where the row counts, ``[R, H, W]``; for the first row of a picture everywhere."""
    first: list[bool]
    """Whether it is the first row of its picture."""


def region_rows(scenes: Sequence[Case], seeds: Sequence[int], base: bool) -> Rows:
    """Rows of ``scenes``: the whole caption (``base``) or the background's words, then the bare objects."""
    rows = Rows([], [], [], torch.empty(0), [])
    masks = []
    for index, (scene, seed) in enumerate(zip(scenes, seeds, strict=True)):
        prompts = [scene.words if base else scene.background_words, *(t.words for t in scene.things)]
        rows.prompts.extend(prompts)
        rows.seeds.extend([seed] * len(prompts))
        rows.picture.extend([index] * len(prompts))
        rows.first.extend([True] + [False] * len(scene.things))
        masks += [torch.ones(1, *scene.masks.shape[1:]), scene.masks]
    return rows._replace(masks=torch.cat(masks))


class RegionFusion(Method):
    """After each step, the rows of a picture become their average, weighted by masks.

    As a step is linear, and the rows of a picture draw the same fresh noise, this is the same as averaging
    the predictions. Two known methods:

    * ``hard``: MultiDiffusion (Bar-Tal et al., arXiv 2302.08113; github omerbt/MultiDiffusion
      ``region_based.py``): masks cut at one half, the first row has what no other covers; for the first
      ``bootstrapping`` steps the objects' rows see, outside their masks, a plain random colour at the step's
      noise.
    * soft: the first row counts 1 everywhere, the others ``strength`` times their mask, as ComfyUI averages
      conditionings with masks.
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
        """See the class."""
        if self.bootstrapping:
            colours = torch.rand(16, 3, 1, 1, generator=self.generator)
            side = run.latents.shape[-1] * self.pipeline.scale, run.latents.shape[-2] * self.pipeline.scale
            self.plain = self.pipeline.encode(colours.expand(-1, -1, side[1], side[0]))

    def before_step(self, run: Run, index: int) -> None:
        """Put plain colours around the objects while bootstrapping."""
        if index < self.bootstrapping:
            chosen = torch.randint(len(self.plain), (len(run.latents),), generator=self.generator)
            noisy = run.scheduler.add_noise(
                self.plain[chosen.to(self.plain.device)], run.noise, run.timesteps[index].expand(len(chosen))
            )
            outside = ~self.first[:, None, None, None] & (self.weights == 0)
            run.latents = torch.where(outside, noisy, run.latents)

    def after_step(self, run: Run, index: int) -> None:
        """Average; after the last step one row a picture is left."""
        fused = self._sum(self.weights * run.latents) / self._sum(self.weights)
        run.latents = fused if index == len(run.timesteps) - 1 else fused[self.picture]

    def _sum(self, values: Tensor) -> Tensor:
        """Sum the rows of each picture."""
        out = values.new_zeros(int(self.picture[-1]) + 1, *values.shape[1:])
        return out.index_add_(0, self.picture, values)
