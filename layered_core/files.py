"""Read and write layered files; the ending of the file name selects the format.

>>> import torch
>>> from layered_core.document import Layer, LayerDocument
>>> from layered_core.files import read_layers, write_layers
>>> document = LayerDocument(8, 8, (Layer("ball", torch.ones(4, 4, 4), prompt="a red ball"),))
>>> path = write_layers(document, "ball.ora")
>>> read_layers(path).document.layer("ball").prompt
'a red ball'
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .document import LayerDocument
from .errors import LayeredError, invalid
from .formats.document_json import pictures_of, read_document_file, write_document
from .formats.dynamic_prompts import dynamic_remark
from .formats.file_groups import check_groups
from .formats.file_layers import MISSING_IN_PSD, LayerFile
from .formats.limits import Limits
from .formats.merged_picture import condensed
from .formats.openraster import STANDARD_MODES, read_openraster, write_openraster
from .formats.part_files import part_folder
from .formats.pictures import check_output, unwritable
from .formats.to_file import check_workflow, rounded
from .progress import PIECE, watched

EXTENSIONS = (".psd", ".psb", ".ora", ".json")
"""File name endings of the formats; ``.json`` is a document with PNG files beside it."""


_hashes: dict[tuple[int, ...], str] = {}
"""Hashes of files by device, inode, size and times, oldest first."""

_MOST_HASHES = 1000
_SETTLED = 2_000_000_000
"""Nanoseconds after which a change of a file gives it another time on every file system."""


def read_layers(path: str | Path, limits: Limits | None = None, groups: str = "auto") -> LayerFile:
    """Read a PSD, PSB, OpenRaster or JSON document, or a folder with a ``document.json``.

    Args:
        path: file or folder to read.
        limits: limits on sizes; None: the default ones.
        groups: what becomes of groups, which a document has not: ``auto`` (taken apart where the picture stays the
            same, else merged into one layer), ``apart`` or ``merged`` (each group becomes one layer).

    Raises:
        LayeredError: the file is missing, broken, of another format, or exceeds ``limits``; ``groups`` is unknown.
    """
    check_groups(groups)
    path = Path(path)
    file = _read(path / "document.json" if os.path.isdir(path) else path, limits, groups)
    remark = dynamic_remark(file.document, file.document.prompt, file.document.negative)
    return replace(file, warnings=(*condensed(file.warnings), *([remark] if remark else [])))


def _read(path: Path, limits: Limits | None, groups: str) -> LayerFile:
    match path.suffix.lower():
        case ".psd" | ".psb":
            from .formats.psd_read import read_psd  # psd-tools is fifty modules, and few runs read a PSD

            return read_psd(path, limits, groups)
        case ".ora":
            return read_openraster(path, limits, groups)
        case ".json":
            return read_document_file(path, limits)
    raise invalid("layered file", str(path), f"a name that ends in {', '.join(EXTENSIONS)}")


def content_hash(path: str | Path) -> str:
    """Return a SHA-256 hash of a layered file's content, including the pictures beside a JSON document."""
    path = Path(path)
    files = [path, *(pictures_of(path) if path.suffix.lower() == ".json" else [])]
    return hashlib.sha256("".join(file_hash(file) for file in files).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return a SHA-256 hash of a file. The file is not read again while the system says that it has not changed."""
    info = path.stat()
    key = info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
    if key not in _hashes:
        digest = hashlib.sha256()
        with watched(path.open("rb"), info.st_size) as data:
            while chunk := data.read(PIECE):
                digest.update(chunk)
        # Of a file that was written just now, the next change could have the same time.
        if abs(time.time_ns() - max(info.st_mtime_ns, info.st_ctime_ns)) < _SETTLED:
            return digest.hexdigest()
        while len(_hashes) >= _MOST_HASHES:
            _hashes.pop(next(iter(_hashes)))
        _hashes[key] = digest.hexdigest()
    return _hashes[key]


def write_layers(
    document: LayerDocument, path: str | Path, workflow: Mapping[str, Any] | None = None, bits: int = 32
) -> Path:
    """Write a PSD, PSB or OpenRaster file, as the ending of ``path`` says; without an ending, write a new
    folder of PNG files and JSON.

    The file or folder appears complete or not at all.

    Args:
        document: any document.
        path: the file or folder to write; its parent folder must exist.
        workflow: data of the host that is stored in the file, plain JSON values.
        bits: precision of the pixels: rounded to 8 or 16 bits a channel; 32 keeps them as they are, which
            makes the file of a sampled picture several times larger. PNG files always have 8.

    Returns:
        The path to pass to :func:`read_layers`.

    Raises:
        LayeredError: the parent folder does not exist, a new folder's name is taken, the ending is
            unknown, or ``workflow`` or ``bits`` is not allowed.
    """
    path = Path(path)
    if not os.path.isdir(path.parent):
        raise invalid("output folder", str(path.parent), "an existing folder")
    check_output(path, folder=not path.suffix)
    check_workflow(workflow)
    document = rounded(document, bits)
    match path.suffix.lower():
        case ".psd" | ".psb":
            from .formats.psd_write import write_psd

            write_psd(document, path, workflow)
        case ".ora":
            write_openraster(document, path, workflow)
        case "":
            return write_folder(document, path, workflow)
        case _:
            raise invalid(
                "layered file",
                str(path),
                "a name that ends in .psd, .psb or .ora, or a folder's name without a dot",
            )
    return path


def shown_otherwise(document: LayerDocument, path: str | Path) -> tuple[str, ...]:
    """Return what other programs show otherwise of a file that :func:`write_layers` makes, one line each; read here,
    it is the same."""
    end, lines = Path(path).suffix.lower(), []
    for layer in document:
        mode = layer.blend_mode
        if end in (".psd", ".psb") and mode in MISSING_IN_PSD:
            lines.append(
                f"layer {layer.name!r}: other programs show its blend mode {mode} as {MISSING_IN_PSD[mode]}, since a "
                f"Photoshop file has no such mode"
            )
        elif end == ".ora" and mode not in STANDARD_MODES:
            lines.append(
                f"layer {layer.name!r}: programs other than Krita may show its blend mode as normal, since OpenRaster "
                f"has no name for it"
            )
    return condensed(lines)


def write_folder(
    document: LayerDocument, path: str | Path, workflow: Mapping[str, Any] | None = None
) -> Path:
    """Write a new folder with ``document.json`` and its PNG files, complete or not at all; return the path of
    the JSON file."""
    path = Path(path)
    check_workflow(workflow)
    check_output(path, folder=True)
    if os.path.lexists(path):
        raise invalid("output folder", str(path), "a name that is not taken")
    made = path
    try:
        with part_folder(path) as made:
            write_document(document, made, workflow)
    except OSError as error:
        raise unwritable("folder", path, error) from None
    except LayeredError as error:  # of a picture in the temporary folder
        raise LayeredError(str(error).replace(repr(str(made))[1:-1], repr(str(path))[1:-1])) from None
    return path / "document.json"
