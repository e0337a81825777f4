"""The methods that a suite can name. Each makes one picture for each scene of a batch, ``[B, 3, H, W]`` in
0..1, or one layer, ``[B, 4, H, W]``.

A method takes the pipeline, the scenes, and as keywords ``seeds`` (one for each scene), ``steps`` and
``guidance``; its other keywords are the parameters that a suite can set. To add a method, write a function
here and put ``@method`` over it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.bench.joined_texts import joined_texts
from benchmarks.bench.layered_rendering import layered_rendering, published_rendering
from benchmarks.bench.learning import class_word, learnt_layer_noise, learnt_word, nearest_word
from benchmarks.bench.looks import layer_loras
from benchmarks.bench.multidiffusion import multidiffusion, prediction_blending
from benchmarks.bench.rendered import pixels, render
from benchmarks.bench.scenes import Case
from demo.world.judge import Judge
from layered_core.attention.regional_plan import Settings
from layered_core.canvas.compositing import composite
from layered_core.control.control_map import ControlMap
from layered_core.control.hints import document_hint
from layered_core.document import Control, Layer, LayerDocument
from layered_core.errors import invalid
from layered_diffusers.methods.masked_control import MaskedControl, load_controlnet
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import KeepOutside

Pictures = Callable[..., Tensor]

METHODS: dict[str, Pictures] = {}
"""Every method by the name that suites use."""

_SHARED = ("pipeline", "scenes", "seeds", "steps", "guidance")


def method(function: Pictures) -> Pictures:
    """Register a method under its function's name."""
    METHODS[function.__name__] = function
    return function


for _function in (
    class_word,
    joined_texts,
    layer_loras,
    layered_rendering,
    learnt_layer_noise,
    learnt_word,
    multidiffusion,
    nearest_word,
    prediction_blending,
    published_rendering,
    render,
):
    method(_function)


def check_method(where: str, name: object, parameters: Mapping[str, object]) -> None:
    """Raise :class:`LayeredError` unless there is a method of that name that takes those parameters."""
    if not isinstance(name, str) or name not in METHODS:
        raise invalid(f"{where}: method", name, ", ".join(sorted(METHODS)))
    taken = [p for p in inspect.signature(METHODS[name]).parameters if p not in _SHARED]
    for parameter in parameters:
        if parameter not in taken:
            raise invalid(
                f"{where}: parameter of {name}", parameter, ", ".join(taken) or "none: it takes no parameter"
            )


# --- pictures without a model ---


