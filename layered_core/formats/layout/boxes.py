"""Read boxes in the ways that language models, detectors and ComfyUI write them.

| who | name | numbers |
| --- | --- | --- |
| ComfyUI's elements, Ideogram | ``bbox`` | ``[ymin, xmin, ymax, xmax]``, 0..1000 |
| Gemini | ``box_2d`` | ``[ymin, xmin, ymax, xmax]``, 0..1000 |
| Qwen3-VL | ``bbox_2d`` | ``[x1, y1, x2, y2]``, 0..1000 |
| Qwen2.5-VL | ``bbox_2d`` | ``[x1, y1, x2, y2]``, pixels |
| Florence-2, most detectors | ``bboxes`` and ``labels`` | ``[x1, y1, x2, y2]``, pixels |
| LLM-grounded Diffusion | ``('words', [...])`` | ``[x, y, width, height]``, pixels |
| ComfyUI's BOUNDING_BOX | ``x``, ``y``, ``width``, ``height`` | pixels |
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

YXYX, XYXY, XYWH = "y x y x", "x y x y", "x y w h"
THOUSANDTHS, FRACTIONS, PIXELS = "0..1000", "0..1", "pixels"

AUTO = "auto"
RULES = (AUTO, *(f"{s} {o}" for s in (THOUSANDTHS, FRACTIONS, PIXELS) for o in (YXYX, XYXY, XYWH)))
"""The ways to read four numbers: their scale, and their order (two corners, or a corner, width and height)."""

_KEYS = {"bbox": "bbox", "box2d": "bbox", "bbox2d": "bbox_2d", "pair": "pair"}
_OTHER_KEYS = (
    "box", "boundingbox", "bboxes", "boundingboxes", "bounds", "rect", "rectangle", "region", "area", "coordinates",
    "coords", "position", "location", "placement", "xyxy", "xywh",
)  # fmt: skip
_PARTS = (*_OTHER_KEYS, "bbox", "box2d", "bbox2d", "size", "origin", "dimensions")
_SIDES = {
    XYWH: (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height")),
    XYXY: (
        ("x1", "y1", "x2", "y2"), ("x0", "y0", "x1", "y1"), ("left", "top", "right", "bottom"),
        ("xmin", "ymin", "xmax", "ymax"), ("minx", "miny", "maxx", "maxy"),
    ),
}  # fmt: skip
_NUMBERS = re.compile(r"[-+]?\d+(?:\.\d+)?%?|[-+]?\.\d+%?")
_LONGEST = 200
"""Greatest length of a text that may be a box, letters."""


@dataclass(frozen=True)
class Numbers:
    """Four numbers of a box as they were written."""

    values: tuple[float, float, float, float]
    """The numbers; one of a per cent sign is divided by 100."""
    form: str
    """How they were written: ``bbox`` (also ``box_2d``), ``bbox_2d``, ``pair`` (after the words), ``other``, or the
    order that the names of the sides give."""


def box_numbers(item: Mapping[str, Any]) -> Numbers | None:
    """Return the numbers of the box of an element, under any usual name; None if there are none."""
    entries = {_plain(key): value for key, value in item.items()}
    flat = dict(entries)
    for key in _PARTS:
        if isinstance(part := entries.get(key), Mapping):
            flat |= {_plain(k): v for k, v in part.items()}
    if (named := _sides(flat)) is not None:
        return named
    for key in (*_KEYS, *_OTHER_KEYS):
        if (values := four(entries.get(key))) is not None:
            return Numbers(values, _KEYS.get(key, "other"))
    return None


def four(value: object) -> tuple[float, float, float, float] | None:
    """Return a list of four numbers, two points or a text of four numbers as numbers, else None."""
    if isinstance(value, str):
        value = _NUMBERS.findall(value) if len(value) <= _LONGEST else []
    if not isinstance(value, (list, tuple)):
        return None
    if len(value) == 2 and all(isinstance(point, (list, tuple)) and len(point) == 2 for point in value):
        value = [*value[0], *value[1]]
    numbers = [_number(part) for part in value] if len(value) == 4 else []
    a, b, c, d = numbers or [None] * 4
    return None if a is None or b is None or c is None or d is None else (a, b, c, d)


def rule_of(boxes: Sequence[Numbers], width: int, height: int, rule: str = AUTO) -> tuple[str, str, str]:
    """Return scale and order of boxes of the same form, and why.

    With ``auto``:

    1. Scale: 0..1 if no number is above 1 (or 1.5, if some have fractions). Named sides are pixels. ``bbox``,
       ``box_2d`` and ``bbox_2d`` are 0..1000, unless a number is above 1000 and the boxes fit the canvas, or one is
       above 1100: then they are pixels. Any others are pixels if the boxes fit the canvas, else 0..1000 if no
       number is above 1000.
    2. Order: as the sides are named. ``bbox`` and ``box_2d`` in 0..1000 are y x y x. Numbers that stand after their
       words, and others of which a second corner does not lie behind the first, are x y w h if they fit the canvas
       so. All the rest are x y x y.

    Args:
        boxes: at least one, of the same form.
        width: canvas width, pixels.
        height: canvas height, pixels.
        rule: one of :data:`RULES`. Named sides keep their order.
    """
    form = boxes[0].form
    if rule != AUTO:
        scale, order = rule[: -len(YXYX) - 1], rule[-len(YXYX) :]
        return scale, form if form in _SIDES else order, "as set"
    scale, why = _scale(boxes, width, height)
    if form in _SIDES:
        return scale, form, f"the sides are named; {why}"
    if form == "bbox" and scale == THOUSANDTHS:
        return scale, YXYX, f"the name is bbox or box_2d, as ComfyUI and Gemini write it; {why}"
    sizes = _fit(boxes, width, height, scale, XYWH)
    if form == "pair" and sizes:
        return scale, XYWH, f"the numbers stand after their words; {why}"
    inside_out = any(c <= a or d <= b for a, b, c, d in (box.values for box in boxes))
    if form in ("pair", "other") and inside_out and sizes:
        return scale, XYWH, f"as corners they do not fit; {why}"
    return scale, XYXY, why


def edges(box: Numbers, scale: str, order: str, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the left, top, right and bottom edge of a box in canvas pixels, not put right in any way."""
    a, b, c, d = box.values
    if order == YXYX:
        a, b, c, d = b, a, d, c
    elif order == XYWH:
        c, d = a + c, b + d
    whole = {THOUSANDTHS: 1000, FRACTIONS: 1}
    across, down = (size / whole[scale] if scale in whole else 1 for size in (width, height))
    return a * across, b * down, c * across, d * down


