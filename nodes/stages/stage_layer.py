"""The nodes that a stage consists of, beside those of other rooms."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.canvas.compositing import GREY, composite, over_colour
from ...layered_core.canvas.soft_masks import grow as widened
from ...layered_core.document import Layer
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.formats.dynamic_prompts import dynamic_remark
from ...layered_core.painting.mattes import stage_alpha, uncovered
from ...layered_core.painting.repaint import Repaint
from ...layered_core.painting.stages import changed_region, into_place, stage_seed, with_stage
from ..layers.pictures import one_picture
from ..layers.socket import LAYERS, append_layers, read_stack, rgba, write_stack
from ..noise.repaint_parts import PASTE
from .stage_inputs import ALPHA, CATEGORY, MAX_SEED


class StageLayer(io.ComfyNode):
    """Turn what a stage painted into a layer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_StageLayer",
            display_name="Stage Layer",
            category=CATEGORY,
            description=(
                "Turn the picture from Paste Back into a layer with alpha: laid over the picture before, "
                "it gives the picture after. It goes on top of the stack, or replaces the layer of the "
                "same name. With transparent alpha it takes the picture from Transparent Decode and fits "
                "it into the place."
            ),
            search_aliases=["difference matte", "difference key", "extract layer", "alpha from difference",
            "stage"],
            inputs=[
                io.Image.Input("image", tooltip="The picture after, from Paste Back; with transparent alpha, "
                "RGBA from Transparent Decode."),
                PASTE.Input("paste", tooltip="The same paste of Regenerate Layers that Paste Back got; "
                    "it holds the picture before and the place."),
                io.String.Input("name", default="layer", tooltip="The layer's name."),
                io.String.Input("prompt", default="", multiline=True, dynamic_prompts=True,
                tooltip="What the layer shows; kept with it. Neutral: empty."),
                io.String.Input("negative", default="", multiline=True, dynamic_prompts=True,
                tooltip="What the layer must not show; kept with it. Neutral: empty."),
                ALPHA,
                LAYERS.Input("layers", optional=True, tooltip="The stack. Not connected: a new stack."),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="The stack with the layer."),
                io.Image.Output(display_name="image", tooltip="The composite of that stack, grey where "
                    "there is no layer."),
                io.Image.Output(display_name="layer", tooltip="The layer alone, with alpha, on a canvas "
                    "of full size."),
                io.Mask.Output(display_name="mask", tooltip="1 is where the layer was painted, 0 where "
                    "nothing changed; values between at the soft border."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        image: Tensor,
        paste: Repaint,
        name: str,
        prompt: str,
        negative: str,
        alpha: str,
        layers: Mapping[str, Any] | None = None,
    ) -> io.NodeOutput:
        """Compute the layer's pixels, and lay it on the stack."""
        if not isinstance(paste, Repaint):
            raise invalid(
                "paste", paste, "the paste output of Regenerate Layers or Per-Layer Freedom (SDEdit)"
            )
        name = name.strip() or "layer"
        where, fix = f"layer {name!r}:", "Take one out of the batch with Get Image from Batch"
        picture = one_picture(image, f"{where} image", fix, batch=f"{where} number of pictures in image")
        if alpha == "transparent":
            if picture.shape[-1] != 4:
                raise invalid(
                    "image: number of channels",
                    picture.shape[-1],
                    "4, RGBA",
                    "Connect the image of Transparent Decode",
                )
            pixels = into_place(rgba(picture), paste.mask)
        else:
            pixels = cls._taken_off(picture, paste, alpha)
        layer = with_stage(_box_layer(name, paste.mask), pixels)
        if remark := dynamic_remark([replace(layer, prompt=prompt, negative=negative)]):
            logging.warning("Stage Layer: %s", remark)
        stack = _laid(layers, layer, prompt, negative)
        document = read_stack(stack)
        # As Layer Composite shows it with a grey backdrop.
        shown = composite(replace(document, background=document.background or GREY), "comfyui")[..., :3]
        out = shown[None], pixels[None], paste.mask[None]
        return io.NodeOutput(stack, *(t.to(comfy.model_management.intermediate_device()) for t in out))

    @staticmethod
    def _taken_off(picture: Tensor, paste: Repaint, alpha: str) -> Tensor:
        before, after = paste.picture, rgba(picture).permute(2, 0, 1)
        if after.shape[1:] != before.shape[1:]:
            got, allowed = (f"{p.shape[2]}x{p.shape[1]}" for p in (after, before))
            raise invalid(
                "image size",
                got,
                f"that of the picture before, {allowed}",
                "Connect the picture that Paste Back gives",
            )
        after = over_colour(after.permute(1, 2, 0), before.permute(1, 2, 0)).permute(2, 0, 1)
        return uncovered(before, after, stage_alpha(before, after, paste.mask, alpha), linear=True)


