"""Build a picture layer by layer: one node adds one layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.document import MAX_SIDE, Layer, LayerDocument, Recipe
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.painting.pasting import BLENDS
from ...layered_core.painting.stages import plan_stage
from ..layers.pictures import one_mask
from ..layers.socket import LAYERS, append_layers, read_stack, write_stack
from ..noise.repaint_parts import picture_so_far
from ..transparency.layer_model import STORYBOOK, layer_model_choices
from .stage_graph import Sampler, StageGraph
from .stage_inputs import ALPHA, CATEGORY, MAX_SEED

_FAR = 4 * MAX_SIDE


class AddLayerByPrompt(io.ComfyNode):
    """Make a layer from words and a place. Runs as a graph of ordinary nodes, those of the blueprint of the
    same name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        files, decoders = layer_model_choices("transparent"), layer_model_choices("decoder")
        return io.Schema(
            node_id="LD_AddLayerByPrompt",
            display_name="Add Layer by Prompt",
            category=CATEGORY,
            description=(
                "Paint something new onto the picture so far, and lay it on the stack as a layer with "
                "its own alpha. Chain several: background, midground, foreground. A layer whose name is "
                "in the stack already is made anew in its place, with its recipe's LoRAs, embedding and "
                "seed; the layers in front are laid on again."
            ),
            search_aliases=["stage", "add object", "inpaint layer", "generate layer", "layer by layer",
            "background foreground", "replace layer"],
            inputs=[
                io.Model.Input("model",
                tooltip="The model that paints; a LoRA loaded into it acts on this layer only."),
                io.Clip.Input("clip", tooltip="Encodes the words; write embedding:name for a textual "
                    "inversion."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.String.Input(
                    "prompt", default="", multiline=True, dynamic_prompts=True,
                    tooltip="What is added. Empty: the words of the stack's layer of the same name.",
                ),
                io.String.Input("negative", default="", multiline=True, dynamic_prompts=True,
                tooltip="What must not be there. Neutral: empty."),
                io.String.Input("name", default="", tooltip="The layer's name. Empty: its prompt. The "
                    "noise depends on seed and name."),
                io.Int.Input("x", default=0, min=-_FAR, max=_FAR, tooltip="Left edge of the layer's "
                    "place, canvas pixels. Neutral: 0."),
                io.Int.Input("y", default=0, min=-_FAR, max=_FAR, tooltip="Top edge of the layer's "
                    "place, canvas pixels. Neutral: 0."),
                io.Int.Input(
                    "width", default=0, min=0, max=MAX_SIDE,
                    tooltip="Width of the layer's place, pixels; width of the canvas if nothing is "
                        "connected. 0: a place is found. Neutral: 0.",
                ),
                io.Int.Input("height", default=0, min=0, max=MAX_SIDE, tooltip="Height of the layer's "
                    "place, pixels; otherwise as width. Neutral: 0."),
                io.Int.Input(
                    "seed", default=0, min=0, max=MAX_SEED, control_after_generate=False,
                    tooltip="Base seed, the same in all stages: each stage derives its own seed from it "
                        "and from its name. Neutral: any.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Sampling steps; finding a "
                    "place takes half as many more. Neutral: any."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Classifier-free "
                "guidance. With transparent alpha and the storybook's file, 2 suits. Neutral: 1, none. "
                "The default is 7, as most models need guidance to follow words."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS,
                tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS,
                tooltip="As in KSampler."),
                ALPHA,
                io.Float.Input(
                    "denoise", default=1.0, min=0.01, max=1.0, step=0.01, advanced=True,
                    tooltip="How far the layer's place may depart from the picture so far. Neutral: 1, "
                        "made anew.",
                ),
                io.Int.Input(
                    "feather", default=8, min=0, max=1024, advanced=True,
                    tooltip="Width of the soft border inside the layer's place, pixels. Neutral: 0. "
                        "The default is 8, so that no edge is seen."
                ),
                io.Int.Input(
                    "size", default=0, min=0, max=MAX_SIDE, step=8, advanced=True,
                    tooltip="Side at which the layer's place is sampled, pixels: it is cut out and "
                        "scaled up. Neutral: 0, the whole picture is sampled.",
                ),
                io.Float.Input(
                    "context", default=0.5, min=0.0, max=16.0, step=0.1, advanced=True,
                    tooltip="With a size: how much of the surroundings is cut out too, as a share of the "
                        "place's longer side. Neutral: any, without a size.",
                ),
                io.Combo.Input("blend", options=list(BLENDS), default=BLENDS[0], advanced=True,
                tooltip="As in Paste Back. Neutral: feather. "
                    "The default is gradient, which hides the seam best."),
                LAYERS.Input("layers", optional=True, tooltip="The stack so far. Not connected: a new "
                    "stack, with the image at the back if there is one."),
                io.Image.Input("image", optional=True, tooltip="The picture so far, if there are no "
                    "layers yet. It becomes the backmost layer."),
                io.Mask.Input("mask", optional=True, tooltip="The layer's place, instead of x, y, width, "
                    "height: 1 is where it may be. It must have the canvas's size."),
                io.ControlNet.Input(
                    "control_net", optional=True,
                    tooltip="A ControlNet for inpainting, which sees the picture around the layer's "
                        "place. It has no effect with transparent alpha.",
                ),
                io.Combo.Input(
                    "file", options=files, default=files[0], optional=True, advanced=True,
                    tooltip="With transparent alpha: the file that changes the model, as in LayerDiffuse "
                        "Apply for a transparent layer. Neutral: any, with another alpha.",
                ),
                io.Combo.Input(
                    "decoder", options=decoders, default=decoders[0], optional=True, advanced=True,
                    tooltip="With transparent alpha: the file that decodes it, as in Transparent Decode, "
                        "of the same model family. Neutral: any, with another alpha.",
                ),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="The stack with the new layer."),
                io.Image.Output(display_name="image", tooltip="The composite of that stack; outside the "
                    "layer's place it is as before, to the bit."),
                io.Image.Output(display_name="layer",
                tooltip="The new layer alone, with alpha, on a canvas of full size."),
                io.Mask.Output(display_name="mask", tooltip="1 is where the layer was painted, 0 where "
                    "nothing changed; values between at the soft border."),
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
    """Return the stack so far: the layers, or the image as the backmost layer, or an empty canvas."""
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
    """Return the words of the stage: its own, or those of the layer that is made anew."""
    if there is not None:
        prompt, negative = prompt or there.prompt, negative or there.negative
    if not prompt.strip():
        raise LayeredError(
            f"layer {name!r}: its prompt is empty. Write what is to be added, or give the name of a layer of "
            f"the stack that has words"
        )
    return prompt, negative


def _stage_layer(
    document: LayerDocument, there: Layer | None, name: str, box: tuple[int, int, int, int]
) -> Layer:
    """Return the layer in its box: the given one, or that of the layer made anew, or the whole canvas."""
    x, y, width, height = box
    if bool(width) != bool(height):
        raise LayeredError(
            f"width and height are {width} and {height}; allowed: both 0, or both above 0. Give the "
            f"place's other side too"
        )
    recipe = Recipe() if there is None else there.recipe
    if width:
        return Layer(name, x=x, y=y, width=width, height=height, recipe=recipe)
    return there or Layer(name, width=document.width, height=document.height)
