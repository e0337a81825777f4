"""Files that come to the page and go from it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from layered_core.canvas.compositing import composite
from layered_core.document import LayerDocument
from layered_core.errors import LayeredError, invalid
from layered_core.files import EXTENSIONS, read_layers, write_layers
from layered_core.formats.file_layers import LayerFile
from layered_core.formats.limits import Budget, Limits
from layered_core.formats.merged_picture import checked
from layered_core.formats.pictures import decode_picture, write_picture

KINDS = ("psd", "ora", "png")
"""Files to take home: layers twice, and the flat picture."""


def read_pictures(paths: Sequence[str], limits: Limits) -> list[tuple[str, Tensor]]:
    """Read uploaded pictures, which are then deleted; return the name without ending and the pixels ``[H, W, 4]`` of
    each. ``limits`` hold for all together.

    Raises:
        LayeredError: one cannot be read, or they need too much memory.
    """
    budget, files = Budget(limits), [Path(path) for path in paths]
    try:
        return [(file.stem, decode_picture(file, file.name, budget)) for file in files]
    finally:
        _delete(files)


def read_uploaded(paths: Sequence[str], limits: Limits, groups: str) -> tuple[str, LayerFile]:
    """Read an uploaded document, which is then deleted; return its file's name and what it holds. A JSON document
    comes with its pictures.

    Raises:
        LayeredError: there is no document or more than one, or it cannot be read.
    """
    files = [Path(path) for path in paths]
    try:
        documents = [file for file in files if file.suffix.lower() in EXTENSIONS]
        if len(documents) != 1:
            got = ", ".join(file.name for file in files)
            raise invalid("files", got, f"one document ({', '.join(EXTENSIONS)}), and its pictures for .json")
        with tempfile.TemporaryDirectory() as folder:
            for file in files:
                shutil.copyfile(file, Path(folder, file.name))
            path = Path(folder, documents[0].name)
            try:
                return path.name, checked(read_layers(path, limits, groups))
            except LayeredError as error:
                raise LayeredError(str(error).replace(f"{path.parent}/", "")) from None
    finally:
        _delete(files)


def write_file(document: LayerDocument, folder: Path, kind: str) -> Path:
    """Write ``picture.KIND`` into a new folder in ``folder`` and return its path; ``kind`` is one of :data:`KINDS`.

    Errors are those of :func:`layered_core.files.write_layers`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=folder), f"picture.{kind}")
    if kind == "png":
        write_picture(composite(document), path)
    else:
        write_layers(document, path, bits=8)
    return path


def _delete(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
