"""Build a document layer by layer: each layer without a picture is a stage, painted onto the composite of the
layers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch

from layered_core.canvas.compositing import flat
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError, invalid
from layered_core.painting.mattes import stage_alpha, uncovered
from layered_core.painting.pasting import BLENDS
from layered_core.painting.stages import (
    ALPHAS,
    DRAFT_STRENGTH,
    StagePlan,
    draft_steps,
    plan_stage,
    with_stage,
)
from layered_diffusers.models.adapters import adapted
from layered_diffusers.sampling import JoinedProgress, Method, Progress
from layered_diffusers.transparent import generate_in_place, read_files

if TYPE_CHECKING:
    from diffusers import ControlNetModel
    from typing_extensions import Unpack

    from layered_diffusers.generator import Generator
    from layered_diffusers.sampling import Sampling


class Staging(TypedDict, total=False):
    """Options of :func:`generate_layers`."""

    seed: int
    """Base seed, 0..2**63-1. Each layer's seed is derived from it and the layer's name, unless its recipe has
    one, so that redoing or adding a layer does not change the noise of the others."""
    alpha: str
    """Where a new layer is opaque: ``difference`` (where the picture changed), ``mask`` (where it was allowed
    to change), or ``transparent`` (LayerDiffuse makes it alone, with alpha of its own, and it is moved to its
    place). The layer at the very back is always opaque."""
    file: str | Path | None
    """With ``transparent``: as in :func:`layered_diffusers.transparent.generate_transparent`; the same for
    ``decoder``."""
    decoder: str | Path | None
    feather: int
    """As in :meth:`LayeredDiffusionPipeline.add_layer`; the same for ``size``, ``context`` and ``blend``."""
    size: int
    context: float
    blend: str
    control: ControlNetModel | None
    """An inpainting ControlNet, as in :meth:`LayeredDiffusionPipeline.add_layer`."""
    adapters: Path | None
    """Folder of the LoRAs and embeddings that recipes name. They act only while their own layer is made."""
    negative: str
    """Negative prompt of layers without their own. It and the rest are as in
    :meth:`LayeredDiffusionPipeline.generate`."""
    steps: int
    guidance: float | None
    """Classifier-free guidance, 0..50. None: as each layer's kind needs it, see
    :class:`~layered_diffusers.transparent.Painting` for ``transparent``."""
    methods: Sequence[Method]
    progress: Progress | None
    """Called with the steps of all stages counted together."""


def generate_layers(
    pipeline: Generator, document: LayerDocument, **options: Unpack[Staging]
) -> LayerDocument:
    """Generate every layer that has no picture yet, back to front, each on the composite of those behind it.

    The layer at the very back is made from its prompt alone. For a layer whose box is the whole canvas and
    that has something behind it, :meth:`Generator.find_region` chooses the place. Outside a layer's box or
    mask the picture stays exactly as it is.

    Args:
        pipeline: samples with the model.
        document: its layers with a box or mask and a prompt are made; those with a picture, and hidden ones,
            stay.
        options: see :class:`Staging`.

    Raises:
        LayeredError: a layer to be made has no prompt or lies off the canvas, or a value is out of range; the
            text names the layer.
    """
    alpha, progress = options.get("alpha", ALPHAS[0]), options.pop("progress", None)
    if alpha not in ALPHAS:
        raise invalid("alpha", alpha, ", ".join(ALPHAS))
    if alpha == "transparent":
        read_files(
            pipeline.model, options.get("file"), options.get("decoder")
        )  # raises its errors before anything is sampled
    names = [x.name for x in document if x.image is None and x.visible]
    for name in names:
        if not document.layer(name).prompt:
            raise invalid(
                f"layer {name!r}: prompt",
                "",
                "words that say what the layer shows",
                "The layer has no picture, so it is to be generated: give it a prompt",
            )
    seed, steps = options.get("seed", 0), options.get("steps", 25)
    costs = {name: _cost(plan_stage(document, document.layer(name), seed), steps) for name in names}
    done = 0
    for name in names:
        plan = plan_stage(document, document.layer(name), seed)
        options["progress"] = JoinedProgress(progress, sum(costs.values()), done)
        try:
            document = document.with_layer(_stage(pipeline, plan, options))
        except LayeredError as error:
            raise LayeredError(f"layer {name!r}: {error}") from error
        done += costs[name]
    return document


def replace_layer(
    pipeline: Generator,
    document: LayerDocument,
    name: str,
    *,
    prompt: str | None = None,
    later: bool = False,
    **options: Unpack[Staging],
) -> LayerDocument:
    """Generate one layer again in its box, on the composite of the layers behind it.

    Args:
        pipeline: samples with the model.
        document: its layers have pictures.
        name: name of the layer.
        prompt: new prompt, or None for the layer's own.
        later: also generate the layers in front of it again, if they have a prompt and are visible. Otherwise
            they stay as they are.
        options: see :class:`Staging`. Give the layer another ``recipe.seed`` to get another picture from the
            same prompt.

    Raises:
        LayeredError: there is no such layer (the text lists the names), or it is hidden.
    """
    layer = document.layer(name)
    if not layer.visible:
        raise invalid(f"layer {name!r}: visible", False, "True", "Show it: hidden layers are not generated")
    index = document.layers.index(layer)
    layers = [
        *document.layers[:index],
        replace(layer, image=None, prompt=layer.prompt if prompt is None else prompt),
    ]
    layers += [
        replace(x, image=None) if later and x.prompt and x.visible else x
        for x in document.layers[index + 1 :]
    ]
    return generate_layers(pipeline, replace(document, layers=tuple(layers)), **options)


def _stage(pipeline: Generator, plan: StagePlan, options: Staging) -> Layer:
    """Generate one layer and return it with its picture."""
    layer, seed = plan.layer, plan.seed
    sampling: Sampling = {
        "negative": layer.negative or options.get("negative", ""),
        "steps": options.get("steps", 25),
        "guidance": options.get("guidance"),
        "methods": options.get("methods", ()),
        "progress": options.get("progress"),
    }
    with adapted(pipeline.model, layer.recipe, options.get("adapters")) as words:
        prompt = words + layer.prompt
        if plan.is_first:
            width, height = plan.behind.width, plan.behind.height
            made = pipeline.generate([prompt], seeds=[seed], width=width, height=height, **sampling)[0]
            return with_stage(layer, torch.cat([made, plan.region[None]]).permute(1, 2, 0))
        before, region = flat(plan.behind), plan.region
        if plan.finds_place:
            region = pipeline.find_region(before, prompt, seed=seed, **sampling)
        alpha, side = options.get("alpha", ALPHAS[0]), options.get("size", 0)
        if alpha == "transparent":
            file, decoder = options.get("file"), options.get("decoder")
            painted = generate_in_place(
                pipeline, prompt, region, seed=seed, size=side, file=file, decoder=decoder, **sampling
            )
            return with_stage(layer, painted)
        part = pipeline.stage_plan(
            before,
            region,
            feather=options.get("feather", 8),
            side=side,
            context=options.get("context", 0.5),
        )
        blend, control = options.get("blend", BLENDS[0]), options.get("control")
        after = pipeline.repaint(part, prompt, seed=seed, blend=blend, control=control, **sampling)
    return with_stage(layer, uncovered(before, after, stage_alpha(before, after, part.mask, alpha)))


def _cost(plan: StagePlan, steps: int) -> int:
    """Return the sampling steps of a stage whose layers behind are all made by then: a draft's too, where it
    has to find a place."""
    is_first = plan.behind.background is None and not any(x.visible for x in plan.behind)
    drafts = plan.place is None and not is_first
    return steps + (round(draft_steps(steps) * DRAFT_STRENGTH) if drafts else 0)
