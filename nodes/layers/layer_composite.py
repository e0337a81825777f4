"""Flatten a stack to a picture, its alpha, and masks of what shows of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy_api.latest import io

from ...layered_core.canvas.compositing import GREY, composite
from ...layered_core.canvas.masks import document_masks
from ...layered_core.errors import invalid
from .long_work import check_main_memory
from .preview import Preview
from .socket import LAYERS, read_stack

BACKDROPS: dict[str, tuple[float, float, float] | None] = {
    "transparent": None,
    "grey": GREY,
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}
"""The colour behind all layers, RGB in 0..1; None leaves holes transparent."""

RULES = ("comfyui", "photoshop")
"""The colour arithmetic by which layers are laid on one another; the first is the node's default."""


class LayerComposite(io.ComfyNode):
    """Flatten LAYERS to an IMAGE, its alpha and the layers' visible masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayerComposite",
            display_name="Layer Composite",
            category="layered diffusion/layers",
            description="Flatten a stack of layers to one picture, and show for each layer how much of "
                "it is seen at each pixel.",
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
                    tooltip="comfyui: as Create Layered Image; soft edges and some modes are mixed in "
                        "linear light, and modes other than normal show only where something lies below. "
                        "photoshop: as Photoshop, Krita's OpenRaster and browsers; everything is mixed in "
                        "sRGB. Neutral: either, for opaque layers of mode normal.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture. It has an alpha channel if "
                    "it has holes and the backdrop is transparent."),
                io.Mask.Output(
                    display_name="alpha",
                    tooltip="1 is opaque. Invert it for Join Image with Alpha, where 1 is transparent."
                ),
                io.Mask.Output(
                    display_name="visible masks",
                    tooltip="One mask for each layer, back to front: 1 where the layer shows, less where "
                        "other layers cover it."
                ),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, layers: Mapping[str, Any], backdrop: str, rules: str = RULES[0]) -> io.NodeOutput:
        """Composite the stack and compute its visible masks."""
        document = read_stack(layers)
        if not len(document):
            raise invalid(
                "layers: number of layers", 0, "at least one", "Lay a picture on the stack with Load Layer"
            )
        # The picture, its alpha, the masks, and the preview in 8 bits, for each pixel of the canvas.
        check_main_memory(
            document.width * document.height * (16 + 4 + 4 * len(document) + 8),
            f"Layer Composite of {document.width}x{document.height} pixels",
            "Scale the canvas down, or take fewer layers",
        )
        pixels = composite(document, rules)
        alpha = pixels[..., 3].clone()
        if BACKDROPS[backdrop] is not None and document.background is None:
            del pixels
            pixels = composite(replace(document, background=BACKDROPS[backdrop]), rules)
        if bool(pixels[..., 3].amin() == 1):
            pixels = pixels[..., :3]
        shown, _ = document_masks(document)
        image, alpha, shown = (
            t.to(comfy.model_management.intermediate_device()) for t in (pixels[None], alpha[None], shown)
        )
        return io.NodeOutput(image, alpha, shown, ui=Preview(image, cls))
