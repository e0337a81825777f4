"""The inpainter of this project: the pipeline paints what is behind things."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from layered_diffusers.dataset.protocols import Picture

if TYPE_CHECKING:
    from layered_diffusers.pipeline import LayeredDiffusionPipeline
    from layered_diffusers.sampling import Sampling


class Painted:
    """Paints holes as a stage paints a region: with the model of a pipeline, which is loaded when it is first used."""

    def __init__(
        self,
        pipeline: Callable[[], LayeredDiffusionPipeline],
        *,
        seed: int = 0,
        feather: int = 8,
        model: str = "storybook",
        sampling: Sampling | None = None,
    ) -> None:
        """Take a function that loads the pipeline, the ``seed`` of the noise, the width of the soft border inside holes
        in pixels, the model's name for records, and options of :meth:`Generator.generate`."""
        self.load, self.seed, self.feather = pipeline, seed, feather
        self.sampling: Sampling = {} if sampling is None else sampling
        self.about = {"model": model}

    def fill(self, picture: Picture, hole: Tensor, words: str) -> Tensor:
        """Return the picture with the hole painted. A part of it that is larger than the hole is cut out where the
        picture is larger than the model's own."""
        pipeline = self.load()
        side = pipeline.side if max(picture.size) > pipeline.side else 0
        plan = pipeline.stage_plan(
            picture.pixels.float(), (hole > 0.5).float(), feather=self.feather, side=side
        )
        return pipeline.repaint(plan, words, seed=self.seed, **self.sampling).clamp(0, 1)
