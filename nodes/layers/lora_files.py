"""The files that layers' LoRAs mean: what ComfyUI lists under ``loras``, and the demo model's own."""

from __future__ import annotations

from pathlib import PurePosixPath

import folder_paths

from ...demo.world.places import LORAS
from ...layered_core.errors import invalid

KIND = "loras"
"""ComfyUI's name for the folders of LoRAs."""

# Behind the user's folders, so that the first stays the one that files are downloaded to.
folder_paths.add_model_folder_path(KIND, str(LORAS.parent))


def lora_choices() -> list[str]:
    """Return the files that a node offers, as ComfyUI lists them."""
    return list(folder_paths.get_filename_list(KIND))


def lora_file(layer: str, lora: str) -> str:
    """Return the file that a layer's LoRA means, as ComfyUI lists it.

    Args:
        layer: the layer's name, for the error.
        lora: the file's name; folder and ending may be left out.

    Raises:
        LayeredError: there is no such file, or there are several in different folders; the error names the layer and
            the LoRA, and lists what is there.
    """
    files = {name.replace("\\", "/"): name for name in lora_choices()}
    wanted = lora.replace("\\", "/")
    for same in (_is_path, _is_name):
        found = [file for file in files if same(PurePosixPath(file), wanted)]
        if len(found) == 1:
            return files[found[0]]
        if found:
            raise invalid(f"layer {layer!r}: LoRA", lora, ", ".join(found), "Write the folder too")
    there = ", ".join(files) or "none: there is no file"
    raise invalid(f"layer {layer!r}: LoRA", lora, there, "Copy it into ComfyUI's models/loras folder")


def _is_path(file: PurePosixPath, wanted: str) -> bool:
    return wanted in (str(file), str(file.with_suffix("")))


def _is_name(file: PurePosixPath, wanted: str) -> bool:
    return wanted in (file.name, file.stem)