@method
def native(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """Return the scene as drawn: no method can get better figures from the judge."""
    return torch.stack([s.picture for s in scenes])


@method
def native_through_vae(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """Return the scene as drawn, encoded and decoded: the best that the model could make."""
    return pipeline.decode(pipeline.encode(torch.stack([s.picture for s in scenes])))


@method
def pasted_composite(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """Return the composite of the collage, without a model: its layout is right, its harmony wrong."""
    return torch.stack([s.start for s in scenes])


@method
def picture_before(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """Return the picture that is to be changed, unchanged."""
    return torch.stack([s.picture_before for s in scenes])


# --- whole pictures ---


@method
def plain_prompt(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """Generate from the caption alone."""
    return pipeline.generate([s.words for s in scenes], seeds=seeds, steps=steps, guidance=guidance)


@method
def global_sdedit(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    strength: float,
) -> Tensor:
    """Add noise to the collage's composite up to ``strength`` and redraw it with the caption (SDEdit, arXiv
    2108.01073)."""
    start = torch.stack([s.start for s in scenes])
    return pipeline.generate(
        [s.words for s in scenes], seeds=seeds, steps=steps, guidance=guidance, start=start, strength=strength
    )


# --- changing one thing ---


@method
def redo_sdedit(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    strength: float,
) -> Tensor:
    """Add noise to the whole picture up to ``strength`` and redraw it with the new caption."""
    start = torch.stack([s.picture_before for s in scenes])
    return pipeline.generate(
        [s.words for s in scenes], seeds=seeds, steps=steps, guidance=guidance, start=start, strength=strength
    )


@method
def redo_latents(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    strength: float = 1.0,
) -> Tensor:
    """Blended latent diffusion inside the mask without pasting back (arXiv 2206.02779): all pixels pass
    through the VAE."""
    before = torch.stack([s.picture_before for s in scenes])
    cells = torch.stack([pipeline.latent_mask(s.change_mask) for s in scenes])[:, None]
    words = [s.things[s.changed].words for s in scenes if s.changed is not None]
    kept = KeepOutside(pipeline.encode(before), cells)
    return pipeline.generate(
        words, seeds=seeds, steps=steps, guidance=guidance, start=before, strength=strength, methods=[kept]
    )


@method
def redo_repaint(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    strength: float = 1.0,
    feather: int = 8,
    size: int = 0,
    blend: str = "gradient",
) -> Tensor:
    """Repaint the mask as ``LayeredDiffusionPipeline.add_layer`` does; ``strength``, ``feather``, ``size``
    and ``blend`` are that method's."""
    pictures = []
    for scene, seed in zip(scenes, seeds, strict=True):
        assert scene.changed is not None
        plan = pipeline.stage_plan(scene.picture_before, scene.change_mask, feather=feather, side=size)
        words = scene.things[scene.changed].words
        pictures.append(
            pipeline.repaint(
                plan, words, seed=seed, strength=strength, blend=blend, steps=steps, guidance=guidance
            )
        )
    return torch.stack(pictures)


# --- layers ---


@method
def layer_noise(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    objects: float,
    landscape: float = 0.0,
    blur: float = 0.0,
    threshold: str = "absolute",
    attention: str | None = None,
) -> Tensor:
    """Harmonise the collage by ``LayeredDiffusionPipeline.harmonize``; ``objects`` and ``landscape`` say how
    far each may change, 0 to 1.

    ``attention``: a mode of :func:`regional_prompts` to use as well.
    """
    pictures = []
    for scene, seed in zip(scenes, seeds, strict=True):
        document = scene.collage.with_noise(objects).with_noise({scene.collage.layers[0].name: landscape})
        words = [] if attention is None else [pipeline.regional_prompts([document], Settings(mode=attention))]
        image = pipeline.harmonize(
            document,
            seed=seed,
            blur=blur,
            threshold=threshold,
            methods=words,
            attention=None,
            steps=steps,
            guidance=guidance,
        )
        pictures.append(pixels(image))
    return torch.stack(pictures)


@method
def regional_prompts(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    mode: str = "regions",
    inside: float = 1.0,
    outside: float = 1.0,
    strength: float = 1.0,
    boxes: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Tensor:
    """Make each layer's words act where the layer is visible, in one pass of the model.

    ``mode``: one of :data:`layered_core.attention.regional_plan.REGION_MODES`. ``inside``, ``outside``: the
    strengths of every layer. ``strength`` below 1: start from the collage's composite, as
    :func:`global_sdedit`. ``boxes``: the layers are as large as the boxes around the objects.
    ``settings``: other fields of ``layered_core.attention.regional_plan.Settings``.
    """
    documents = []
    for scene in scenes:
        drawn = scene.boxes if boxes else scene.scene.document()
        layers = [replace(x, recipe=replace(x.recipe, inside=inside, outside=outside)) for x in drawn]
        documents.append(replace(drawn, layers=tuple(layers)))
    chosen, words = Settings(mode=mode, **(settings or {})), [s.words for s in scenes]
    regional = pipeline.regional_prompts(documents, chosen, prompts=words)
    start = torch.stack([s.start for s in scenes]) if strength < 1 else None
    return pipeline.generate(
        regional.prompts, seeds=seeds, steps=steps, guidance=guidance, start=start, strength=strength,
        methods=[regional]
    )  # fmt: skip


@method
def masked_control(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    strength: float = 1.0,
    where: str = "everywhere",
    mode: str = "balanced",
) -> Tensor:
    """Control the picture by the edges of the scene drawn as one, with the storybook's ControlNet:
    ``MaskedControl``.

    ``where``: the control acts ``everywhere``, or in the ``first`` object alone. With ``drawn`` it acts in
    the first object too, but the hint is drawn from that layer alone, as a user's would be.
    """
    if where not in ("everywhere", "first", "drawn"):
        raise invalid("where", where, "everywhere, first, drawn")
    net = load_controlnet(device=pipeline.model.device, dtype=pipeline.model.unet.dtype)
    pictures = []
    for scene, seed in zip(scenes, seeds, strict=True):
        hint, control = scene.edges.float().expand(3, -1, -1), Control(hint="canny", strength=strength)
        control_map = ControlMap(torch.ones(1, *hint.shape[1:]), (control,), mode)
        if where != "everywhere":
            drawn = scene.scene.document()
            first = replace(drawn.layers[1], recipe=replace(drawn.layers[1].recipe, control=control))
            document = replace(drawn, layers=(drawn.layers[0], first, *drawn.layers[2:]))
            control_map = ControlMap.of(document, mode=mode)
            hint = document_hint(document, outline=True) if where == "drawn" else hint
        controlled = MaskedControl(net, hint, control_map)
        pictures.append(
            pipeline.generate(
                [scene.words], seeds=[seed], steps=steps, guidance=guidance, methods=[controlled]
            )[0]
        )
    return torch.stack(pictures)


@method
def stages(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    masks: str = "boxes",
    feather: int = 8,
    size: int = 0,
) -> Tensor:
    """Make the background from its words, then one object after another, by
    ``LayeredDiffusionPipeline.generate_layers``.

    ``masks``: ``boxes`` around the objects as a user would draw them, or their exact ``outlines``.
    ``feather`` and ``size`` are those of ``generate_layers``.
    """
    if masks not in ("boxes", "outlines"):
        raise invalid("masks", masks, "boxes, outlines")
    pictures = []
    for scene, seed in zip(scenes, seeds, strict=True):
        side = scene.scene.size
        layers = [Layer("landscape", prompt=scene.background_words, width=side, height=side)]
        for number, (thing, region) in enumerate(
            zip(scene.things, scene.box_masks if masks == "boxes" else scene.masks, strict=True)
        ):
            layers.append(Layer(f"object {number + 1}", mask=region, prompt=thing.words))
        document = LayerDocument(side, side, tuple(layers))
        done = pipeline.generate_layers(
            document, seed=seed, steps=steps, guidance=guidance, feather=feather, size=size
        )
        pictures.append(composite(done)[..., :3].permute(2, 0, 1))
    return torch.stack(pictures)


# --- transparent layers ---


@method
def drawn_layer(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """Return the object as drawn, RGBA: no method can get better figures from the judge."""
    return torch.stack([s.sprite for s in scenes])


@method
def transparent_layer(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    weight: float = 1.0,
    augmentations: int = 8,
) -> Tensor:
    """Make the object alone from its words, RGBA, by ``LayeredDiffusionPipeline.generate_transparent``."""
    words = [s.things[0].words for s in scenes]
    return pipeline.generate_transparent(
        words, seeds=seeds, steps=steps, guidance=guidance, weight=weight, augmentations=augmentations
    )


@method
def cut_out(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """Make the whole picture from its caption and cut the object out along a segmenter's mask, RGBA. The
    segmenter is the judge itself, so the figures are too good."""
    pictures = plain_prompt(pipeline, scenes, seeds=seeds, steps=steps, guidance=guidance)
    layers = []
    for scene, picture, verdict in zip(scenes, pictures, Judge.load().look(pictures), strict=True):
        thing = scene.things[0]
        masks = [f.mask.float() for f in verdict.objects if f.thing == (thing.colour, thing.kind)] or [
            torch.zeros(1, 1)
        ]
        layers.append(
            torch.cat([picture, functional.interpolate(masks[0][None, None], picture.shape[1:])[0]])
        )
    return torch.stack(layers)


@method
def difference_matte(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """Make the landscape from its words, paint the object into its box, and return as RGBA what changed
    there: the second layer of :func:`stages`."""
    layers = []
    for scene, seed in zip(scenes, seeds, strict=True):
        size = scene.scene.size
        landscape = Layer("landscape", prompt=scene.background_words, width=size, height=size)
        document = LayerDocument(
            size, size, (landscape, Layer("object", mask=scene.box_masks[0], prompt=scene.things[0].words))
        )
        made = pipeline.generate_layers(document, seed=seed, steps=steps, guidance=guidance)
        layers.append(composite(replace(made, layers=made.layers[1:])).permute(2, 0, 1))
    return torch.stack(layers)
