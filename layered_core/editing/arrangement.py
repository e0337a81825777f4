"""What a user changed about a stack by hand: place, order and look of layers, by their names.

An arrangement holds only what was changed, so everything else keeps following the stack it is applied to. As
JSON::

    {"version": 1, "layers": {"star": {"x": 12, "y": 30, "opacity": 0.5}}, "order": ["sky", "star", "tree"]}

``order`` is there only when the order was changed. Names that the stack does not have (any more) are kept and
reported, never dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..document import MAX_LAYERS, MAX_SIDE, Layer, LayerDocument
from ..errors import LayeredError, check_whole, invalid

VERSION = 1
"""Of the JSON form."""

FIELDS = ("x", "y", "width", "height", "rotation", "flip_h", "flip_v", "opacity", "blend_mode", "visible")
"""What may be changed: fields of :class:`~layered_core.document.Layer`, in its units."""

MAX_NAMES = 20 * MAX_LAYERS
"""Greatest number of layer names in one arrangement; most of them of stacks that were there before."""


@dataclass(frozen=True)
class Arrangement:
    """Changes to the layers of a stack; checks itself when made."""

    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For a layer's name the changed fields among ``FIELDS`` and their values. Neutral: empty."""
    order: tuple[str, ...] = ()
    """Names back to front, or empty where the order was not changed. Neutral: empty."""

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Mapping):
            raise invalid("layers", self.layers, "a JSON object: for each layer's name its changes")
        if not isinstance(self.order, Sequence) or isinstance(self.order, str):
            raise invalid("order", self.order, "a list of layer names, back to front")
        object.__setattr__(self, "order", tuple(self.order))
        for names in (tuple(self.layers), self.order):
            if len(names) > MAX_NAMES:
                raise invalid(
                    "number of layer names", len(names), f"at most {MAX_NAMES}", "Reset the arrangement"
                )
            for name in names:
                if not isinstance(name, str) or not name.strip():
                    raise invalid("layer name", name, "a non-empty string")
        if len(set(self.order)) < len(self.order):
            raise invalid("order", list(self.order), "every name once")
        for name, changes in self.layers.items():
            _check_changes(name, changes)


def read_arrangement(data: object) -> Arrangement:
    """An arrangement from its JSON form, parsed or as text; nothing, ``{}`` and ``""`` are the neutral one.

    Raises:
        LayeredError: it starts with ``arrangement:`` and names layer and field.
    """
    try:
        if isinstance(data, str):
            data = _parsed(data)
        if data is None:
            data = {}
        if not isinstance(data, Mapping):
            raise invalid("JSON", data, "an object")
        if data and data.get("version") != VERSION:
            raise invalid(
                "version",
                data.get("version"),
                str(VERSION),
                "Another version of this pack wrote it: update the pack, or reset it",
            )
        for key in data:
            if key not in ("version", "layers", "order"):
                raise invalid("key", key, "version, layers, order")
        return Arrangement(data.get("layers", {}), data.get("order", ()))
    except LayeredError as error:
        raise LayeredError(f"arrangement: {error}") from None


def arrange(document: LayerDocument, arrangement: Arrangement) -> tuple[LayerDocument, tuple[str, ...]]:
    """``document`` as arranged, and the names in the arrangement that it does not have.

    Layers that ``order`` does not name, such as new ones, keep their own number, counted from the back.
    """
    layers = {layer.name: layer for layer in document}
    absent = tuple(
        name for name in dict.fromkeys([*arrangement.layers, *arrangement.order]) if name not in layers
    )
    for name, changes in arrangement.layers.items():
        if name in layers and changes:
            layers[name] = replace(layers[name], **changes)
    ordered = tuple(layers[name] for name in _ordered(tuple(layers), arrangement.order))
    return replace(document, layers=ordered), absent


def _ordered(names: Sequence[str], order: Sequence[str]) -> list[str]:
    ordered = [name for name in order if name in names]
    for index, name in enumerate(names):
        if name not in order:
            ordered.insert(index, name)
    return ordered


def _parsed(text: str) -> object:
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        raise invalid("JSON", text, f"a JSON object ({error})") from None


def _check_changes(name: str, changes: object) -> None:
    where = f"layer {name!r}"
    if not isinstance(changes, Mapping):
        raise invalid(where, changes, "a JSON object of changed fields")
    for key in changes:
        if key not in FIELDS:
            raise invalid(f"{where}: field", key, ", ".join(FIELDS))
    for side in ("width", "height"):
        if side in changes:
            check_whole(f"{where}: {side}", changes[side], 1, MAX_SIDE)
    Layer(name, **{"width": 1, "height": 1, **changes})  # checks the rest
