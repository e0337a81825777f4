"""Make a stack of layers by hand: a board in the node."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ...layered_core.document import LayerDocument
from ...layered_core.editing.board import PICTURES, Board, laid, read_board, renamed
from ...layered_core.errors import LayeredError
from ...layered_core.formats.limits import Budget, Limits
from .arrange_layers import shown
from .editor_widget import EditorInput
from .input_files import input_path
from .long_work import fingerprint
from .remarks import tell
from .socket import LAYERS, read_stack, write_stack


@io.comfytype(io_type="LD_BOARD")
class BoardWidget(io.ComfyTypeIO):
    """The board of ``web/js/layer_board.js`` as an input. Its value is the JSON form of
    :class:`~layered_core.editing.board.Board`."""

    Type = Mapping[str, Any]

    class Input(EditorInput):
        """The input of a node."""


class LayerBoard(io.ComfyNode):
    """Make, describe, arrange and mask layers on a board."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayerBoard",
            display_name="Layer Board",
            category="layered diffusion/layers",
            description="Make a stack of layers in one place: draw boxes and describe them, drop pictures, arrange "
            "and mask them, and mark what is to be redone.",
            search_aliases=["layer board", "board", "canvas", "layer editor", "collage", "regions", "draw boxes",
            "regional prompt", "inpaint mask", "start here"],
            inputs=[
                BoardWidget.Input(
                    "board",
                    tooltip="The board's layers, made by hand, and changes to the layers that are connected. Neutral: "
                        "an empty board.",
                ),
                LAYERS.Input(
                    "layers", optional=True,
                    tooltip="Layers of the graph; they lie among the board's own. Neutral: not connected.",
                ),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="All layers of the board, those of the graph too."),
                io.String.Output(display_name="marked", tooltip="Names of the layers marked to be redone, one a line; "
                    "empty if none is. For Redo Layers, or Regenerate Layers' names."),
                io.String.Output(display_name="report", tooltip="What is worth knowing, one line each: pictures that "
                    "were put right, names that occur twice, layers that are gone; empty if nothing is."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, board: object = None) -> bool | str:
        """Return True, or the text of an error that is certain before running."""
        try:
            for _ in _files(read_board(board)):
                pass
        except LayeredError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, board: object = None, **_: object) -> str:
        """Return hashes of the board's pictures, so that the node runs again when their content changes."""
        return " ".join(str(fingerprint(path)) for path in _files(read_board(board)))

    @classmethod
    def execute(cls, board: object = None, layers: Mapping[str, Any] | None = None) -> io.NodeOutput:
        """Lay the board's layers, and send the board those that came from the graph."""
        made = read_board(board)
        below = None if layers is None else read_stack(layers)
        stack, marked, remarks = laid(made, _picture, Budget(Limits(option="")), below)
        if not len(stack):
            raise LayeredError(
                "board: it has no layer. Draw a box on it and say what is there, drop a picture on it, or connect "
                "layers"
            )
        report = tell(cls, "Layer Board", remarks)
        own = [entry["name"] for entry in made.layers]
        incoming = LayerDocument(stack.width, stack.height, renamed(own, below), stack.background)
        return io.NodeOutput(
            write_stack(stack), "\n".join(marked), report, ui={"layer_board": [shown(incoming, remarks)]}
        )


def _picture(name: object, key: str) -> Path:
    """Return the picture of ComfyUI's input folder that ``name`` means."""
    path = input_path(key, name, "the name of a picture in ComfyUI's input folder")
    if not os.path.isfile(path):
        raise LayeredError(
            f"{key} {name!r} is not in ComfyUI's input folder any more. Drop the picture on the board again, or "
            f"delete the layer"
        )
    return path


def _files(board: Board) -> Iterator[Path]:
    """Yield the files of the board's pictures. Raises :class:`LayeredError` for one that is missing; the text names
    the layer."""
    for entry in board.layers:
        for key in PICTURES:
            if entry.get(key) is not None:
                try:
                    yield _picture(entry[key], key)
                except LayeredError as error:
                    raise LayeredError(f"board: layer {entry['name']!r}: {error}") from None
