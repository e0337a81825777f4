"""Keep a LoRA that was trained from a layer, and put it into the layer's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import safetensors.torch
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.document import Lora
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.formats.part_files import part_file
from ...layered_core.learning.word_files import ENDING, check_word_name
from ..layers.socket import LAYERS, read_stack, write_stack
from .training_data import CATEGORY


class SaveLayerLora(io.ComfyNode):
    """Save a LoRA into ComfyUI's folder and set it in a layer's recipe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_SaveLayerLora",
            display_name="Save LoRA for Layer",
            category=CATEGORY,
            description=(
                "Save a LoRA that Train LoRA has made into ComfyUI's folder of LoRAs, and put it into a "
                "layer's recipe: it then acts where the layer is."
            ),
            search_aliases=["save lora", "layer lora", "lora to layer", "regional lora", "export lora"],
            inputs=[
                LAYERS.Input("layers", tooltip="The stack."),
                io.String.Input("layer", default="", tooltip="Name of the layer that gets the LoRA."),
                io.Custom("LORA_MODEL").Input("lora", tooltip="From Train LoRA."),
                io.String.Input("name", default="my-layer", tooltip="Name of the file, letters, digits, _ and "
                    "-, without an ending."),
                io.Float.Input("strength", default=1.0, min=-4.0, max=4.0, step=0.05, tooltip="Factor on the "
                    "LoRA in the layer's recipe, -4 to 4. Neutral: 0."
                    " The default is 1, the LoRA as it was trained."),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace a file of that name. Off: the "
                    "new file gets a number. Neutral: none."),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="The stack with the LoRA in the layer's recipe."),
                io.String.Output(display_name="file", tooltip="Name of the file in ComfyUI's folder of LoRAs."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, layers: Mapping[str, Any], layer: str, lora: Mapping[str, Tensor], name: str, strength: float,
        overwrite: bool,
    ) -> io.NodeOutput:  # fmt: skip
        """Write the file and change the recipe."""
        document = read_stack(layers)
        before = document.layer(layer)
        check_word_name("name", name)
        if not isinstance(lora, Mapping) or not lora:
            raise invalid("lora", type(lora).__name__, "the LoRA that Train LoRA gives", "Connect its output")
        path = _path(name, overwrite)
        _write(path, lora)
        kept = tuple(x for x in before.recipe.loras if Path(x.name).stem != path.stem)
        recipe = replace(before.recipe, loras=(*kept, Lora(path.name, strength)))
        after = tuple(replace(x, recipe=recipe) if x is before else x for x in document)
        return io.NodeOutput(write_stack(replace(document, layers=after)), path.name)


def _path(name: str, overwrite: bool) -> Path:
    """Return the file in ComfyUI's first folder of LoRAs; with a number if there is one already."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    path, number = folder / f"{name}{ENDING}", 2
    while path.exists() and not overwrite:
        path, number = folder / f"{name}-{number}{ENDING}", number + 1
    return path


def _write(path: Path, lora: Mapping[str, Tensor]) -> None:
    content = safetensors.torch.save({key: tensor.cpu().contiguous() for key, tensor in lora.items()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part_file(path) as file:
            file.write(content)
    except OSError as error:
        raise LayeredError(
            f"LoRA {path.name!r} cannot be written to {str(path.parent)!r}: {error.strerror}"
        ) from None
