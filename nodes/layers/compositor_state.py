"""Apply to a document what was arranged in the full-screen editor of ComfyUI's Create Layered Image.

That node keeps the arrangement in its ``compositor`` widget:
``{"version": 1, "canvas": {"w", "h"}, "background": {"color", "opacity", "visible"}, "inputs": [fingerprint],
"order": [index], "layers": [{"name", "visible", "opacity", "blend", "flipH", "flipV", "transform": {"x", "y",
"w", "h", "rotation" (radians)}}]}``. Its layers are those of the stack, back to front; each picture of a
batch is a layer. The node itself ignores the arrangement if the fingerprints are no longer those of the
stack. In that case its layers are found by name here, and layers of one name in their order.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...layered_core.document import BLEND_MODES, MAX_SIDE, LayerDocument
from ...layered_core.editing.arrangement import Arrangement, arrange
from ...layered_core.errors import LayeredError, check_whole, invalid
from .socket import frame_names, frame_titles

NODE = "ImageCompositor"
"""The class of Create Layered Image."""

GONE = ""
"""Stands for a layer that the stack does not have."""


def linked_compositor(prompt: Mapping[str, Any] | None, node_id: str | None) -> Mapping[str, Any] | None:
    """Return the state of the Create Layered Image whose picture is linked to ``picture`` of the node
    ``node_id``; None if nothing was arranged.

    Raises:
        LayeredError: the picture comes from another node.
    """
    prompt = prompt or {}
    link = prompt.get(node_id, {}).get("inputs", {}).get("picture")
    source = prompt.get(link[0], {}) if isinstance(link, list) and link else {}
    if source.get("class_type") != NODE:
        raise invalid(
            "picture: the class of the node it comes from",
            source.get("class_type"),
            f"Create Layered Image ({NODE})",
            "Connect that node's picture",
        )
    state = source["inputs"].get("compositor")
    if isinstance(state, str):
        try:
            state = json.loads(state or "{}")
        except (ValueError, RecursionError):
            state = None  # Create Layered Image ignores such a state, too
    return state if isinstance(state, Mapping) and state else None


def apply_compositor(
    document: LayerDocument, stack: object, state: Mapping[str, Any] | None
) -> tuple[LayerDocument, list[str]]:
    """Return ``document``, which was read from ``stack``, as arranged in the editor, and remarks on what
    could not be applied.

    A background colour of ``document`` is a layer in that editor; hiding it is the only change to it that is
    taken over.

    Raises:
        LayeredError: the state is not what the editor writes, or a size is out of range.
    """
    if state is None:
        return document, []
    entries = state.get("layers")
    if (
        state.get("version", 1) != 1
        or not isinstance(entries, list)
        or not isinstance(state.get("canvas"), Mapping)
    ):
        raise invalid(
            "picture: the compositor state",
            state,
            "version 1 with canvas and layers",
            "Open its editor, change something and close it",
        )
    names, remarks = frame_names(stack), []
    now = _fingerprints(stack)
    if len(entries) != len(names) or (now is not None and state.get("inputs") != now):
        present: dict[str, list[str | None]] = {}
        for title, name in zip(frame_titles(stack), names, strict=True):
            present.setdefault(title, []).append(name)
        names = [found.pop(0) if (found := present.get(_own_name(entry))) else GONE for entry in entries]
        remarks.append(
            "The stack changed after it was arranged in Create Layered Image. That node now ignores the "
            "arrangement; here it is applied by the layers' names."
        )
        if gone := [_own_name(entry) for entry, name in zip(entries, names) if name == GONE]:
            remarks.append(f"Layers of that editor that are not in the stack: {', '.join(map(repr, gone))}.")
    changes = {
        name: _changes(entry) for name, entry in zip(names, entries) if name and isinstance(entry, Mapping)
    }
    order = [names[index] for index in _order(state.get("order"), len(names)) if names[index]]
    try:
        document, _ = arrange(document, Arrangement(changes, tuple(dict.fromkeys(order))))
        background = _background(document, names, entries, state.get("background"), remarks)
        return replace(
            document, width=_side(state, "w"), height=_side(state, "h"), background=background
        ), remarks
    except LayeredError as error:
        raise LayeredError(f"picture: the compositor state: {error}") from None


def _fingerprints(stack: object) -> list[str] | None:
    """Return the fingerprints that ComfyUI's own node computes for the stack as it is now; None on hosts
    without that function."""
    try:
        from comfy_extras.nodes_compositor import (
            document_items,
            expand_item_frames,
            frame_alpha,
            input_fingerprints,
        )
    except ImportError:
        return None
    frames = expand_item_frames(document_items(stack))
    return list(input_fingerprints(frames, [frame_alpha(frame["tensor"], frame["mask"]) for frame in frames]))


def _own_name(entry: object) -> str:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return name if isinstance(name, str) else ""


def _changes(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Translate one layer of the editor into our fields; what is missing there is left out."""
    found: dict[str, Any] = {}
    place = entry.get("transform")
    if isinstance(place, Mapping):
        turned = place.get("rotation", 0) != 0
        # That editor puts layers that are not turned on whole pixels.
        found |= {
            ours: place[ours] if turned else math.floor(place[ours])
            for ours in ("x", "y")
            if _is_number(place.get(ours))
        }
        found |= {
            ours: max(1, round(place[theirs]))
            for ours, theirs in (("width", "w"), ("height", "h"))
            if _is_number(place.get(theirs))
        }
        if _is_number(place.get("rotation")):
            found["rotation"] = math.degrees(place["rotation"])
    found |= {
        ours: entry[theirs]
        for ours, theirs in (("flip_h", "flipH"), ("flip_v", "flipV"), ("visible", "visible"))
        if theirs in entry
    }
    if "opacity" in entry:
        found["opacity"] = entry["opacity"]
    if entry.get("blend") in BLEND_MODES:
        found["blend_mode"] = entry["blend"]
    return found


def _order(order: object, count: int) -> list[int]:
    """Return the order, back to front, as that node reads it: anything but a permutation is ignored."""
    plain = list(range(count))
    return (
        order
        if isinstance(order, list) and all(type(index) is int for index in order) and sorted(order) == plain
        else plain
    )


def _background(
    document: LayerDocument, names: list[str | None], entries: list[Any], theirs: object, remarks: list[str]
) -> tuple[float, float, float] | None:
    """Return the document's own colour, or, if its layer is hidden in the editor, the editor's colour."""
    hidden = any(
        name is None and isinstance(entry, Mapping) and not entry.get("visible", True)
        for name, entry in zip(names, entries)
    )
    if document.background is not None and not hidden:
        return document.background
    if not isinstance(theirs, Mapping) or not theirs.get("visible", True) or theirs.get("opacity", 1) == 0:
        return None
    colour = theirs.get("color")
    if (
        theirs.get("opacity", 1) != 1
        or not isinstance(colour, str)
        or not re.fullmatch("#[0-9a-fA-F]{6}", colour)
    ):
        remarks.append("That editor's background is left out: only an opaque colour can be taken over.")
        return None
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _side(state: Mapping[str, Any], key: str) -> int:
    value = state["canvas"].get(key)
    side = round(value) if _is_number(value) else value
    check_whole(f"canvas {key}", side, 1, MAX_SIDE)
    return int(side)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
