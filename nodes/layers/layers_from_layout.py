"""Make a stack of a list of elements."""

from __future__ import annotations

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.document import MAX_SIDE, Layer, LayerDocument
from ...layered_core.editing.stack_preview import outlined
from ...layered_core.errors import LayeredError
from ...layered_core.formats.layout.boxes import AUTO, RULES
from ...layered_core.formats.layout.reading import ORDERS, read_layout
from .layout_from_layers import ARRAY, BOUNDING_BOX
from .pictures import pictures
from .preview import Preview
from .remarks import tell
from .socket import LAYERS, rgba, write_stack

DICT = getattr(io, "Dict", None) or io.Custom("DICT")
"""The socket type of objects. On hosts that do not name it yet, a custom type with the same string."""


class LayersFromLayout(io.ComfyNode):
    """Make LAYERS with boxes and words of elements: of a language model, a detector or ComfyUI's box editor."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayersFromLayout",
            display_name="Layers from Layout",
            category="layered diffusion/layers",
            description=(
                "Make layers with a box and words of a list of elements: the answer of a language model, the "
                "boxes of a detector, or the elements of Create Bounding Boxes. What was read, put right or "
                "left out is reported."
            ),
            search_aliases=["layout", "LLM", "JSON", "bounding boxes", "bbox", "detector", "boxes to layers",
            "elements", "regions"],
            inputs=[
                io.String.Input(
                    "text", default="", multiline=True,
                    tooltip="The list as JSON, also with prose around it, in Markdown or with small mistakes; at most "
                        "200,000 letters. Empty if layout is connected.",
                ),
                io.Combo.Input(
                    "boxes", options=list(RULES), default=AUTO,
                    tooltip="How the four numbers of a box are meant: their scale, and corners (x y x y) or a corner, "
                        "width and height (x y w h). auto: by their name and size; the report says how.",
                ),
                io.Combo.Input(
                    "order", options=list(ORDERS), default=ORDERS[0],
                    tooltip="as listed: the first element is at the back; large to small: the largest is at the back, "
                        "as detectors list no depth.",
                ),
                io.Int.Input(
                    "width", default=1024, min=1, max=MAX_SIDE,
                    tooltip="Width of the canvas, pixels. A picture that is connected has its own. Neutral: none.",
                ),
                io.Int.Input(
                    "height", default=1024, min=1, max=MAX_SIDE,
                    tooltip="Height of the canvas, pixels. A picture that is connected has its own. Neutral: none.",
                ),
                io.MultiType.Input(
                    "layout", [ARRAY, BOUNDING_BOX, DICT], optional=True,
                    tooltip="Elements of Create Bounding Boxes, boxes of a detector, or an object that holds a list. "
                        "Neutral: not connected.",
                ),
                io.Image.Input(
                    "image", optional=True,
                    tooltip="The picture that the boxes are of: it gives the size of the canvas and is shown behind "
                        "them; of a batch, the first. It becomes no layer. Neutral: not connected.",
                ),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="A layer for each element: a box with words, without a "
                    "picture."),
                io.Int.Output(display_name="width", tooltip="Canvas width, pixels."),
                io.Int.Output(display_name="height", tooltip="Canvas height, pixels."),
                io.Image.Output(display_name="preview", tooltip="Each layer's box, number and name; 1 is at the "
                    "back."),
                io.String.Output(display_name="report", tooltip="How the boxes were read, and what was put right or "
                    "left out, one line each."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        text: str,
        boxes: str,
        order: str,
        width: int,
        height: int,
        layout: object = None,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        """Read the list, and draw its boxes."""
        if image is not None:
            height, width = pictures(image).shape[1:3]
        document, remarks = read_layout(_source(text, layout), width, height, boxes, order)
        report = tell(cls, "Layers from Layout", remarks)
        behind = () if image is None else (Layer("picture", rgba(image[0])),)
        drawing = outlined(LayerDocument(width, height, behind), marks=document.layers)[None]
        preview = drawing.to(comfy.model_management.intermediate_device())
        return io.NodeOutput(write_stack(document), width, height, preview, report, ui=Preview(preview, cls))


def _source(text: str, layout: object) -> object:
    """Return the one source that is given."""
    if layout is None and not text.strip():
        raise LayeredError(
            "text and layout: neither is given. Write or connect a list of elements to text, or connect layout"
        )
    if layout is not None and text.strip():
        raise LayeredError("text and layout: both are given. Empty text, or disconnect layout")
    return text if layout is None else layout
