"""Changes that a user made to layers by hand: placement, order and look, stored under the layers' names.

An arrangement holds only the changed fields; all others keep the values of the document it is applied to. As
JSON::

    {"version": 1, "layers": {"star": {"x": 12, "y": 30, "opacity": 0.5}}, "order": ["sky", "star", "tree"]}

``order`` is present only if the order was changed. Names of layers that the document does not have, or no
longer has, are kept and reported, never dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..document import MAX_LAYERS, MAX_SIDE, Layer, LayerDocument
from ..errors import LayeredError, check_whole, invalid
from ..formats.plain_values import is_version

VERSION = 1
"""Version of the JSON form."""

FIELDS = ("x", "y", "width", "height", "rotation", "flip_h", "flip_v", "opacity", "blend_mode", "visible")
"""The fields of :class:`~layered_core.document.Layer` that may be changed, in the same units."""

MAX_NAMES = 20 * MAX_LAYERS
"""Greatest number of layer names in one arrangement. It may keep the names of many earlier documents."""


@dataclass(frozen=True)
class Arrangement:
    """Changes to the layers of a document; validated on construction."""

    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Layer name to its changed fields, of ``FIELDS``, with their values. Neutral: empty."""
    order: tuple[str, ...] = ()
    """Layer names back to front, or empty if the order was not changed. Neutral: empty."""

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Mapping):
            raise invalid(
                "layers", self.layers, "a JSON object with the changes of each layer under its name"
            )
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
    """Return the arrangement of a JSON form, given parsed or as text; None, ``{}`` and ``""`` change nothing.

    Raises:
        LayeredError: the JSON is wrong; the text starts with ``arrangement:`` and names layer and field.
    """
    try:
        if isinstance(data, str):
            data = _parsed(data)
        if data is None:
            data = {}
        if not isinstance(data, Mapping):
            raise invalid("JSON", data, "an object")
        if data and not is_version(data.get("version"), VERSION):
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
    """Return ``document`` with the arrangement applied, and the arrangement's names that it does not have.

    Layers that ``order`` does not name, such as new ones, keep their position, counted from the back.
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
