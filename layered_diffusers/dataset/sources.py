"""The pictures of a folder, without those that lead out of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from layered_core.errors import LayeredError, invalid
from layered_core.formats.untrusted import file_inside

ENDINGS = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".tga", ".mpo")
)
"""File name endings of pictures."""

MASKS = ".masks"
"""Ends the name of a folder of masks beside a picture: ``cat.masks`` of ``cat.png``."""

DEPTH = ".depth"
"""Ends the stem of a depth picture: ``cat.depth.png`` of ``cat.png``."""


@dataclass(frozen=True)
class Source:
    """A picture of a folder."""

    name: str
    """Its path in the folder, with ``/`` between the parts."""
    file: Path


class Refused(NamedTuple):
    """A file or folder that is not read."""

    source: str
    reason: str


def sources_of(folder: Path, skipped: Path) -> tuple[list[Source], list[Refused]]:
    """Find the pictures in a folder and its sub-folders, in the order of their names.

    Hidden ones, masks and depth pictures beside others are no sources, nor is anything in ``skipped``, the folder that
    is written to. Links out of the folder, and links to folders, are refused.

    Raises:
        LayeredError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise invalid("folder", str(folder), "an existing folder")
    found: list[Source] = []
    refused: list[Refused] = []

    def failed(error: OSError) -> None:
        where = os.path.relpath(error.filename or folder, folder)
        refused.append(Refused(Path(where).as_posix(), f"cannot be read: {error.strerror}"))

    for path, folders, files in os.walk(folder, onerror=failed):
        here = Path(path)
        linked = [x for x in folders if (here / x).is_symlink()]
        refused += [
            Refused(_name(here / x, folder), "a link to a folder, which is not followed") for x in linked
        ]
        folders[:] = sorted(
            x for x in folders
            if x not in linked and not x.startswith(".") and not x.endswith(MASKS)
            and not _same(here / x, skipped)
        )  # fmt: skip
        for file in files:
            stem, end = os.path.splitext(file)
            if file.startswith(".") or end.lower() not in ENDINGS or stem.endswith(DEPTH):
                continue
            name = _name(here / file, folder)
            if file_inside(folder, name) is None:
                refused.append(Refused(name, "a link out of the folder, which is not followed"))
            elif not os.path.isfile(here / file):
                refused.append(Refused(name, "not a file"))
            else:
                found.append(Source(name, here / file))
    return sorted(found, key=lambda x: x.name), sorted(refused)


def check_name(folder: Path, name: object, where: str) -> Path:
    """Return the path of a file of the folder that an untrusted ``name`` means.

    Raises:
        LayeredError: the name leads out of the folder, also by a link, or is no file's.
    """
    path = file_inside(folder, name) if isinstance(name, str) else None
    if path is None or not os.path.isfile(path):
        fix = "Names are relative to the folder of the pictures, without '..', and links out of it are not followed"
        raise invalid(where, name, "a file in the folder of the pictures", fix)
    return path


def beside(picture: Path | None, folder: Path | None, end: str) -> Path | None:
    """Return the file or folder beside a picture that has its stem and ``end``; None if there is none.

    Raises:
        LayeredError: it is a link out of ``folder``.
    """
    if picture is None:
        return None
    path = picture.with_name(picture.stem + end)
    if not os.path.exists(path):
        return None
    root = picture.parent if folder is None else folder
    if not path.resolve().is_relative_to(root.resolve()):
        raise LayeredError(
            f"{path.name!r} is a link out of the folder of the pictures, which is not followed. Copy it into the folder"
        )
    return path


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False
