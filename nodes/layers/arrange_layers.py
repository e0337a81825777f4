"""Arrange a stack by hand: a layer editor in the node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...layered_core.document import LayerDocument
from ...layered_core.editing.arrangement import FIELDS, arrange, read_arrangement
from ...layered_core.editing.layer_picture import thumbnail
from ...layered_core.errors import LayeredError
from ...layered_core.progress import steps
from .compositor_state import apply_compositor, linked_compositor
from .editor_widget import EditorInput
from .preview import Preview
from .socket import LAYERS, read_stack, write_stack

THUMBNAIL = 512
"""Longer side of the pictures that the editor shows, pixels."""


@io.comfytype(io_type="LD_ARRANGEMENT")
class ArrangementWidget(io.ComfyTypeIO):
    """The editor of ``web/js/arrange_layers.js`` as an input. Its value is the JSON form of
    :class:`~layered_core.editing.arrangement.Arrangement`."""

    Type = Mapping[str, Any]

    class Input(EditorInput):
        """The input of a node."""


class ArrangeLayers(io.ComfyNode):
    """Arrange a stack of layers as the user did in the editor."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_ArrangeLayers",
            display_name="Arrange Layers",
            category="layered diffusion/layers",
            description="Move, scale, turn, mirror, reorder, hide and blend the layers of a stack by hand. "
            "Run once to see them.",
            search_aliases=["arrange", "layer editor", "move layers", "transform", "drag", "collage",
            "compositor", "canvas"],
            inputs=[
                LAYERS.Input("layers", tooltip="The stack to arrange."),
                ArrangementWidget.Input(
                    "arrangement",
                    tooltip="The changes made by hand, kept by the layers' names; everything else "
                        "follows the stack. Neutral: no changes.",
                ),
                io.Image.Input(
                    "picture", optional=True,
                    tooltip=(
                        "The picture of a Create Layered Image: what was arranged in its editor is "
                        "applied first, the changes made here afterwards. Only the connection counts, not "
                        "the pixels. Neutral: not connected."
                    ),
                ),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="The stack as arranged; words and recipes are "
                "kept."),
                io.String.Output(display_name="report", tooltip="What could not be applied, such as "
                    "changes to a layer that is gone; empty if everything was."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, arrangement: object = None) -> bool | str:
        """Return True, or the text of an error that is certain before running."""
        try:
            read_arrangement(arrangement)
        except LayeredError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, layers: Mapping[str, Any], arrangement: object = None, picture: Tensor | None = None
    ) -> io.NodeOutput:
        """Arrange the stack, and send the editor the stack as it was before the editor's own changes."""
        by_hand = read_arrangement(arrangement)
        document, remarks = read_stack(layers), []
        if picture is not None:
            state = linked_compositor(cls.hidden.prompt, cls.hidden.unique_id)
            document, remarks = apply_compositor(document, layers, state)
        arranged, absent = arrange(document, by_hand)
        gone = (
            [f"Changes are kept for layers that are not in the stack: {', '.join(map(repr, absent))}."]
            if absent
            else []
        )
        # The editor itself finds the layers that are gone.
        return io.NodeOutput(
            write_stack(arranged),
            " ".join(remarks + gone),
            ui={"arrange_layers": [shown(document, remarks)]},
        )


def shown(document: LayerDocument, remarks: list[str]) -> dict[str, Any]:
    """Return what the editor draws: canvas, background, and the layers back to front with their pictures."""
    layers = []
    for layer in steps(document.layers):
        small = thumbnail(layer, THUMBNAIL)
        picture = None if small is None else dict(Preview(small[None]).values[0])
        layers.append(
            {
                "name": layer.name,
                "picture": picture,
                "generated": layer.image is None,
                "prompt": layer.prompt,
                **{f: getattr(layer, f) for f in FIELDS},
            }
        )
    return {
        "width": document.width,
        "height": document.height,
        "background": document.background,
        "layers": layers,
        "remarks": remarks,
    }
