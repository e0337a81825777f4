"""A stack that was made by hand on a board: layers of the board's own among those that came from elsewhere.

As JSON, a document (see :mod:`~layered_core.formats.document_json`) whose ``image`` and ``mask`` name pictures of
the host's, with three keys more::

    {"version": 1, "width": 768, "height": 512, "layers": [{"name": "house", "image": "house.png", ...}],
     "marked": ["house"], "locked": ["sky"], "arrangement": {"version": 1, "layers": {}, "order": ["sky", "house"]}}

``marked`` names layers to redo, ``locked`` layers that the editor leaves in place. ``arrangement`` changes layers
that are not the board's own, and orders all of them if some are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..document import MAX_LAYERS, Layer, LayerDocument, unique_names
from ..errors import LayeredError, invalid
from ..formats.document_json import layer_entries, read_layers
from ..formats.limits import Budget, Limits
from ..formats.plain_values import is_version, known_entries
from .arrangement import Arrangement, arrange, read_arrangement

VERSION = 1
"""Version of the JSON form."""

PICTURES = ("image", "mask")
"""The keys of a layer that name a picture."""

SIDE = 1024
"""Width and height of an empty board, pixels."""


@dataclass(frozen=True)
class Board:
    """A board as its JSON describes it; pictures are not read yet."""

    canvas: LayerDocument
    """Size, background and words of the whole picture; without layers."""
    sized: bool = False
    """Whether the JSON gives the size; else layers that come from elsewhere do. Neutral: False."""
    layers: tuple[Any, ...] = ()
    """The board's own layers, back to front, as JSON gives them. Neutral: empty."""
    marked: tuple[str, ...] = ()
    """Names of the layers to redo. Neutral: empty."""
    locked: tuple[str, ...] = ()
    """Names of the layers that the editor leaves where they are. Neutral: empty."""
    arrangement: Arrangement = Arrangement()
    """Changes to layers that are not the board's own, and the order of all. Neutral: no changes."""


def read_board(data: object) -> Board:
    """Return the board of a JSON form, given parsed or as text; None, ``{}`` and ``""`` are an empty board.

    Raises:
        LayeredError: the JSON is wrong; the text starts with ``board:`` and names the layer and the key. Whether
            pictures exist is not checked.
    """
    try:
        return _board(data)
    except LayeredError as error:
        raise LayeredError(f"board: {error}") from None


def _board(data: object) -> Board:
    if isinstance(data, str):
        try:
            data = json.loads(data) if data.strip() else {}
        except (ValueError, RecursionError) as error:
            raise invalid("JSON", data, f"a JSON object ({error})") from None
    if not data:
        return Board(LayerDocument(SIDE, SIDE))
    allowed = {f.name for f in fields(LayerDocument)} | {"version", "marked", "locked", "arrangement"}
    entries = known_entries(data, allowed, "JSON")
    if not is_version(version := entries.pop("version", None), VERSION):
        raise invalid(
            "version", version, str(VERSION), "A newer version of this pack made this board: update the pack"
        )
    layers = layer_entries(entries.pop("layers", []), MAX_LAYERS)
    marked, locked = (_names(key, entries.pop(key, [])) for key in ("marked", "locked"))
    arrangement = read_arrangement(entries.pop("arrangement", None))
    sized = "width" in entries and "height" in entries
    if isinstance(entries.get("background"), list):
        entries["background"] = tuple(entries["background"])
    canvas = LayerDocument(**{"width": SIDE, "height": SIDE, **entries})
    plain = read_layers([_without_pictures(x) for x in layers], canvas, _no_picture, Budget(Limits()), [])
    replace(canvas, layers=plain)  # checks that names occur once
    return Board(canvas, sized, tuple(layers), marked, locked, arrangement)


def _without_pictures(entry: object) -> object:
    """Return the JSON of a layer without its pictures, so that all else can be checked."""
    if not isinstance(entry, Mapping) or not any(entry.get(key) for key in PICTURES):
        return entry
    return {key: value for key, value in entry.items() if key not in PICTURES}


def _no_picture(name: object, key: str) -> Path:
    raise invalid(key, name, "the name of a picture")


def _names(key: str, data: object) -> tuple[str, ...]:
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise invalid(key, data, "a list of layer names")
    return tuple(dict.fromkeys(data))


def laid(
    board: Board, find: Callable[[object, str], Path], budget: Budget, below: LayerDocument | None = None
) -> tuple[LayerDocument, tuple[str, ...], list[str]]:
    """Return the stack of a board, the marked names that it has, and remarks.

    Args:
        board: as :func:`read_board` gives it.
        find: returns the file that the name of a picture stands for, as
            :func:`~layered_core.formats.document_json.read_layers` wants it.
        budget: counts the memory of the pictures.
        below: layers that come from elsewhere. Without an order they lie behind the board's own; one with the
            name of an own layer gets a number.

    Raises:
        LayeredError: a layer is wrong, or there are too many; the text starts with ``board:`` and names the
            layer and the field.
    """
    remarks: list[str] = []
    try:
        canvas = _canvas(board, below)
        own = replace(canvas, layers=read_layers(board.layers, canvas, find, budget, remarks)).layers
        others = renamed([layer.name for layer in own], below)
        for before, after in zip(below or (), others, strict=True):
            if before.name != after.name:
                remarks.append(
                    f"Two layers are called {before.name!r}: the one that is not the board's own is "
                    f"{after.name!r} now."
                )
        stack, absent = arrange(replace(canvas, layers=(*others, *own)), board.arrangement)
    except LayeredError as error:
        raise LayeredError(f"board: {error}") from None
    names = [layer.name for layer in stack]
    gone = [name for name in dict.fromkeys((*absent, *board.marked)) if name not in names]
    if gone:
        remarks.append(f"Not on the board now, what was set for them is kept: {', '.join(map(repr, gone))}.")
    return stack, tuple(name for name in names if name in board.marked), remarks


def _canvas(board: Board, below: LayerDocument | None) -> LayerDocument:
    """Return the board's canvas; what it leaves open is that of ``below``."""
    if below is None:
        return board.canvas
    kept = {
        key: getattr(board.canvas, key) or getattr(below, key) for key in ("background", "prompt", "negative")
    }
    size = board.canvas if board.sized else below
    return LayerDocument(size.width, size.height, **kept)


def renamed(own: Sequence[str], below: LayerDocument | None) -> tuple[Layer, ...]:
    """Return the layers of ``below``, those with a name among ``own`` under another name."""
    return unique_names([*map(Layer, own), *(below or ())])[len(own) :]
