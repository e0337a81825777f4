"""Find the list of elements in a text or in plain values."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ...errors import invalid
from .boxes import box_numbers, four
from .loose_json import read_values

_LISTS = (
    "elements", "objects", "layout", "boxes", "bboxes", "items", "layers", "regions", "detections", "annotations",
    "results", "predictions", "entities",
)  # fmt: skip
"""Keys under which a list of elements is looked for first."""

_LABELS = ("labels", "names", "phrases", "classes", "captions")
"""Keys of a list of words beside a list of boxes."""

_BACKGROUND = ("background", "background_prompt", "background_description")
_WHOLE = ("high_level_description", "prompt", "caption", "scene")

_DEPTH = 8
"""How deep in other values a list is looked for."""

_WIDTH = 1000
"""How many values of a list or object are looked at."""

_LINE = re.compile(r"\s*(?:[-*•]|\d+[.)])?\s*([^\[\](){}]{1,300})[\[(]([^\[\](){}]{7,100})[\])][\s,;.]*")
_MARKS = " \t:=–—-\"'`“”*"


class Found(NamedTuple):
    """A list of elements, and what stands beside it."""

    entries: Sequence[Mapping[str, Any] | None]
    """The elements in their order; None for one that is no element at all."""
    background: str = ""
    """Words of the background. Empty: none are given."""
    words: str = ""
    """Words of the whole picture. Empty: none are given."""

    @property
    def usable(self) -> int:
        """The number of elements that have a box."""
        return sum(entry is not None and box_numbers(entry) is not None for entry in self.entries)


def find_elements(source: object) -> tuple[Found, list[str]]:
    """Return the list of elements in a text or plain values, and remarks on the choice.

    Of several lists in a text the one with most elements is taken, the last one of equals. Several single elements
    make a list. A text without any list may have a line such as ``a red ball: [10, 20, 30, 40]`` for each element.

    Raises:
        LayeredError: there is none, or the text is too long.
    """
    values = read_values(source, "layout") if isinstance(source, str) else [(source, False)]
    found = [(each, broken) for value, broken in values if (each := _search(value)) is not None]
    single = [(each, broken) for each, broken in found if len(each.entries) == 1]
    remarks = []
    if len(single) == len(found) > 1:
        each = Found([e.entries[0] for e, _ in single])
        broken = any(b for _, b in single)
    elif found:
        each, broken = max(reversed(found), key=lambda pair: pair[0].usable)
        if len(found) > 1:
            remarks.append(f"The text holds {len(found)} lists of elements: the one with most boxes is used.")
    else:
        each, broken = Found(_lines(source) if isinstance(source, str) else []), False
    if not each.usable:
        allowed = "a list of elements, each with a box and words"
        fix = 'For example: [{"bbox": [ymin, xmin, ymax, xmax] in 0..1000, "desc": "a red ball"}]'
        raise invalid("layout", source if isinstance(source, str) else reprlib.repr(source), allowed, fix)
    if broken:
        remarks.append("A part of the text could not be read, or it breaks off. See if elements are missing.")
    if isinstance(source, (list, tuple)) and (pictures := _pictures(source)) > 1:
        remarks.append(f"The boxes are of {pictures} pictures: those of the first that has any are used.")
    return each, remarks


def _search(value: object, depth: int = 0) -> Found | None:
    """Return the first list of elements in a value."""
    if depth > _DEPTH:
        return None
    if isinstance(value, Mapping):
        return _search_object(value, depth)
    if not isinstance(value, (list, tuple)):
        return None
    found = Found([_entry(item) for item in value])
    if found.usable:
        return found
    return next(_inside(value, depth), None)


def _search_object(value: Mapping[str, Any], depth: int) -> Found | None:
    keys = {str(key).lower(): key for key in value}
    known = [value[keys[name]] for name in _LISTS if name in keys]
    found = next(_inside(known, depth), None)
    if found is not None:
        found = _labelled(found, value, keys)
    elif box_numbers(value) is not None:
        return Found([value])
    else:
        named = Found([_named(key, item) for key, item in islice(value.items(), _WIDTH)])
        found = named if named.usable else next(_inside(list(islice(value.values(), _WIDTH)), depth), None)
    if found is None:
        return None
    return found._replace(
        background=found.background or _beside(value, keys, _BACKGROUND),
        words=found.words or _beside(value, keys, _WHOLE),
    )


def _beside(value: Mapping[str, Any], keys: Mapping[str, str], names: Sequence[str]) -> str:
    """Return the first text that is not empty under one of the ``names``."""
    return next((text for name in names if name in keys and (text := _text(value[keys[name]]))), "")


def _inside(values: Sequence[Any], depth: int) -> Iterator[Found]:
    for value in values[:_WIDTH]:
        if (found := _search(value, depth + 1)) is not None:
            yield found


def _entry(item: object) -> Mapping[str, Any] | None:
    """Return an element as an object: it may also be a box alone, or words and a box, in either order."""
    if isinstance(item, Mapping):
        inner = item.get("metadata")
        return {**inner, **item} if isinstance(inner, Mapping) else item
    if not isinstance(item, (list, tuple)):
        return None
    if four(item) is not None:
        return {"box": item}
    words = [part for part in item if isinstance(part, str) and four(part) is None]
    rest = [part for part in item if part not in words] if len(item) <= 5 else []
    box = rest[0] if len(rest) == 1 else rest
    return {"desc": words[0], "pair": box} if len(words) == 1 and four(box) is not None else None


def _named(key: object, item: object) -> Mapping[str, Any] | None:
    """Return an element whose name is its key in an object."""
    if isinstance(item, Mapping) and box_numbers(item) is not None:
        return {"name": str(key), **item}
    if isinstance(item, (list, tuple)) and four(item) is not None:
        return {"desc": str(key), "box": item}
    return None


def _labelled(found: Found, value: Mapping[str, Any], keys: Mapping[str, str]) -> Found:
    """Return elements that are boxes alone with the words of a list beside them, if it is as long."""
    labels = next((value[keys[name]] for name in _LABELS if name in keys), None)
    bare = all(entry is not None and set(entry) == {"box"} for entry in found.entries)
    if not bare or not isinstance(labels, (list, tuple)) or len(labels) != len(found.entries):
        return found
    pairs = zip(found.entries, labels, strict=True)
    return Found([{**(entry or {}), "desc": _text(label)} for entry, label in pairs])


def _lines(text: str) -> list[Mapping[str, Any]]:
    """Return an element for every line of a text that consists of words and four numbers in brackets."""
    found: list[Mapping[str, Any]] = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line) if len(line) <= 500 else None
        words = match[1].strip(_MARKS) if match else ""
        # Words that are the name of a box, such as bbox, say nothing of what is in it.
        if match and words and four(match[2]) is not None and box_numbers({words: match[2]}) is None:
            found.append({"desc": words, "box": match[2]})
    return found


def _pictures(source: Sequence[Any]) -> int:
    """Return of how many pictures a BOUNDING_BOX has boxes."""
    return sum(isinstance(frame, list) and any(isinstance(box, Mapping) for box in frame) for frame in source)


def _text(value: object) -> str:
    """Return a text, or the description in an object, without spaces around it; else an empty text."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("desc", "description", "prompt") if key in value), "")
    return value.strip() if isinstance(value, str) else ""
