"""Draw the hint picture of a ControlNet from layers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
from comfy_api.latest import io

from ...layered_core.control.hints import Preprocessor, document_hint, load_preprocessor
from ..layers.long_work import check_main_memory
from ..layers.preview import Preview
from ..layers.socket import LAYERS, read_stack


def preprocessor(kind: str) -> Preprocessor:
    """Return the preprocessor ``kind`` of controlnet_aux, with its checkpoint from
    ``models/controlnet_aux``."""
    return _loaded(kind, str(Path(folder_paths.models_dir, "controlnet_aux")))


@functools.lru_cache(maxsize=2)
def _loaded(kind: str, folder: str) -> Preprocessor:
    return load_preprocessor(kind, Path(folder), comfy.model_management.get_torch_device())


class LayerControlHint(io.ComfyNode):
    """Draw the hint picture of a stack of layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayerControlHint",
            display_name="Layer Control Hint",
            category="layered diffusion/control",
            description=(
                "Draw the hint picture for a ControlNet: each layer where it is seen, drawn as the "
                "control hint of its recipe says; black elsewhere. Canny and segmentation need nothing "
                "else; the other kinds need the package controlnet_aux."
            ),
            search_aliases=[
                "controlnet preprocessor",
                "canny",
                "hint",
                "edges",
                "segmentation",
                "lineart",
                "depth",
                "pose",
            ],
            inputs=[
                LAYERS.Input("layers", tooltip="Layers without a control hint stay black."),
                io.Boolean.Input(
                    "outline",
                    default=False,
                    tooltip="Draw the silhouette of a cut-out as an edge too (canny). Neutral: off.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="hint",
                    tooltip="The hint picture, as large as the canvas; for Masked ControlNet Apply or "
                    "any Apply ControlNet.",
                )
            ],
        )

    @classmethod
    def execute(cls, layers: Mapping[str, Any], outline: bool) -> io.NodeOutput:
        """Draw the hint picture."""
        document = read_stack(layers)
        # The masks, and a layer with its colours spread, for each pixel of the canvas.
        check_main_memory(
            document.width * document.height * (100 + 4 * len(document)),
            f"Layer Control Hint of {document.width}x{document.height} pixels",
            "Scale the canvas down",
        )
        hint = document_hint(document, outline=outline, preprocess=preprocessor)[None].movedim(1, -1)
        hint = hint.to(comfy.model_management.intermediate_device())
        return io.NodeOutput(hint, ui=Preview(hint, cls))
