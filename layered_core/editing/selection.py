"""Choose layers of a document by name or number."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from fnmatch import fnmatchcase

from ..document import LayerDocument
from ..errors import LayeredError, invalid


def select_layers(document: LayerDocument, which: str) -> tuple[LayerDocument, LayerDocument]:
    """Return a document with the chosen layers and one with the rest, each in the order of ``document``.

    Both keep the canvas and the prompts. The background colour goes to the document that gets the bottom
    layer.

    Args:
        document: any document.
        which: names, numbers (1 is at the back, -1 in front), ranges (``2-4``) and patterns (``cloud*``),
            separated by commas. An exact layer name takes precedence; a name that contains commas is put in
            double quotes.

    Raises:
        LayeredError: a part of ``which`` matches no layer; the error lists the names.
    """
    names = [layer.name for layer in document]
    if not names:
        raise LayeredError(f"layers to select: {which!r} matches no layer: the document is empty. Add layers")
    parts = [part.strip() for part in next(csv.reader([which], skipinitialspace=True), [])]
    chosen = {index for part in parts if part for index in _chosen(part, names)}
    if not chosen:
        raise invalid(
            "layers to select", which, _names(names), "Give at least one name or number, or * for all"
        )
    split = []
    for wanted in (True, False):
        layers = tuple(layer for index, layer in enumerate(document) if (index in chosen) == wanted)
        split.append(
            replace(
                document, layers=layers, background=document.background if (0 in chosen) == wanted else None
            )
        )
    return split[0], split[1]


def _chosen(part: str, names: list[str]) -> list[int]:
    """Return the indices of the layers that one part of ``which`` matches."""
    if part in names:
        return [names.index(part)]
    count = len(names)
    if number := re.fullmatch(r"-?\d+", part):
        index = int(number[0])
        index = index - 1 if index > 0 else count + index if index < 0 else -1
        found = [index] if 0 <= index < count else []
    elif span := re.fullmatch(r"(\d+)\s*-\s*(\d+)", part):
        found = [index for index in range(count) if int(span[1]) <= index + 1 <= int(span[2])]
    else:
        pattern = part.replace("[", "[[]")
        found = [index for index, name in enumerate(names) if fnmatchcase(name, pattern)]
    if not found:
        raise invalid(
            "layer to select",
            part,
            _names(names),
            f"Numbers go from 1 (back) to {count} (front)",
        )
    return found


def _names(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