class StageSeed(io.ComfyNode):
    """Derive the seed of one stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_StageSeed",
            display_name="Stage Seed",
            category=CATEGORY,
            description="Derive the seed of one stage from a base seed and the stage's name. Redoing one "
            "stage then leaves the noise of the others as it is.",
            search_aliases=["seed", "derive seed", "seed per layer", "stage"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=False,
                    tooltip="Base seed, the same in all stages. Neutral: any.",
                ),
                io.String.Input("name", default="", tooltip="The stage's name."),
            ],
            outputs=[io.Int.Output(display_name="seed", tooltip="For the stage's sampler.")],
        )

    @classmethod
    def execute(cls, seed: int, name: str) -> io.NodeOutput:
        """Derive the seed."""
        return io.NodeOutput(stage_seed(seed, name.strip()))


class FindPlace(io.ComfyNode):
    """Find where a draft put something new."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_FindPlace",
            display_name="Find Place",
            category=CATEGORY,
            description="Find where a quick draft of a picture (denoise 0.75, few steps) differs most "
                "from the picture: the model would put the new thing there.",
            search_aliases=["auto mask", "difference mask", "locate object", "change detection"],
            inputs=[
                io.Image.Input("before", tooltip="The picture."),
                io.Image.Input("draft", tooltip="The same picture, redrawn with the words of the new "
                    "thing; it must have the same size."),
                io.Float.Input(
                    "share", default=0.5, min=0.01, max=1.0, step=0.01, advanced=True,
                    tooltip="A pixel belongs to the place if its difference is at least this share of "
                        "the greatest one; a lower share gives a larger place. Neutral: any.",
                ),
                io.Int.Input("grow", default=8, min=0, max=1024, advanced=True, tooltip="Widen the place on "
                "every side, pixels. Neutral: 0. "
                "The default is 8, because a thing is mostly a little larger than its "
                "place in the draft."),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="1 is where the thing may be. "
                "Regenerate Layers and inpainting take it as it is.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, before: Tensor, draft: Tensor, share: float, grow: int) -> io.NodeOutput:
        """Compare the draft with the picture."""
        fix = "Take one out with Get Image from Batch: one mask is found at a time"
        before, draft = (one_picture(p, where, fix) for p, where in ((before, "before"), (draft, "draft")))
        if before.shape[:2] != draft.shape[:2]:
            got, allowed = (f"{p.shape[1]}x{p.shape[0]}" for p in (draft, before))
            raise invalid(
                "draft size",
                got,
                f"the picture's, {allowed}",
                "Decode it through Paste Back, which gives the picture's size",
            )
        a, b = (over_colour(rgba(p), GREY).permute(2, 0, 1) for p in (before, draft))
        return io.NodeOutput(
            widened(changed_region(a, b, share), grow)[None].to(comfy.model_management.intermediate_device())
        )


def _box_layer(name: str, mask: Tensor) -> Layer:
    """Return a layer whose box holds all of a mask ``[H, W]``."""
    rows, columns = ((mask > 0).any(d).nonzero()[:, 0].tolist() for d in (1, 0))
    if not rows:
        raise LayeredError(f"layer {name!r}: its mask is 0 everywhere. Give the stage a noise above 0")
    return Layer(
        name, x=columns[0], y=rows[0], width=columns[-1] - columns[0] + 1, height=rows[-1] - rows[0] + 1
    )


def _laid(layers: Mapping[str, Any] | None, layer: Layer, prompt: str, negative: str) -> dict[str, Any]:
    """Return the stack with the layer on top, or in the place of the layer of the same name, whose recipe,
    opacity and blend mode it keeps."""
    layer = replace(layer, prompt=prompt, negative=negative)
    document = None if layers is None else read_stack(layers)
    there = None if document is None else next((x for x in document if x.name == layer.name), None)
    if document is None or there is None:
        return append_layers(layers, [layer])
    placed = replace(layer, recipe=there.recipe, opacity=there.opacity, blend_mode=there.blend_mode)
    return write_stack(document.with_layer(placed))
