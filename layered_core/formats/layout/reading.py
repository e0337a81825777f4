"""Turn a list of elements into a document: of a language model, of a detector, or of ComfyUI's box editor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...document import MAX_LAYERS, MAX_NAME, MAX_SIDE, Layer, LayerDocument, short_name, unique_names
from ...errors import LayeredError, check_whole, invalid
from ..file_layers import clean_text
from .boxes import AUTO, RULES, Numbers, box_numbers, edges, rule_of
from .elements import split_text, text_words
from .finding import find_elements

ORDERS = ("as listed", "large to small")
"""Orders of the layers, back to front."""

_DESC = (
    "desc", "description", "prompt", "caption", "words", "phrase", "label", "class", "class_name", "object", "text",
    "content", "name", "title", "category", "type",
)  # fmt: skip
"""Keys of an element's words, the first that has any counts."""

_NAME = ("name", "title", "label", "class", "class_name", "object", "category", "id")
_TEXT = ("text", "content", "value")
_KINDS = ("obj", "object", "text")
"""Values of ``type`` that are no words."""


class ReadLayout(NamedTuple):
    """A list of elements as a document."""

    document: LayerDocument
    """The layers: boxes with words, without pictures."""
    remarks: tuple[str, ...]
    """One line for each thing that was decided, put right or left out."""


class _Item(NamedTuple):
    """An element whose box is not placed yet."""

    label: str
    """Its number in the list and its name, for remarks."""
    name: str
    words: str
    numbers: Numbers


def read_layout(
    source: object, width: int, height: int, boxes: str = AUTO, order: str = ORDERS[0]
) -> ReadLayout:
    """Return a document with a layer for every element.

    The words of a text element begin with its text in double quotes. Words called ``background`` beside the list make
    the bottom layer; those called ``high_level_description`` or ``prompt`` become the document's.

    Args:
        source: a text that holds JSON as language models write it, at most 200,000 letters; or plain values:
            ComfyUI's ARRAY of elements, its BOUNDING_BOX (of several pictures, the first), or an object that holds
            the list.
        width: canvas width, pixels.
        height: canvas height, pixels.
        boxes: how the four numbers of a box are meant, one of :data:`~layered_core.formats.layout.boxes.RULES`; for
            ``auto`` see :func:`~layered_core.formats.layout.boxes.rule_of`.
        order: one of :data:`ORDERS`. ``as listed``: the first is at the back.

    Raises:
        LayeredError: an argument is wrong, or no element could be read; the error shows what was got.
    """
    for where, value, allowed in (("boxes", boxes, RULES), ("order", order, ORDERS)):
        if value not in allowed:
            raise invalid(where, value, ", ".join(allowed))
    check_whole("width", width, 1, MAX_SIDE)
    check_whole("height", height, 1, MAX_SIDE)
    found, remarks = find_elements(source)
    layers = _placed(_items(found.entries, remarks), width, height, boxes, remarks)
    if not layers:
        raise LayeredError(
            f"layout: none of its {len(found.entries)} elements makes a layer. {' '.join(remarks)} Give them boxes on "
            f"the canvas of {width}x{height}, or set boxes to how their numbers are meant"
        )
    room = MAX_LAYERS - bool(found.background)
    if len(layers) > room:
        remarks.append(
            f"The first {room} of {len(layers)} elements are kept: there is no room for more layers."
        )
        layers = layers[:room]
    if order != ORDERS[0]:
        layers.sort(key=lambda layer: -layer.width * layer.height)
    if found.background:
        layers.insert(0, Layer("background", prompt=_clean(found.background), width=width, height=height))
        remarks.append("The words of the background make the bottom layer, as large as the canvas.")
    document = LayerDocument(width, height, unique_names(layers), prompt=_clean(found.words))
    return ReadLayout(document, tuple(remarks))