def _scale(boxes: Sequence[Numbers], width: int, height: int) -> tuple[str, str]:
    """Return the scale of the numbers, and why."""
    numbers = [abs(value) for box in boxes for value in box.values]
    most = max(numbers)
    if most <= 1 or (most <= 1.5 and any(value % 1 for value in numbers)):
        return FRACTIONS, "no number is above 1"
    form = boxes[0].form
    if form in _SIDES:
        return PIXELS, "the numbers are pixels"
    orders = (XYXY, XYWH) if form in ("pair", "other") else (XYXY,)
    fit = any(_fit(boxes, width, height, PIXELS, order) for order in orders)
    if form in ("bbox", "bbox_2d"):
        if most <= 1000 or (most <= 1100 and not fit):
            return THOUSANDTHS, "the numbers are thousandths of the canvas"
        return PIXELS, "a number is above 1000"
    if fit or most > 1000:
        return PIXELS, "the boxes fit the canvas in pixels" if fit else "a number is above 1000"
    return THOUSANDTHS, "in pixels the boxes would not fit the canvas"


def _fit(boxes: Iterable[Numbers], width: int, height: int, scale: str, order: str) -> bool:
    """Return whether no box leaves the canvas by more than a hundredth of it."""
    placed = [edges(box, scale, order, width, height) for box in boxes]
    return all(
        -0.01 * width <= min(left, right) and max(left, right) <= 1.01 * width
        and -0.01 * height <= min(top, bottom) and max(top, bottom) <= 1.01 * height
        for left, top, right, bottom in placed
    )  # fmt: skip


def _sides(entries: Mapping[str, Any]) -> Numbers | None:
    for order, groups in _SIDES.items():
        for names in groups:
            if all(name in entries for name in names):
                values = four([entries[name] for name in names])
                return None if values is None else Numbers(values, order)
    return None


def _number(value: object) -> float | None:
    """Return a finite number, also from a text such as ``12``, ``12px`` or ``50%``, else None."""
    per_cent = isinstance(value, str) and value.strip().endswith("%")
    if isinstance(value, str):
        value = value.strip().removesuffix("px").removesuffix("%") if len(value) <= _LONGEST else ""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value) / (100 if per_cent else 1)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) < 1e9 else None


def _plain(key: object) -> str:
    """Return a key in small letters without marks: ``Bbox_2D`` and ``bbox-2d`` are ``bbox2d``."""
    return "".join(letter for letter in str(key)[:_LONGEST].lower() if letter.isalnum())
