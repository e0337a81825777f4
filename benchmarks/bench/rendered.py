"""``layered render`` as a method of the bench."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.bench.scenes import Case
from layered_diffusers.pipeline import PLACES, LayeredDiffusionPipeline


def render(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    strength: float = 0.4,
    places: bool = True,
    boxes: bool = False,
) -> Tensor:
    """Redraw the collage by ``LayeredDiffusionPipeline.render`` at ``strength``.

    ``places``: each layer's words act in its place, else in the whole picture. ``boxes``: the layers have words
    alone, and are as large as the boxes around the objects.
    """
    pictures = []
    for scene, seed in zip(scenes, seeds, strict=True):
        image = pipeline.render(
            scene.boxes if boxes else scene.collage,
            seed=seed,
            strength=strength,
            attention=PLACES if places else None,
            steps=steps,
            guidance=guidance,
        )
        pictures.append(pixels(image))
    return torch.stack(pictures)


def pixels(image: Image.Image) -> Tensor:
    """Return a Pillow image as ``[3, H, W]`` in 0..1."""
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)