def _items(entries: Sequence[Mapping[str, Any] | None], remarks: list[str]) -> list[_Item]:
    """Return the elements that have a box, and add remarks on the others and on what cannot be kept."""
    items, unreadable, wordless, coloured = [], [], [], False
    for number, entry in enumerate(entries, 1):
        numbers = None if entry is None else box_numbers(entry)
        if entry is None or numbers is None:
            unreadable.append(str(number))
            continue
        entry = {str(key).lower(): value for key, value in entry.items()}
        words = _words(entry)
        written = _first(entry, _NAME) or split_text(words)[0] or short_name(words)
        name = clean_text(written).strip()[:MAX_NAME] or f"element {number}"
        items.append(_Item(f"{number} ({short_name(name)})", name, words, numbers))
        if not words:
            wordless.append(str(number))
        coloured |= bool(entry.get("color_palette") or entry.get("palette"))
    if unreadable:
        remarks.append(f"Left out, as they have no box that can be read: elements {_listed(unreadable)}.")
    if wordless:
        remarks.append(f"Without words: elements {_listed(wordless)}.")
    if coloured:
        remarks.append("Palettes are left out: a layer has no place for one.")
    return items


def _placed(items: Sequence[_Item], width: int, height: int, rule: str, remarks: list[str]) -> list[Layer]:
    """Return a layer for every element whose box lies on the canvas, and add remarks on what was done to boxes."""
    rules = {}
    for form in dict.fromkeys(item.numbers.form for item in items):
        alike = [item.numbers for item in items if item.numbers.form == form]
        scale, order, why = rule_of(alike, width, height, rule)
        rules[form] = scale, order
        if rule == AUTO:
            which = "The boxes" if len(alike) == len(items) else f"{len(alike)} of {len(items)} boxes"
            remarks.append(f"{which} are read as {scale} {order}: {why}.")
        elif not rule.endswith(order):
            remarks.append(f"Boxes with named sides are read as {scale} {order}.")
    layers, turned, cut, empty = [], [], [], []
    for item in items:
        left, top, right, bottom = edges(item.numbers, *rules[item.numbers.form], width, height)
        if left > right or top > bottom:
            turned.append(item.label)
        x, across = _span(left, right, width)
        y, down = _span(top, bottom, height)
        if not across or not down:
            empty.append(item.label)
            continue
        if (
            min(left, right, top, bottom) < -0.5
            or max(left, right) > width + 0.5
            or max(top, bottom) > height + 0.5
        ):
            cut.append(item.label)
        layers.append(Layer(item.name, prompt=item.words, x=x, y=y, width=across, height=down))
    for what, names in (
        ("Corners are swapped and were put right: elements", turned),
        ("Cut off at the edge of the canvas: elements", cut),
        ("Left out, as their boxes are empty or off the canvas: elements", empty),
    ):
        if names:
            remarks.append(f"{what} {_listed(names)}.")
    return layers


def _span(first: float, last: float, size: int) -> tuple[int, int]:
    """Return start and length of two edges on an axis of ``size`` pixels, in whole pixels; length 0 if they are the
    same or nothing lies on the canvas, else at least 1."""
    low, high = max(min(first, last), 0.0), min(max(first, last), float(size))
    if low >= high:
        return 0, 0
    start = min(round(low), size - 1)
    return start, max(round(high) - start, 1)


def _words(entry: Mapping[str, Any]) -> str:
    kind = str(entry.get("type", "")).lower()
    text = _first(entry, _TEXT) if kind == "text" else ""
    if text:
        return text_words(
            text, _first(entry, tuple(key for key in _DESC if key not in (*_TEXT, *_NAME, "type")))
        )
    words = _first(entry, _DESC)
    return "" if words.lower() in _KINDS and words.lower() == kind else words


def _first(entry: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return the first text that is not empty under one of ``keys``."""
    for key in keys:
        if isinstance(value := entry.get(key), str) and value.strip():
            return _clean(value.strip())
    return ""


def _clean(words: str) -> str:
    """Return words without halves of surrogate pairs, which no tokenizer reads."""
    return words.encode("utf-8", "ignore").decode("utf-8")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
