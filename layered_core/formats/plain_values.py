"""Convert recipes to and from plain values under their fields' names, for all formats."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

from ..document import Control, Lora, Recipe
from ..errors import invalid


def is_version(value: object, version: int) -> bool:
    """Return whether a value states the version; ``true`` does not, although it equals 1 in Python."""
    return not isinstance(value, bool) and value == version


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number; ``true`` and ``false`` are none, although Python says so."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_recipe(data: object) -> Recipe:
    """Return the recipe of plain values under its fields' names; missing fields have their defaults.

    Raises:
        LayeredError: a key is unknown or a value is wrong; the error names it.
    """
    entries = known_entries(data, {f.name for f in fields(Recipe)}, "recipe")
    if "control" in entries:
        entries["control"] = Control(
            **known_entries(entries["control"], {f.name for f in fields(Control)}, "control")
        )
    if "loras" in entries:
        if not isinstance(entries["loras"], (list, tuple)):
            raise invalid("loras", entries["loras"], "a list")
        loras = [known_entries(item, {f.name for f in fields(Lora)}, "loras") for item in entries["loras"]]
        entries["loras"] = tuple(Lora(**{"name": "", **item}) for item in loras)
    return Recipe(**entries)


def recipe_entries(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values under its fields' names, without those at their defaults: the inverse
    of :func:`read_recipe`."""
    entries = entries_of(recipe, skip={"control", "loras"})
    if recipe.control != Control():
        entries["control"] = entries_of(recipe.control)
    if recipe.loras:
        entries["loras"] = [entries_of(lora) for lora in recipe.loras]
    return entries


def entries_of(item: DataclassInstance, skip: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults."""
    return {
        f.name: getattr(item, f.name)
        for f in fields(item)
        if f.name not in skip and getattr(item, f.name) != f.default
    }


def known_entries(data: object, allowed: set[str], where: str) -> dict[str, Any]:
    """Return a copy of the JSON object ``data``.

    Raises:
        LayeredError: it is no object, or has a key that is not in ``allowed``.
    """
    if not isinstance(data, Mapping):
        raise invalid(where, data, "a JSON object")
    for key in data:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, 1)
            raise invalid(
                f"{where}: key",
                key,
                ", ".join(sorted(allowed)),
                f"Did you mean {close[0]!r}?" if close else "",
            )
    return dict(data)
