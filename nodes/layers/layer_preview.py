"""Show a stack before anything is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management
from comfy_api.latest import io

from ...layered_core.editing.stack_preview import outlined
from .preview import Preview
from .socket import LAYERS, read_stack


class LayerPreview(io.ComfyNode):
    """Draw LAYERS with outlines, numbers and names."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayerPreview",
            display_name="Layer Preview",
            category="layered diffusion/layers",
            description="Draw a stack with each layer's outline, number and name, to see what will happen "
            "before sampling.",
            search_aliases=["preview layers", "show layers", "layer outlines", "bounding boxes"],
            inputs=[
                LAYERS.Input("layers", tooltip="The stack to show. Layers still to be generated are dashed, "
                "hidden ones left out."),
                io.Int.Input(
                    "size", default=768, min=64, max=4096, step=64, advanced=True,
                    tooltip="Longer side of the drawing, pixels: small canvases are enlarged to make names "
                    "legible, large ones reduced.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The drawing, without alpha.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, layers: Mapping[str, Any], size: int) -> io.NodeOutput:
        """Draw the stack."""
        image = outlined(read_stack(layers), size, "comfyui")[None].to(
            comfy.model_management.intermediate_device()
        )
        return io.NodeOutput(image, ui=Preview(image, cls))
