"""Layered rendering as a method of the bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from benchmarks.bench.scenes import Case
from layered_core.attention.regional_plan import Settings
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers.pipeline import LayeredDiffusionPipeline


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
) -> Tensor:
    """Lead each layer to its place while the picture is forming: ``LayeredDiffusionPipeline.layered_rendering``.

    ``then``: fields of ``layered_core.attention.regional_plan.Settings`` for the regional prompts that follow;
    None: the caption alone follows. ``rendering``: fields of
    ``layered_core.rendering.rendering_plan.Rendering``. ``boxes``: the layers are as large as the boxes around the
    objects.
    """
    documents = [s.boxes if boxes else s.scene.document() for s in scenes]
    words = [s.words for s in scenes]
    later = None if then is None else pipeline.regional_prompts(documents, Settings(**then), prompts=words)
    method = pipeline.layered_rendering(documents, Rendering(**(rendering or {})), prompts=words, then=later)
    return pipeline.generate(method.prompts, seeds=seeds, steps=steps, guidance=guidance, methods=[method])
