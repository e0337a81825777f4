"""Files of ComfyUI's folders that a node's input names."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...layered_core.errors import invalid


def input_path(field: str, name: object, allowed: str) -> Path:
    """Return the file that ``name`` means; it must lie inside ComfyUI's input folder, or, as ComfyUI writes
    it, in the folder ``[output]`` or ``[temp]``. Whether it exists is not checked.

    Args:
        field: what the node calls the input, for errors.
        name: what the user chose.
        allowed: what would be right, for errors.

    Raises:
        LayeredError: ``name`` is no string, or leads out of the folder.
    """
    if not isinstance(name, str):
        raise invalid(field, name, allowed)
    try:
        return Path(folder_paths.get_annotated_filepath(name))
    except ValueError:
        fix = "A path or link that leads out of the folder is not read: copy the file there"
        raise invalid(field, name, allowed, fix) from None
