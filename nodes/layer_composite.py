"""Flatten a stack: picture, alpha and what shows of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management
from comfy_api.latest import io, ui

from ..layered_core.compositing import GREY, composite, over_colour
from ..layered_core.errors import invalid
from ..layered_core.masks import layer_alphas, visible_masks
from .layers import LAYERS, read_stack

BACKDROPS: dict[str, tuple[float, float, float] | None] = {
    "transparent": None,
    "grey": GREY,
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}
"""What shows where no layer is."""


class LayerComposite(io.ComfyNode):
    """LAYERS to IMAGE, alpha and visible masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the user sees."""
        return io.Schema(
            node_id="LD_LayerComposite",
            display_name="Layer Composite",
            category="layered diffusion/layers",
            description="Flatten a stack of layers to one picture, and tell how much of each pixel shows each layer.",
            search_aliases=["composite", "flatten", "merge layers", "layers to image", "visible masks", "alpha"],
            inputs=[
                LAYERS.Input("layers", tooltip="The stack to flatten."),
                io.Combo.Input(
                    "backdrop", options=list(BACKDROPS), default="transparent",
                    tooltip="What shows where no layer is. Transparent: the picture has an alpha channel if it has holes. Neutral: transparent.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="With alpha where it has holes and the backdrop is transparent."),
                io.Mask.Output(
                    display_name="alpha", tooltip="1 is opaque. Invert it for Join Image with Alpha, where 1 is transparent."
                ),
                io.Mask.Output(
                    display_name="visible masks", tooltip="One mask a layer, back to front: 1 where it shows, less what lies in front."
                ),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, layers: Mapping[str, Any], backdrop: str) -> io.NodeOutput:
        """Composite and split."""
        document = read_stack(layers)
        if not len(document):
            raise invalid("layers: number of layers", 0, "at least one", "Lay a picture on the stack with Load Layer")
        pixels = composite(document)
        alpha = pixels[..., 3]
        colour = BACKDROPS[backdrop]
        if colour is not None:
            pixels = over_colour(pixels, colour)
        elif bool((alpha == 1).all()):
            pixels = pixels[..., :3]
        shown, _ = visible_masks(layer_alphas(document))
        image, alpha, shown = (t.to(comfy.model_management.intermediate_device()) for t in (pixels[None], alpha[None], shown))
        return io.NodeOutput(image, alpha, shown, ui=ui.PreviewImage(image, cls=cls))
