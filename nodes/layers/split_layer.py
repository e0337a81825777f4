"""Take a layer's picture out of a stack and put one back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.editing.layer_picture import put_picture, take_picture
from ...layered_core.formats.lora_text import loras_as_text
from .pictures import one_mask, one_picture
from .socket import LAYERS, clamped, read_stack, write_stack

CATEGORY = "layered diffusion/layers"
_LAYER = "The layer's name, as Layer Preview shows it."


class SplitLayer(io.ComfyNode):
    """Take a layer's picture, alpha, words and place out of a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_SplitLayer",
            display_name="Split Layer",
            category=CATEGORY,
            description="Take one layer of a stack apart: its picture at its own size, its alpha, its words "
            "and its place.",
            search_aliases=["split layer", "layer to image", "extract layer", "get layer", "layer alpha"],
            inputs=[LAYERS.Input("layers", tooltip="The stack."),
            io.String.Input("layer", default="", tooltip=_LAYER)],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The layer's own colours, without alpha, at the picture's own size, not its "
                        "size on the canvas. Grey if the layer has no picture yet.",
                ),
                io.Mask.Output(
                    display_name="alpha",
                    tooltip="1 is opaque: the picture's alpha times the layer's mask. Invert it for Add "
                    "Layer, where 1 is transparent.",
                ),
                io.String.Output(display_name="name", tooltip="The layer's name."),
                io.String.Output(display_name="prompt", tooltip="What the layer shows."),
                io.Int.Output(display_name="x", tooltip="Left edge on the canvas before rotation, pixels, "
                "rounded."),
                io.Int.Output(display_name="y", tooltip="Top edge on the canvas before rotation, pixels, "
                "rounded."),
                io.Int.Output(display_name="width", tooltip="Width on the canvas, pixels."),
                io.Int.Output(display_name="height", tooltip="Height on the canvas, pixels."),
                io.String.Output(display_name="LoRAs", tooltip="The layer's LoRAs as text, ink:0.5, people/anna:1, "
                "as Edit Layer takes them; empty if it has none."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, layers: Mapping[str, Any], layer: str) -> io.NodeOutput:
        """Take the layer apart."""
        it = read_stack(layers).layer(layer)
        image, alpha = (t[None].to(comfy.model_management.intermediate_device()) for t in take_picture(it))
        place = round(it.x), round(it.y), it.width, it.height
        return io.NodeOutput(image, alpha, it.name, it.prompt, *place, loras_as_text(it.recipe.loras))


class JoinLayer(io.ComfyNode):
    """Put a picture into a layer: the inverse of :class:`SplitLayer`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_JoinLayer",
            display_name="Join Layer",
            category=CATEGORY,
            description="Put a picture in a layer of a stack. Its place, order, words, look and recipe stay.",
            search_aliases=["join layer", "replace layer image", "image to layer", "set layer", "update "
            "layer"],
            inputs=[
                LAYERS.Input("layers", tooltip="The stack."),
                io.String.Input("layer", default="", tooltip=_LAYER),
                io.Image.Input("image", tooltip="One picture of any size; it is scaled to the layer's "
                    "place. If it has an alpha channel, that is used."),
                io.Mask.Input(
                    "alpha", optional=True,
                    tooltip="1 is opaque, as Split Layer gives it; it replaces the picture's alpha "
                        "channel and the layer's alpha and mask. Not connected: the picture's alpha "
                        "channel, or, if it has none, the layer's own alpha.",
                ),
            ],
            outputs=[LAYERS.Output(display_name="layers", tooltip="The stack with the layer's picture "
            "replaced.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, layers: Mapping[str, Any], layer: str, image: Tensor, alpha: Tensor | None = None
    ) -> io.NodeOutput:
        """Replace the picture."""
        document = read_stack(layers)
        before = document.layer(layer)
        where, fix = f"layer {before.name!r}:", "Take one out of the batch with Get Image from Batch"
        count = f"{where} number of pictures in image"
        picture = clamped(one_picture(image, f"{where} image", fix, batch=count))
        if alpha is not None:
            count = f"{where} number of pictures in alpha"
            alpha = clamped(one_mask(alpha, f"{where} alpha", batch=count))
        elif picture.shape[-1] == 4:
            alpha = picture[..., 3]
        after = put_picture(before, picture[..., :3], alpha)
        return io.NodeOutput(
            write_stack(replace(document, layers=tuple(after if x is before else x for x in document)))
        )
