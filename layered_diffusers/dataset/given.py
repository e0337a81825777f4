"""Parts that need no model: words, masks and depth from files beside the pictures, and order by area."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from layered_core.canvas.resizing import resized
from layered_core.errors import LayeredError, check_letters, invalid
from layered_core.formats.limits import Limits, check_file
from layered_core.formats.pictures import read_mask
from layered_diffusers.dataset.protocols import Caption, Captioner, Found, Picture, looks
from layered_diffusers.dataset.sources import DEPTH, ENDINGS, MASKS, beside, check_name

_MOST_TEXT = 2**16
"""Greatest size of a text beside a picture, bytes."""

_MOST_WORDS = 2**28
"""Greatest size of a file of words for a whole folder, bytes."""

BACKGROUND = "background:"
"""Begins the line of a text with the words of the background."""


@dataclass(frozen=True)
class FileCaptions:
    """Reads the text beside a picture, ``cat.txt`` of ``cat.png``.

    Its first line describes the picture, and every other line names a thing. A line that begins with ``background:``
    has the words of the background.
    """

    folder: Path | None = None
    """Folder of the pictures, out of which no link is followed; None: the picture's own."""
    looks: ClassVar[bool] = False

    def describe(self, picture: Picture) -> Caption:
        """Return the caption beside the picture's file."""
        path = beside(picture.file, self.folder, ".txt")
        if path is None:
            wanted = "a text beside the picture" if picture.file is None else f"{picture.file.stem}.txt"
            raise LayeredError(
                f"{wanted} was not found. Write it: a line that describes the picture, then a line for each thing; or "
                f"choose another captioner"
            )
        lines = [x.strip() for x in _text(path, _MOST_TEXT).splitlines() if x.strip()]
        behind = [x[len(BACKGROUND) :].strip() for x in lines if x.lower().startswith(BACKGROUND)]
        lines = [x for x in lines if not x.lower().startswith(BACKGROUND)]
        if not lines:
            raise invalid(path.name, "", "a line that describes the picture, then a line for each thing")
        return Caption(lines[0], tuple(lines[1:]), behind[0] if behind else "")


@dataclass(frozen=True, eq=False)
class WordsFirst:
    """Takes a picture's caption from a table if it is there, else from another captioner."""

    words: Mapping[Path, Caption]
    """Captions by the pictures' files."""
    other: Captioner

    @property
    def looks(self) -> bool:
        """Whether the other captioner looks at pictures."""
        return looks(self.other)

    def describe(self, picture: Picture) -> Caption:
        """Return the caption of the picture's file, or what the other captioner sees."""
        known = None if picture.file is None else self.words.get(picture.file)
        return self.other.describe(picture) if known is None else known


@dataclass(frozen=True)
class FileMasks:
    """Reads the masks beside a picture: the pictures in the folder ``cat.masks`` of ``cat.png``, white where a thing
    is. A file's name is the phrase, ``a_black_cat.png``; a number at its end does not count, ``a_black_cat_2.png``."""

    folder: Path | None = None
    """As in :class:`FileCaptions`."""
    looks: ClassVar[bool] = False

    def find(self, picture: Picture, phrases: Sequence[str]) -> list[Found]:
        """Return all masks beside the picture's file, whatever the phrases are; none for a picture without a file."""
        if picture.file is None:
            return []
        place = beside(picture.file, self.folder, MASKS)
        if place is None or not os.path.isdir(place):
            raise LayeredError(
                f"folder {picture.file.stem}{MASKS} was not found beside the picture. Put a picture for each thing "
                f"into it, white where the thing is; or choose another segmenter"
            )
        found = []
        for name in sorted(os.listdir(place)):
            stem, end = os.path.splitext(name)
            if name.startswith(".") or end.lower() not in ENDINGS:
                continue
            mask = read_mask(
                check_name(self.folder or place, _inside(place / name, self.folder or place), "mask")
            )
            if tuple(mask.shape) != picture.size:
                allowed = f"the picture's size, {picture.size[1]}x{picture.size[0]}"
                raise invalid(f"size of mask {name!r}", f"{mask.shape[1]}x{mask.shape[0]}", allowed)
            words = stem.replace("_", " ").split()
            phrase = " ".join(words[:-1] if len(words) > 1 and words[-1].isdecimal() else words)
            found.append(Found(phrase or stem, mask, 1.0))
        return found


@dataclass(frozen=True)
class FileDepth:
    """Orders things by the median of the picture ``cat.depth.png`` beside ``cat.png``, white near and black far."""

    folder: Path | None = None
    """As in :class:`FileCaptions`."""

    def order(self, picture: Picture, masks: Tensor) -> Sequence[int]:
        """Return the indices of the masks ``[K, H, W]`` from far to near."""
        path = beside(picture.file, self.folder, f"{DEPTH}.png")
        if path is None:
            stem = "the picture's name" if picture.file is None else picture.file.stem
            raise LayeredError(
                f"{stem}{DEPTH}.png was not found beside the picture. Write it, white near and black far; or choose "
                f"another depth"
            )
        return by_median(resized(read_mask(path), *picture.size), masks)


@dataclass(frozen=True)
class AreaDepth:
    """Orders things by their area: the larger is farther."""

    def order(self, picture: Picture, masks: Tensor) -> Sequence[int]:
        """Return the indices of the masks ``[K, H, W]``, the largest first."""
        areas = masks.float().flatten(1).sum(1).tolist()
        return sorted(range(len(areas)), key=lambda i: -areas[i])


def by_median(near: Tensor, masks: Tensor) -> list[int]:
    """Return the indices of ``masks`` ``[K, H, W]`` by the median of ``near`` ``[H, W]``, greater is nearer, over each;
    the nearest last. Of equal ones the first is farther."""
    medians = []
    for mask in masks:
        inside = mask > 0.5
        medians.append(float(near[inside].median()) if bool(inside.any()) else float(near.min()))
    return sorted(range(len(medians)), key=medians.__getitem__)


def read_words(path: Path, folder: Path) -> dict[Path, Caption]:
    """Read captions of a folder's pictures from a file of JSON lines, ``{"file": "a/cat.png", "text": "...",
    "phrases": ["a black cat"], "background": "a garden"}``; ``phrases`` and ``background`` may be missing.

    Raises:
        LayeredError: the file is missing or a line is wrong, or names a file out of the folder; the text says which.
    """
    words: dict[Path, Caption] = {}
    for number, line in enumerate(_text(path, _MOST_WORDS).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LayeredError(f"{where} is not JSON: {error}") from None
        known = {"file", "text", "phrases", "background"}
        if not isinstance(entry, dict) or set(entry) - known:
            raise invalid(where, entry, "a JSON object with file, text, phrases and background")
        phrases, behind = entry.get("phrases", []), entry.get("background", "")
        text = entry.get("text", "")
        if not isinstance(phrases, list) or not all(isinstance(x, str) for x in (*phrases, text, behind)):
            raise invalid(where, entry, "text and background as strings, phrases as a list of strings")
        for x in (*phrases, text, behind):
            check_letters(where, x)
        words[check_name(folder, entry.get("file"), f"{where}: file")] = Caption(text, tuple(phrases), behind)
    return words


def _text(path: Path, most: int) -> str:
    check_file(path, "text", Limits(max_file_bytes=most))
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise LayeredError(f"text {path.name!r} cannot be read: {error}. Save it as UTF-8") from None


def _inside(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
