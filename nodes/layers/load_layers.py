"""Open a layered file: PSD, OpenRaster or a document with its pictures."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from server import PromptServer

from ...demo.world.places import EXAMPLES
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.files import EXTENSIONS, read_layers
from ...layered_core.formats.file_groups import GROUPS
from ...layered_core.formats.limits import Limits
from ...layered_core.formats.merged_picture import checked, with_merged
from .input_files import input_path
from .long_work import fingerprint
from .socket import LAYERS, write_stack

_EXAMPLE = " [example]"
"""Follows the name of a file that comes with the pack, in the list of files."""


class LoadLayers(io.ComfyNode):
    """Open a layered file as LAYERS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LoadLayers",
            display_name="Load Layers",
            category="layered diffusion/layers",
            description=(
                "Open a Photoshop, Krita (OpenRaster) or JSON document with its layers, masks, words and "
                "recipes. In a file made by another program, a layer called 'name: prompt' gets that "
                "prompt."
            ),
            search_aliases=["load psd", "open psd", "photoshop", "load ora", "openraster", "krita", "gimp",
            "import layers", "document"],
            inputs=[
                io.Combo.Input(
                    "file", options=_files(),
                    tooltip="A .psd, .psb, .ora or .json document in ComfyUI's input folder, or one of this "
                    "pack's examples.",
                ),
                io.Int.Input(
                    "memory_limit", default=4, min=1, max=1024, advanced=True,
                    tooltip="Most memory that the layers' pixels may take, GiB; a file that needs more "
                        "is refused. Neutral: any value that is large enough.",
                ),
                io.Boolean.Input(
                    "merged_picture", default=False, optional=True, advanced=True,
                    tooltip="Add the picture that the file's own program made of all layers, hidden, on top: to "
                        "compare with. Neutral: off.",
                ),
                io.Combo.Input(
                    "groups", options=list(GROUPS), default="auto", optional=True,
                    tooltip="auto: a group is taken apart where the picture stays the same, and is else merged into "
                        "one layer; apart: always taken apart; merged: every group becomes one layer.",
                ),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="The file's layers; groups as chosen. Works "
                "with ComfyUI's own layer nodes too."),
                io.Int.Output(display_name="width", tooltip="Canvas width, pixels."),
                io.Int.Output(display_name="height", tooltip="Canvas height, pixels."),
                io.String.Output(display_name="report", tooltip="What the file has but layers cannot "
                    "hold, and whether they look other than in the file's own program, one line each; empty if there "
                    "is nothing of the kind."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """Return True, or the text of an error that is certain before running; linked inputs are None."""
        try:
            if file is not None:
                _layered_path(file)
        except LayeredError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: object) -> str | float:
        """Return a hash of the file and its pictures, so that the node runs again when their content
        changes."""
        return fingerprint(_layered_path(file)) if file else ""

    @classmethod
    def execute(
        cls, file: str, memory_limit: int, merged_picture: bool = False, groups: str = "auto"
    ) -> io.NodeOutput:
        """Read the file, and report what could not be kept and whether it looks as its own program shows it."""
        limits = Limits.of_memory(memory_limit * 2**30, "memory_limit")
        read = checked(read_layers(_layered_path(file), limits, groups))
        if merged_picture:
            read = with_merged(read)
        report = "\n".join(read.warnings)
        if report:
            logging.warning("Load Layers: %s: %s", file, "; ".join(read.warnings))
            PromptServer.instance.send_progress_text(report, cls.hidden.unique_id)
        return io.NodeOutput(write_stack(read.document), read.document.width, read.document.height, report)


def _files() -> list[str]:
    """Return the names of the layered files in ComfyUI's input folder, with each sub-folder's
    ``document.json``, and then of the examples."""
    folder = folder_paths.get_input_directory()
    files = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        # The methods of entry raise an error for a link to itself.
        if os.path.isfile(entry.path) and entry.name.lower().endswith(EXTENSIONS):
            files.append(entry.name)
        elif os.path.isfile(os.path.join(entry.path, "document.json")):
            files.append(f"{entry.name}/document.json")
    return files + [f.name + _EXAMPLE for f in sorted(EXAMPLES.iterdir())]


def _layered_path(name: str) -> Path:
    """Return the file that ``name`` means. Raises :class:`LayeredError` unless it lies in ComfyUI's input
    folder, or, as ComfyUI writes it, in its ``[output]`` or ``[temp]`` folder."""
    allowed = f"the name of a {', '.join(EXTENSIONS)} file in ComfyUI's input folder"
    if isinstance(name, str) and name.endswith(_EXAMPLE):
        path = next((f for f in EXAMPLES.iterdir() if f.name + _EXAMPLE == name), None)
        if path is None:
            raise invalid("file", name, ", ".join(f.name + _EXAMPLE for f in sorted(EXAMPLES.iterdir())))
        return path
    path = input_path("file", name, allowed)
    if path.suffix.lower() not in EXTENSIONS:
        raise invalid("file", name, allowed, "Save the picture as one of these in the program that made it")
    if not os.path.isfile(path):
        raise invalid("file", name, allowed, "There is no such file: upload it with the button on the node")
    return path
