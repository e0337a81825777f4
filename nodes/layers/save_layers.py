"""Save a stack as a layered file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io
from server import PromptServer

from ...layered_core.canvas.compositing import composite
from ...layered_core.document import LayerDocument
from ...layered_core.errors import invalid
from ...layered_core.files import shown_otherwise, write_folder, write_layers
from ...layered_core.formats.file_layers import BITS
from ...layered_core.formats.pictures import check_output
from .long_work import check_main_memory
from .preview import Preview
from .socket import LAYERS, read_stack

FORMATS = {"psd": ".psd", "psb": ".psb", "ora": ".ora", "png folder": ""}
"""The formats on offer, and how the file's name ends for each."""


class SaveLayers(io.ComfyNode):
    """Save LAYERS as a layered file in the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_SaveLayers",
            display_name="Save Layers",
            category="layered diffusion/layers",
            description=(
                "Save a stack for Photoshop, Krita or GIMP with its names, masks, opacity, blend modes, "
                "words and recipes, and with the workflow. Load Layers reads the same stack back."
            ),
            search_aliases=["save psd", "export psd", "photoshop", "save ora", "openraster", "krita", "gimp",
            "export layers", "document"],
            inputs=[
                LAYERS.Input("layers", tooltip="The stack to save."),
                io.String.Input(
                    "filename_prefix", default="layers",
                    tooltip="Beginning of the file's name; a number follows. It may contain folders and "
                        "placeholders such as %year%, as in Save Image.",
                ),
                io.Combo.Input(
                    "format", options=list(FORMATS), default="psd",
                    tooltip="psd: Photoshop. psb: Photoshop above 2 GB. ora: Krita, GIMP, MyPaint. png "
                    "folder: pictures and document.json.",
                ),
                io.Combo.Input(
                    "bits", options=[str(b) for b in BITS], default="8", advanced=True,
                    tooltip="How exactly pixels are kept: 8, 16 or 32 bits a channel. With 32 no bit is "
                        "lost, and the file is several times as large. Neutral: 32. "
                        "The default is 8, which every program reads.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The saved file, relative to the "
                "output folder.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, layers: Mapping[str, Any], filename_prefix: str, format: str, bits: str
    ) -> io.NodeOutput:
        """Write the file under the next free number, and show the composite."""
        document = read_stack(layers)
        if not len(document):
            raise invalid(
                "layers: number of layers", 0, "at least one", "Lay a picture on the stack with Load Layer"
            )
        check_main_memory(
            _bytes_to_write(document),
            f"Save Layers of {document.width}x{document.height} pixels",
            "Take fewer layers, or scale them down",
        )
        path = _free_path(filename_prefix, FORMATS[format], document)
        workflow = (
            None
            if args.disable_metadata
            else {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        )
        path = (
            write_layers(document, path, workflow, int(bits))
            if FORMATS[format]
            else write_folder(document, path, workflow)
        )
        told = shown_otherwise(document, path)
        if told:
            logging.warning("Save Layers: %s: %s", path.name, "; ".join(told))
            PromptServer.instance.send_progress_text("\n".join(told), cls.hidden.unique_id)
        file = path.relative_to(folder_paths.get_output_directory())
        saved = {
            "filename": file.name,
            "subfolder": file.parent.as_posix().removeprefix("."),
            "type": "output",
        }
        pixels = composite(document, rules="photoshop")
        opaque = bool(pixels[..., 3].amin() == 1)
        shown = Preview(pixels[None, ..., : 3 if opaque else 4], cls)
        return io.NodeOutput(file.as_posix(), ui={**shown.as_dict(), "layered_files": [saved]})


def _bytes_to_write(document: LayerDocument) -> int:
    """Return the memory that writing takes: for each pixel of a layer its rounded copy and its channels, for each of
    the canvas the composite, its colours over white, and the preview."""
    own = sum(x.image.shape[0] * x.image.shape[1] for x in document if x.image is not None)
    return own * (16 + 8) + document.width * document.height * (16 + 16 + 8)


def _free_path(prefix: str, ending: str, document: LayerDocument) -> Path:
    """Return the next free file name in ComfyUI's output folder, and make the folder for it.

    Raises:
        LayeredError: no file can have such a name.
    """
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            prefix, folder_paths.get_output_directory(), document.width, document.height
        )
        path = Path(folder) / f"{name}_{counter:05}_{ending}"
        check_output(path, folder=True)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        allowed = "the beginning of a file's name, which may have folders before it"
        raise invalid("filename_prefix", prefix, allowed, why) from None
    return path
