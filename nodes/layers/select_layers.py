"""Split a stack in two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ...layered_core.editing.selection import select_layers
from .socket import LAYERS, read_stack, write_stack


class SelectLayers(io.ComfyNode):
    """Take some layers of a stack; the others form a second stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_SelectLayers",
            display_name="Select Layers",
            category="layered diffusion/layers",
            description="Take some layers of a stack, by name or number; the others come out at the "
                "second output. Both stacks keep canvas and words.",
            search_aliases=["select layers", "filter layers", "pick layer", "remove layer", "delete layer",
            "split stack"],
            inputs=[
                LAYERS.Input("layers", tooltip="The stack."),
                io.String.Input(
                    "which", default="*",
                    tooltip=(
                        "Names, numbers (1 is at the back, -1 in front), ranges (2-4) and patterns (cloud*), "
                        "separated by commas. "
                        'A name with a comma goes in double quotes. Neutral: *, every layer.'
                    ),
                ),
            ],
            outputs=[
                LAYERS.Output(display_name="selected", tooltip="The chosen layers, in the stack's order."),
                LAYERS.Output(display_name="rest", tooltip="The other layers. A background colour goes "
                    "with the bottom layer."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, layers: Mapping[str, Any], which: str) -> io.NodeOutput:
        """Split the stack."""
        selected, rest = select_layers(read_stack(layers), which)
        return io.NodeOutput(write_stack(selected), write_stack(rest))
