"""Build a picture layer by layer: in one node, or from the nodes that it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.document import MAX_SIDE, Layer, LayerDocument, Recipe
from ...layered_core.errors import invalid
from ...layered_core.painting.pasting import BLENDS
from ...layered_core.painting.stages import plan_stage
from ..layers.socket import LAYERS, append_layers, read_stack, write_stack
from ..noise.repaint_parts import one_mask, picture_so_far
from ..transparency.layer_model import STORYBOOK, layer_model_choices
from .stage_graph import Sampler, StageGraph
from .stage_inputs import ALPHA, CATEGORY, MAX_SEED

_FAR = 4 * MAX_SIDE


class AddLayerByPrompt(io.ComfyNode):
    """A stage: words and a place become a layer. Runs as a graph of ordinary nodes, those of the blueprint of
    this name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the user sees."""
        files, decoders = layer_model_choices("transparent"), layer_model_choices("decoder")
        return io.Schema(
            node_id="LD_AddLayerByPrompt",
            display_name="Add Layer by Prompt",
            category=CATEGORY,
            description=(
                "Paint something new onto what is there and lay it on the stack as a layer with its own "
                "alpha. Chain several: background, "
                "midground, foreground. A name that the stack has is made anew in its place, with its "
                "recipe's LoRAs, embedding and seed; what lies "
                "in front is laid on again."
            ),
            search_aliases=["stage", "add object", "inpaint layer", "generate layer", "layer by layer",
            "background foreground", "replace layer"],
            inputs=[
                io.Model.Input("model",
                tooltip="What paints; a LoRA loaded into it acts on this layer only."),
                io.Clip.Input("clip", tooltip="What reads the words; a textual inversion is written "
                "embedding:name."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.String.Input("prompt", default="", multiline=True, tooltip="What is added. Empty: the "
                "words of the layer of that name."),
                io.String.Input("negative", default="", multiline=True, tooltip="What must not be there. "
                "Neutral: empty."),
                io.String.Input("name", default="", tooltip="What the layer is called. Empty: its prompt. "
                "The noise depends on seed and name."),
                io.Int.Input("x", default=0, min=-_FAR, max=_FAR, tooltip="Left edge of its place, canvas "
                "pixels. Neutral: 0."),
                io.Int.Input("y", default=0, min=-_FAR, max=_FAR, tooltip="Top edge of its place, canvas "
                "pixels. Neutral: 0."),
                io.Int.Input(
                    "width", default=0, min=0, max=MAX_SIDE,
                    tooltip="Width of its place, pixels; of the canvas where nothing is connected. 0: it "
                    "finds its own place. Neutral: 0.",
                ),
                io.Int.Input("height", default=0, min=0, max=MAX_SIDE, tooltip="Height of its place, pixels; "
                "as width. Neutral: 0."),
                io.Int.Input(
                    "seed", default=0, min=0, max=MAX_SEED, control_after_generate=False,
                    tooltip="Base seed, the same in all stages: each derives its own from it and its name. "
                    "Neutral: any.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Sampling steps; half as many "
                "more to find a place. Neutral: any."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Classifier-free "
                "guidance. Neutral: 1, none."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS,
                tooltip="As KSampler's."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS,
                tooltip="As KSampler's."),
                ALPHA,
                io.Float.Input(
                    "denoise", default=1.0, min=0.01, max=1.0, step=0.01, advanced=True,
                    tooltip="How far its place may depart from what is there. Neutral: 1, made anew.",
                ),
                io.Int.Input(
                    "feather", default=8, min=0, max=1024, advanced=True,
                    tooltip="Width of the soft border inside its place, pixels. Neutral: 0."
                ),
                io.Int.Input(
                    "size", default=0, min=0, max=MAX_SIDE, step=8, advanced=True,
                    tooltip="Side at which its place is sampled, pixels: it is cut out and scaled up. "
                    "Neutral: 0, with the whole picture.",
                ),
                io.Float.Input(
                    "context", default=0.5, min=0.0, max=16.0, step=0.1, advanced=True,
                    tooltip="With a size: how much around its place is cut out too, as a share of its longer "
                    "side. Neutral: any, without a size.",
                ),
                io.Combo.Input("blend", options=list(BLENDS), default=BLENDS[0], advanced=True,
                tooltip="As Paste Back's. Neutral: feather."),
                LAYERS.Input("layers", optional=True, tooltip="The stack so far. Not connected: a new one, "
                "on the image if there is one."),
                io.Image.Input("image", optional=True, tooltip="The picture so far, where there are no "
                "layers yet. It becomes the backmost layer."),
                io.Mask.Input("mask", optional=True, tooltip="Its place instead of x, y, width, height: 1 is "
                "where it may be. Of the canvas's size."),
                io.ControlNet.Input(
                    "control_net", optional=True,
                    tooltip="A ControlNet for inpainting, which sees the picture round its place. Without "
                    "effect with transparent alpha.",
                ),
                io.Combo.Input(
                    "file", options=files, default=files[0], optional=True, advanced=True,
                    tooltip="With transparent alpha: what changes the model, as LayerDiffuse Apply's for a "
                    "transparent layer. Neutral: any, without.",
                ),
                io.Combo.Input(
                    "decoder", options=decoders, default=decoders[0], optional=True, advanced=True,
                    tooltip="With transparent alpha: what reads it, as Transparent Decode's file, of the "
                    "same family. Neutral: any, without.",
                ),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="The stack with the new layer."),
                io.Image.Output(display_name="image", tooltip="The composite of that stack; outside the "
                "layer's place as it was to the bit."),
                io.Image.Output(display_name="layer",
                tooltip="The new layer alone, with alpha, on a canvas."),
                io.Mask.Output(display_name="mask", tooltip="1 is where the layer was painted, 0 where "
                "nothing changed, soft between."),
            ],
            enable_expand=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, prompt: str, negative: str, name: str, x: int, y: int,
        width: int, height: int, seed: int, steps: int,
        cfg: float, sampler_name: str, scheduler: str, alpha: str, denoise: float, feather: int, size: int,
        context: float, blend: str,
        layers: Mapping[str, Any] | None = None, image: Tensor | None = None, mask: Tensor | None = None,
        control_net: Any = None, file: str = STORYBOOK, decoder: str = STORYBOOK,
    ) -> io.NodeOutput:  # fmt: skip
        """Plan the stage and hand it over as a graph of ordinary nodes."""
        stack = _stack(layers, image, width, height)
        document = read_stack(stack)
        name = name.strip() or prompt.strip()
        there = next((layer for layer in document if layer.name == name), None)
        prompt, negative = _words(there, name, prompt, negative)
        place = None if mask is None else one_mask(mask)
        # Where nothing is connected the size is the canvas's.
        is_canvas = layers is None and not len(document)
        box = (0, 0, 0, 0) if mask is not None or is_canvas else (x, y, width, height)
        layer = _stage_layer(document, there, name, box)
        plan = plan_stage(document, replace(layer, prompt=prompt, negative=negative), seed, place)
        stage = StageGraph(
            model, clip, vae, plan, Sampler(steps, cfg, sampler_name, scheduler), context, blend
        )
        if plan.is_first:
            alpha = "mask"
            after, paste = stage.paint_first(denoise, size)
        else:
            region = stage.find_place() if plan.finds_place else plan.region[None]
            if alpha == "transparent":
                after, paste = stage.paint_alone(region, size, file, decoder)
            else:
                after, paste = stage.paint(region, steps, denoise, control_net, feather=feather, size=size)
        last = stage.graph.node(
            "LD_StageLayer", image=after, paste=paste, name=name, prompt=prompt, negative=negative, alpha=alpha,
            layers=stack,
        )  # fmt: skip
        return io.NodeOutput(*(last.out(i) for i in range(4)), expand=stage.graph.finalize())


def _stack(layers: Mapping[str, Any] | None, image: Tensor | None, width: int, height: int) -> dict[str, Any]:
    """The stack so far: the layers, or the image as the backmost one, or an empty canvas."""
    if layers is not None:
        return dict(layers)
    if image is not None:
        picture = picture_so_far(None, image)
        opaque = torch.cat([picture, torch.ones_like(picture[:1])]).permute(1, 2, 0)
        return append_layers(None, [Layer("background", opaque)], (picture.shape[2], picture.shape[1]))
    if not width or not height:
        which = "height" if width else "width"
        raise invalid(
            which, 0, f"1..{MAX_SIDE}", "Connect layers or an image, or give the canvas's width and height"
        )
    return write_stack(LayerDocument(width, height))


def _words(there: Layer | None, name: str, prompt: str, negative: str) -> tuple[str, str]:
    """The words of the stage: its own, or those of the layer that is made anew."""
    if there is not None:
        prompt, negative = prompt or there.prompt, negative or there.negative
    if not prompt.strip():
        raise invalid(
            f"layer {name!r}: prompt",
            prompt,
            "what is to be added",
            "Or give the name of a layer of the stack that has words",
        )
    return prompt, negative


def _stage_layer(
    document: LayerDocument, there: Layer | None, name: str, box: tuple[int, int, int, int]
) -> Layer:
    """The layer in its box: the one given, or that of the layer that is made anew, or the whole canvas."""
    x, y, width, height = box
    if bool(width) != bool(height):
        raise invalid(
            "width and height",
            f"{width} and {height}",
            "both 0, or both above",
            "Give the place's other side too",
        )
    recipe = Recipe() if there is None else there.recipe
    if width:
        return Layer(name, x=x, y=y, width=width, height=height, recipe=recipe)
    return there or Layer(name, width=document.width, height=document.height)
