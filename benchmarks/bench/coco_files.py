"""Read COCO's captions and instances: ``captions_*.json`` and ``instances_*.json`` of one folder."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from layered_core.canvas.resizing import resized
from layered_core.document import MAX_SIDE
from layered_core.errors import LayeredError, check_number, check_whole, invalid

GET = "Give the folder 'annotations' of COCO, as it is unpacked from annotations_trainval2017.zip"

_FINE = 512
"""Least side in pixels at which polygons are drawn, before they are reduced by area."""


class Square(NamedTuple):
    """A square part of a photograph, in its pixels."""

    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Instance:
    """One object of a photograph."""

    category: str
    """Name of its category, e.g. ``teddy bear``."""
    box: tuple[float, float, float, float]
    """Left, top, width and height in pixels of the photograph."""
    outline: Sequence[Sequence[float]] | np.ndarray
    """Polygons, ``x, y, x, y, …`` in pixels each; or a run-length code: the lengths of runs of 0 and 1 by turns,
    column by column."""
    height: int
    """Height of the photograph in pixels, the length of a column."""

    def mask(self, square: Square, side: int) -> Tensor:
        """Return the object's mask in a square of the photograph, bool ``[side, side]``."""
        if isinstance(self.outline, np.ndarray):
            runs = np.repeat(np.arange(len(self.outline)) % 2, self.outline).astype(np.float32)
            whole = torch.from_numpy(runs.reshape(-1, self.height).T.copy())
            rows = slice(square.top, square.top + square.side)
            columns = slice(square.left, square.left + square.side)
            return resized(whole[rows, columns], side, side) > 0.5
        times = max(2, _FINE // side)
        canvas = Image.new("L", (side * times, side * times))
        pen, scale = ImageDraw.Draw(canvas), side * times / square.side
        for polygon in self.outline:
            # Pillow counts from the middle of a pixel, COCO from its corner.
            xs = [(x - square.left) * scale - 0.5 for x in polygon[::2]]
            ys = [(y - square.top) * scale - 0.5 for y in polygon[1::2]]
            pen.polygon(list(zip(xs, ys, strict=True)), fill=255)
        return torch.from_numpy(np.array(canvas.reduce(times))) > 127


@dataclass(frozen=True)
class Photo:
    """A photograph of COCO: its size, what people wrote about it, and its objects. The pixels are not needed."""

    number: int
    """COCO's id of the photograph."""
    width: int
    height: int
    captions: tuple[str, ...]
    """In the order of their ids."""
    instances: tuple[Instance, ...]
    """Its objects without crowds, in the order of their ids."""


def annotation_files(folder: Path) -> tuple[Path, Path]:
    """Return the caption file and the instance file of a folder. Of several pairs, that of ``val`` is taken.

    Raises:
        LayeredError: the folder has no pair of files, or several.
    """
    if not folder.is_dir():
        raise LayeredError(f"--annotations {str(folder)!r} is no folder. {GET}")
    kinds = [
        {path.stem.removeprefix(f"{kind}_"): path for path in folder.glob(f"{kind}_*.json")}
        for kind in ("captions", "instances")
    ]
    pairs = sorted(kinds[0].keys() & kinds[1].keys())
    if not pairs:
        missing = "instances" if kinds[0] else "captions"
        raise LayeredError(
            f"--annotations {str(folder)!r} lacks '{missing}_*.json'; needed are captions_X.json and "
            f"instances_X.json with the same X, e.g. val2017. {GET}"
        )
    chosen = pairs if len(pairs) == 1 else [name for name in pairs if name.startswith("val")]
    if len(chosen) != 1:
        raise invalid(
            f"--annotations {str(folder)!r}: sets", ", ".join(pairs), "one set, or several of which one is val…",
            "Copy captions_X.json and instances_X.json of one X into a folder of their own",
        )  # fmt: skip
    return kinds[0][chosen[0]], kinds[1][chosen[0]]


def annotations_checksum(folder: Path) -> str:
    """Return a checksum of a folder's caption and instance files, 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in annotation_files(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def read_photos(folder: Path) -> tuple[Photo, ...]:
    """Return the photographs of a folder, in the order of their ids. Files that did not change are read once.

    Raises:
        LayeredError: a file is missing, is not JSON, or lacks an entry; the text names it.
    """
    files = annotation_files(folder)
    return _read(*files, tuple(path.stat().st_mtime_ns for path in files))


@functools.lru_cache(maxsize=1)
def _read(captions_file: Path, instances_file: Path, changed: tuple[int, ...]) -> tuple[Photo, ...]:
    """Read the photographs of two files that were last changed at these times."""
    captions: dict[int, list[tuple[int, str]]] = {}
    for entry, where in _entries(_table(captions_file), captions_file, "annotations"):
        with _checked(where):
            text = " ".join(_text(entry["caption"]).split())
            captions.setdefault(entry["image_id"], []).append((entry["id"], text))
    table = _table(instances_file)
    names: dict[int, str] = {}
    for entry, where in _entries(table, instances_file, "categories"):
        with _checked(where):
            names[entry["id"]] = _text(entry["name"])
    sizes: dict[int, tuple[int, int]] = {}
    for entry, where in _entries(table, instances_file, "images"):
        with _checked(where):
            sizes[entry["id"]] = width, height = entry["width"], entry["height"]
            check_whole("width", width, 1, MAX_SIDE)
            check_whole("height", height, 1, MAX_SIDE)
    instances: dict[int, list[tuple[int, Instance]]] = {}
    for entry, where in _entries(table, instances_file, "annotations"):
        with _checked(where):
            if not entry.get("iscrowd"):
                found = _instance(entry, names[entry["category_id"]], *sizes[entry["image_id"]])
                instances.setdefault(entry["image_id"], []).append((entry["id"], found))
    return tuple(
        Photo(
            number, width, height,
            tuple(text for _, text in sorted(captions.get(number, []))),
            tuple(x for _, x in sorted(instances.get(number, []), key=lambda pair: pair[0])),
        )
        for number, (width, height) in sorted(sizes.items())
    )  # fmt: skip


def _table(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LayeredError(f"{str(path)!r} is no JSON: {error}. Download or unpack it again") from None


def _entries(table: Any, path: Path, what: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the entries of one list of a file, each with its place in words."""
    if not isinstance(table, dict) or not isinstance(table.get(what), list):
        raise LayeredError(f"{str(path)!r} has no list {what!r}, so it is no file of COCO. {GET}")
    for number, entry in enumerate(table[what]):
        yield entry, f"{str(path)!r}: {what}[{number}]"


@contextmanager
def _checked(where: str) -> Iterator[None]:
    """Name the entry in which something is missing or wrong."""
    try:
        yield
    except LayeredError as error:
        raise LayeredError(f"{where}: {error}. {GET}") from None
    except KeyError as error:
        raise LayeredError(f"{where} lacks {error}, or nothing has that id. {GET}") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LayeredError(f"{where} is broken: {error}. {GET}") from None


def _instance(entry: Mapping[str, Any], category: str, width: int, height: int) -> Instance:
    x, y, w, h = (float(value) for value in entry["bbox"])
    for name, value in (("x", x), ("y", y), ("width", w), ("height", h)):
        check_number(f"bbox: {name}", value, -MAX_SIDE, MAX_SIDE)
    outline = entry["segmentation"]
    if isinstance(outline, list):
        for polygon in outline:
            if len(polygon) < 6 or len(polygon) % 2 or not math.isfinite(sum(polygon)):
                raise invalid("segmentation", polygon, "polygons of three or more points, x and y by turns")
        return Instance(category, (x, y, w, h), outline, height)
    if list(outline["size"]) != [height, width]:
        raise invalid("segmentation: size", outline["size"], f"{[height, width]}, the photograph's")
    counts = outline["counts"]
    runs = np.array(_counts(counts) if isinstance(counts, str) else counts, np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != width * height:
        raise invalid("segmentation: sum of counts", int(runs.sum()), f"{width * height}, the pixels")
    return Instance(category, (x, y, w, h), runs, height)


def _counts(code: str) -> list[int]:
    """Return the runs of a compressed run-length code (github cocodataset/cocoapi, ``maskApi.c``): numbers of five
    bits a letter, the third and later ones as differences to the number two before."""
    numbers: list[int] = []
    value = shift = 0
    for letter in code:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
            value = shift = 0
    return numbers


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise invalid("text", value, "a string")
    return value
