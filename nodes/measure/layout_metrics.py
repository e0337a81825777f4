"""Measure whether a picture shows its layers where they were wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ...demo.world.judge import Judge
from ...layered_core.errors import LayeredError
from ...layered_core.metrics.layout_report import compare_layout, layout_overlay, layout_table
from ..layers.pictures import masks, opaque
from ..layers.preview import Preview
from ..layers.socket import LAYERS, read_stack


class LayoutMetrics(io.ComfyNode):
    """Compare a picture with LAYERS, in a table and an overlay."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayoutMetrics",
            display_name="Layout Metrics",
            category="layered diffusion/measure",
            description=(
                "Compare where objects are in a picture with where the layers wanted them: IoU of masks "
                "and boxes, leakage into other layers. Takes the masks of any segmenter; without them, "
                "the storybook's own judge finds the objects in pictures of the demo model."
            ),
            search_aliases=["IoU", "layout evaluation", "measure layers", "leakage", "segmentation overlap"],
            inputs=[
                LAYERS.Input("layers", tooltip="The layers that were wanted. A layer that covers nine "
                    "tenths of the canvas or more is a background: no object is looked for there."),
                io.Image.Input("image", tooltip="The picture that was made; of a batch, the first. It is "
                    "scaled to the canvas."),
                io.Mask.Input(
                    "detections", optional=True,
                    tooltip="Masks of detected objects, one object in each mask of the batch, 1 is the "
                        "object; scaled to the canvas. Not connected: the storybook's judge finds them; "
                        "it knows only the demo model's six kinds of things.",
                ),
                io.String.Input(
                    "names", default="", advanced=True,
                    tooltip="Names of the detections for the table, one a line. Neutral: empty, they are "
                        "numbered.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="A Markdown table with a line for each "
                    "layer, and one for the means."),
                io.Image.Output(display_name="overlay", tooltip="The picture; what was found is filled "
                    "in orange, what was wanted is outlined in blue."),
                io.Float.Output(display_name="mean IoU", tooltip="Mean IoU of the layers' masks, 0 to 1."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, layers: Mapping[str, Any], image: Tensor, detections: Tensor | None = None, names: str = ""
    ) -> io.NodeOutput:
        """Compare the picture with the layers."""
        document = read_stack(layers)
        picture = opaque(image)[0].detach().cpu()
        given_names = [line.strip() for line in names.splitlines() if line.strip()]
        if detections is None:
            if given_names:
                raise LayeredError(
                    "names: there are no detections to name. Connect the masks of a segmenter to detections, "
                    "or empty names"
                )
            detections, given_names = _judged(picture)
        else:
            detections = masks(detections, "detections", least=0)
        layout = compare_layout(document, detections.detach().float().cpu(), given_names)
        if not layout.layers:
            raise LayeredError(
                "layers: no layer has a place of its own to compare: all are hidden, covered, or cover the "
                "canvas. Add a smaller one"
            )
        table = layout_table(layout)
        overlay = layout_overlay(picture, layout)[None].to(comfy.model_management.intermediate_device())
        mean = sum(x.iou for x in layout.layers) / len(layout.layers)
        return io.NodeOutput(table, overlay, mean, ui=_shown(overlay, table, cls))


def _judged(picture: Tensor) -> tuple[Tensor, list[str]]:
    """Return what the storybook's judge sees: masks ``[D, 64, 64]`` of D objects, and their names."""
    verdict = Judge.load().look(picture.permute(2, 0, 1)[None])[0]
    masks = [f.mask.float() for f in verdict.objects]
    return torch.stack(masks) if masks else torch.zeros(0, 64, 64), [
        f"{f.colour} {f.kind}" for f in verdict.objects
    ]


def _shown(overlay: Tensor, table: str, cls: type[io.ComfyNode]) -> dict[str, Any]:
    return {**Preview(overlay, cls).as_dict(), **ui.PreviewText(table).as_dict()}
