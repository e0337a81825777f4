"""Make a stack of boxes that were drawn with the mouse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ...layered_core.document import MAX_SIDE, LayerDocument, unique_names
from ...layered_core.errors import LayeredError
from ...layered_core.formats.layout.boxes import PIXELS, THOUSANDTHS, XYWH, YXYX
from ...layered_core.formats.layout.reading import ReadLayout, read_layout
from .layout_from_layers import ARRAY, BOUNDING_BOX
from .remarks import tell
from .socket import LAYERS, check_room, read_stack, write_stack

_ONLY_BOXES = (
    "No box has words: connect the output elements of Create Bounding Boxes; its output bboxes has none."
)


class LayersFromBoxes(io.ComfyNode):
    """Make LAYERS of the boxes that were drawn in ComfyUI's Create Bounding Boxes, a layer of words for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayersFromBoxes",
            display_name="Layers from Boxes",
            category="layered diffusion/layers",
            description=(
                "Make a layer of words of every box that you draw in Create Bounding Boxes: connect its "
                "output elements. The first box is at the back."
            ),
            search_aliases=["draw boxes", "bounding boxes", "bbox", "boxes to layers", "regions", "area prompt"],
            inputs=[
                io.MultiType.Input(
                    "boxes", [ARRAY, BOUNDING_BOX],
                    tooltip="The elements of Create Bounding Boxes: boxes with words. Its bboxes are taken too, but "
                        "have no words. Neutral: no box, with a stack connected.",
                ),
                io.Int.Input(
                    "width", default=1024, min=1, max=MAX_SIDE,
                    tooltip="Width of the canvas, pixels, as in Create Bounding Boxes. A stack that is connected has "
                        "its own. Neutral: none.",
                ),
                io.Int.Input(
                    "height", default=1024, min=1, max=MAX_SIDE,
                    tooltip="Height of the canvas, pixels, as in Create Bounding Boxes. A stack that is connected "
                        "has its own. Neutral: none.",
                ),
                io.String.Input(
                    "prompt", multiline=True, default="", dynamic_prompts=True,
                    tooltip="Words for the whole picture. Empty: those of the stack, or all layers' words joined. "
                        "Neutral: empty.",
                ),
                LAYERS.Input("layers", optional=True, tooltip="A stack to lay the boxes on, for example a "
                    "background. Neutral: not connected."),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="A layer of words for each box, without a picture, on "
                    "top of the stack."),
                io.String.Output(display_name="report", tooltip="What was left out or put right, one line each."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, boxes: object, width: int, height: int, prompt: str, layers: Mapping[str, Any] | None = None
    ) -> io.NodeOutput:
        """Read the boxes, and lay them on the stack."""
        below = LayerDocument(width, height) if layers is None else read_stack(layers)
        drawn = _read(boxes, below)
        check_room(layers, len(drawn.document))
        document = replace(
            below,
            layers=unique_names([*below, *drawn.document]),
            prompt=prompt if prompt.strip() else below.prompt,
        )
        return io.NodeOutput(write_stack(document), tell(cls, "Layers from Boxes", drawn.remarks))


def _read(boxes: object, below: LayerDocument) -> ReadLayout:
    """Return the boxes as layers on the canvas of the stack ``below``; none are allowed if it has layers."""
    if not boxes:
        if not len(below):
            raise LayeredError(
                "boxes: there is none; allowed: at least one. Draw a box in Create Bounding Boxes, or connect layers"
            )
        return ReadLayout(LayerDocument(below.width, below.height), ("No box is drawn.",))
    elements = isinstance(boxes, list) and any(isinstance(box, Mapping) and "bbox" in box for box in boxes)
    rule = f"{THOUSANDTHS} {YXYX}" if elements else f"{PIXELS} {XYWH}"
    drawn = read_layout(boxes, below.width, below.height, rule)
    if any(layer.prompt for layer in drawn.document):
        return drawn
    return drawn._replace(remarks=(*drawn.remarks, _ONLY_BOXES))
