"""Give a stack as the list of elements that models trained on boxes take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import comfy.model_management
from comfy_api.latest import io

from ...layered_core.editing.stack_preview import outlined
from ...layered_core.formats.layout.elements import (
    BACKGROUNDS,
    MAX_COLOURS,
    WITHOUT_WORDS,
    box_layers,
    layout_of,
    pixel_boxes,
    plain_elements,
)
from .preview import Preview
from .remarks import tell
from .socket import LAYERS, read_stack

ARRAY = getattr(io, "Array", None) or io.Custom("ARRAY")
"""The socket type of lists. On hosts that do not name it yet, a custom type with the same string."""

BOUNDING_BOX = getattr(io, "BoundingBox", None) or io.Custom("BOUNDING_BOX")
"""The socket type of boxes in pixels, likewise."""


class LayoutFromLayers(io.ComfyNode):
    """Give LAYERS as elements with boxes, words and palettes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayoutFromLayers",
            display_name="Layout from Layers",
            category="layered diffusion/layers",
            description=(
                "Give a stack as the list of elements that models trained on boxes take (Ideogram 4, FLUX.3 "
                "Klein, MOSS-Image and others): the box of what is seen of each layer, its words, its "
                "colours, back to front."
            ),
            search_aliases=["layout", "elements", "bounding boxes", "bbox", "JSON prompt", "ideogram",
            "layers to boxes", "palette"],
            inputs=[
                LAYERS.Input("layers", tooltip="The stack. Hidden layers and those wholly covered by others "
                    "are left out and reported."),
                io.Combo.Input(
                    "without_words", options=list(WITHOUT_WORDS), default="name",
                    tooltip="A layer without words is described by its name, left out, or kept with an empty "
                        "description. Neutral: all alike if every layer has words.",
                ),
                io.Combo.Input(
                    "background", options=list(BACKGROUNDS), default="element",
                    tooltip="Where layers that cover nine tenths of the canvas go. element: into the list, as the "
                        "first elements; apart: only into the output background.",
                ),
                io.Int.Input(
                    "colours", default=MAX_COLOURS, min=0, max=MAX_COLOURS,
                    tooltip="Most colours of each palette, 0 to 5. Only layers with a picture have one. Neutral: 0, "
                        "no palettes. "
                        "The default is 5, the most that such models read.",
                ),
            ],
            outputs=[
                ARRAY.Output(display_name="elements", tooltip="For Build JSON Prompt, Create Bounding Boxes and "
                    "other nodes that take elements: boxes in 0..1000, back to front."),
                BOUNDING_BOX.Output(display_name="boxes", tooltip="The same boxes in pixels, with names and words "
                    "in their metadata."),
                io.String.Output(display_name="json", tooltip="The elements as JSON, one a line."),
                io.String.Output(display_name="background", tooltip="Words of the layers that background: apart "
                    "keeps out of the list; else empty."),
                io.Image.Output(display_name="preview", tooltip="The stack with each element's box, number and "
                    "name."),
                io.String.Output(display_name="report", tooltip="What was left out or decided, one line each; "
                    "empty if there is nothing of the kind."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, layers: Mapping[str, Any], without_words: str, background: str, colours: int
    ) -> io.NodeOutput:
        """Make the list, and draw its boxes on the stack."""
        document = read_stack(layers)
        layout = layout_of(document, without_words, background, colours)
        report = tell(cls, "Layout from Layers", layout.remarks)
        elements = plain_elements(layout)
        lines = ",\n".join(json.dumps(element, ensure_ascii=False) for element in elements)
        drawing = outlined(document, rules="comfyui", marks=box_layers(layout))[None]
        image = drawing.to(comfy.model_management.intermediate_device())
        return io.NodeOutput(
            elements,
            pixel_boxes(layout),
            f"[\n{lines}\n]" if lines else "[]",
            layout.background,
            image,
            report,
            ui=Preview(image, cls),
        )
