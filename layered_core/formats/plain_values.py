"""Recipes as plain values under the names of their fields, for every format that stores them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..document import Control, Lora, Recipe
from ..errors import invalid


def read_recipe(data: object) -> Recipe:
    """A recipe from plain values under its fields' names; missing ones take their defaults.

    Raises:
        LayeredError: an unknown key or a bad value, named.
    """
    entries = _known(data, {f.name for f in fields(Recipe)}, "recipe")
    if "control" in entries:
        entries["control"] = Control(**_known(entries["control"], {f.name for f in fields(Control)}, "control"))
    if "loras" in entries:
        if not isinstance(entries["loras"], (list, tuple)):
            raise invalid("loras", entries["loras"], "a list")
        loras = [_known(item, {f.name for f in fields(Lora)}, "loras") for item in entries["loras"]]
        entries["loras"] = tuple(Lora(**{"name": "", **item}) for item in loras)
    return Recipe(**entries)


def recipe_entries(recipe: Recipe) -> dict[str, Any]:
    """Plain values under their fields' names, those at their defaults left out; the inverse of :func:`read_recipe`."""
    entries = _entries(recipe, skip={"control", "loras"})
    if recipe.control != Control():
        entries["control"] = _entries(recipe.control)
    if recipe.loras:
        entries["loras"] = [_entries(lora) for lora in recipe.loras]
    return entries


def _entries(item: object, skip: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]  # an empty frozenset is a fine default
    """The fields of a dataclass that differ from their defaults."""
    return {f.name: getattr(item, f.name) for f in fields(item) if f.name not in skip and getattr(item, f.name) != f.default}  # type: ignore[arg-type]  # always a dataclass here


def _known(data: object, allowed: set[str], where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise invalid(where, data, "a JSON object")
    for key in data:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, 1)
            raise invalid(f"{where}: key", key, ", ".join(sorted(allowed)), f"Did you mean {close[0]!r}?" if close else "")
    return dict(data)
