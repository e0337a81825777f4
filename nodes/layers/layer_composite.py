"""Flatten a stack: picture, alpha and what shows of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy_api.latest import io, ui

from ...layered_core.canvas.compositing import GREY, composite
from ...layered_core.canvas.masks import layer_alphas, visible_masks
from ...layered_core.errors import invalid
from .socket import LAYERS, read_stack

BACKDROPS: dict[str, tuple[float, float, float] | None] = {
    "transparent": None,
    "grey": GREY,
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}
"""What shows where no layer is."""

RULES = ("comfyui", "photoshop")
"""By which colour arithmetic layers are laid on one another; the first is the node's."""


class LayerComposite(io.ComfyNode):
    """LAYERS to IMAGE, alpha and visible masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayerComposite",
            display_name="Layer Composite",
            category="layered diffusion/layers",
            description="Flatten a stack of layers to one picture, and tell how much of each pixel shows "
            "each layer.",
            search_aliases=["composite", "flatten", "merge layers", "layers to image", "visible masks",
            "alpha"],
            inputs=[
                LAYERS.Input("layers", tooltip="The stack to flatten."),
                io.Combo.Input(
                    "backdrop", options=list(BACKDROPS), default="transparent",
                    tooltip="What lies behind all layers. Transparent: the picture has an alpha channel if "
                    "it has holes. Neutral: transparent.",
                ),
                io.Combo.Input(
                    "rules", options=list(RULES), default=RULES[0], optional=True,
                    tooltip="comfyui: as Create Layered Image; soft edges and some modes in linear light, "
                    "modes other than normal show only on "
                    "what is there. photoshop: as Photoshop, Krita's OpenRaster and browsers; all in sRGB. "
                    "Neutral: either, for opaque layers of "
                    "mode normal.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="With alpha where it has holes and the "
                "backdrop is transparent."),
                io.Mask.Output(
                    display_name="alpha",
                    tooltip="1 is opaque. Invert it for Join Image with Alpha, where 1 is transparent."
                ),
                io.Mask.Output(
                    display_name="visible masks",
                    tooltip="One mask a layer, back to front: 1 where it shows, less what lies in front."
                ),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, layers: Mapping[str, Any], backdrop: str, rules: str = RULES[0]) -> io.NodeOutput:
        """Composite and split."""
        document = read_stack(layers)
        if not len(document):
            raise invalid(
                "layers: number of layers", 0, "at least one", "Lay a picture on the stack with Load Layer"
            )
        pixels = composite(document, rules)
        alpha = pixels[..., 3]
        if BACKDROPS[backdrop] is not None and document.background is None:
            pixels = composite(replace(document, background=BACKDROPS[backdrop]), rules)
        if bool((pixels[..., 3] == 1).all()):
            pixels = pixels[..., :3]
        shown, _ = visible_masks(layer_alphas(document))
        image, alpha, shown = (
            t.to(comfy.model_management.intermediate_device()) for t in (pixels[None], alpha[None], shown)
        )
        return io.NodeOutput(image, alpha, shown, ui=ui.PreviewImage(image, cls=cls))
