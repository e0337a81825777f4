"""LoRAs of layers as a method of the bench, and what their looks are measured by.

In every scene the first object is the one that a layer's LoRA is to turn pink, and the second the one that another's
is to stripe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bench.scenes import Case
from demo.world.judge import Verdict
from demo.world.looks import LOOKS, is_stripe
from demo.world.places import LORAS
from demo.world.vocabulary import COLOURS
from layered_core.attention.regional_plan import Settings
from layered_core.document import Layer, LayerDocument, Lora, Recipe
from layered_core.errors import invalid
from layered_core.metrics.layout_metrics import region_labels
from layered_diffusers.methods.layer_loras import DocumentLoras, UNetLoras
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Method, Run

OWNERS = dict(zip(LOOKS, range(len(LOOKS)), strict=True))
"""Number of the object that has each look."""


def layer_loras(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    looks: Sequence[str] = (),
    everywhere: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Tensor:
    """Make each layer's words act in its place, with LoRAs.

    ``looks``: of :data:`demo.world.looks.LOOKS`; each acts in its own object's layer, or, ``everywhere``, as a LoRA
    that is loaded for the whole picture. ``settings``: fields of
    ``layered_core.attention.regional_plan.Settings``.
    """
    prompts, methods = acting(pipeline, scenes, looks, everywhere, settings or {})
    return pipeline.generate(prompts, seeds=seeds, steps=steps, guidance=guidance, methods=methods)


def acting(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    looks: Sequence[str],
    everywhere: bool,
    settings: Mapping[str, Any],
) -> tuple[list[str], list[Method]]:
    """Return the prompts and methods of :func:`layer_loras`."""
    for look in looks:
        if look not in LOOKS:
            raise invalid("looks", look, ", ".join(LOOKS))
    documents = []
    for scene in scenes:
        drawn = scene.scene.document()
        layers = list(drawn.layers)
        for look in () if everywhere else looks:
            layer = layers[1 + OWNERS[look]]  # the first layer is the landscape
            layers[1 + OWNERS[look]] = replace(layer, recipe=replace(layer.recipe, loras=(Lora(look),)))
        documents.append(replace(drawn, layers=tuple(layers)))
    regional = pipeline.regional_prompts(
        documents, Settings(**settings), prompts=[s.words for s in scenes], adapters=LORAS
    )
    return regional.prompts, [regional, *([Loaded(pipeline, looks)] if everywhere else [])]


class Loaded(Method):
    """LoRAs that act on the whole of all pictures and on all words, as if they were loaded into the model."""

    def __init__(self, pipeline: LayeredDiffusionPipeline, looks: Sequence[str]) -> None:
        layer = Layer("all", width=1, height=1, recipe=Recipe(loras=tuple(Lora(look) for look in looks)))
        self.loras = DocumentLoras(pipeline.model, [LayerDocument(1, 1, (layer,))], LORAS)

    def start(self, run: Run, stack: ExitStack) -> None:
        """Change the UNet until ``stack`` closes."""
        UNetLoras(self.loras, run, None).start(stack)


def look_figures(case: Case, picture: Tensor, verdict: Verdict) -> dict[str, float]:
    """Compute how much of each look the picture ``[3, H, W]`` shows, in its own object and in the other objects, and
    whether the judge sees the colours that the words name. Empty for scenes with one object."""
    if len(case.things) < 2:
        return {}
    shown = {
        "pink": [pink_share(picture, m) for m in case.masks],
        "striped": [stripes(picture, m) for m in case.masks],
    }
    figures = {}
    for look, found in shown.items():
        own = OWNERS[look]
        figures[f"{look}_inside"] = found[own]
        figures[f"{look}_outside"] = float(np.nanmean([x for i, x in enumerate(found) if i != own]))
    colours = torch.zeros(64, 64, dtype=torch.int64)
    names = list(COLOURS)
    for item in verdict.objects:
        colours[item.mask] = 1 + names.index(item.colour)
    regions = nn.functional.avg_pool2d(case.masks[None], 2)[0] > 0.5
    wanted = torch.tensor([1 + names.index(t.colour) for t in case.things])
    right = (region_labels(colours, regions) == wanted).float()
    return figures | {"colour_inside": float(right[0]), "colour_outside": float(right[1:].mean())}


def pink_share(picture: Tensor, mask: Tensor) -> float:
    """Return the share of a mask's pixels ``[H, W]`` that are pink, which no colour of the storybook is."""
    red, green, blue = picture
    pink = (red > 0.6) & (red - green > 0.15) & (blue - green > 0.08) & (red - blue > 0.04)
    return float(pink[mask > 0.5].float().mean())


def stripes(picture: Tensor, mask: Tensor) -> float:
    """Return how much darker the rows of stripes are than the rows between them, in a mask ``[H, W]``, 0..1."""
    grey = picture.mean(0)
    dark = torch.from_numpy(is_stripe(np.arange(picture.shape[1])))[:, None].expand_as(mask)
    inside = mask > 0.5
    return float(grey[inside & ~dark].mean() - grey[inside & dark].mean())
