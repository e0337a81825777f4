"""Turn a document into the list of elements that models trained on boxes take.

An element has a box, words and a palette. ComfyUI's Create Bounding Boxes and Build JSON Prompt define the list
(``comfy_extras/nodes_bounding_boxes.py``, 0.33): the background first, the foreground last, which is the order of a
document's layers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...canvas.compositing import premultiplied, straight
from ...canvas.masks import masks_from_front
from ...canvas.placement import Box
from ...document import Layer, LayerDocument
from ...errors import LayeredError, check_whole, invalid
from .palette import dominant_colours

GRID = 1000
"""Elements' boxes are counted in thousandths of the canvas."""

MAX_COLOURS = 5
"""Greatest number of colours of a palette."""

WITHOUT_WORDS = ("name", "leave out", "empty")
"""Ways to treat a layer without words: its name describes it, it is left out, or its description stays empty."""

BACKGROUNDS = ("element", "apart")
"""Where a background goes: into the list as its first element, or apart, as words."""

BACKGROUND_SHARE = 0.9
"""Share of the canvas from which a layer is a background; the same as in ``metrics.layout_report``."""

SEEN = 0.3
"""A pixel shows a layer if its visible mask is above this part of the layer's greatest alpha. It is more than 0.25,
which is the most that the soft edge of an equal layer above lets through: a * (1 - a)."""

_PALETTE_PIXELS = 2**18
"""A palette is taken from about so many pixels at most."""

_TEXT = re.compile(r'\s*(?:"([^"]+)"|“([^”]+)”)[\s,;:–—-]*(.*)', re.DOTALL)
"""Words that begin with a text in double quotes, and the rest of them."""


@dataclass(frozen=True)
class Element:
    """One layer as a model trained on boxes knows it."""

    name: str
    """The layer's name; the element list has no place for it."""
    box: Box
    """The smallest box around what is seen of the layer: left, top, right, bottom, canvas pixels."""
    text: str
    """Letters to be written in the picture; empty: the element is an object."""
    desc: str
    """Words that describe the object, or the look of the text. May be empty."""
    palette: tuple[str, ...] = ()
    """Up to five colours ``#RRGGBB``, the most frequent first. Neutral: empty."""


@dataclass(frozen=True)
class Layout:
    """A document as elements."""

    width: int
    """Canvas width, pixels."""
    height: int
    """Canvas height, pixels."""
    elements: tuple[Element, ...]
    """The elements, back to front."""
    background: str = ""
    """Words of the backgrounds that were put apart."""
    remarks: tuple[str, ...] = ()
    """One line for each thing that was decided or left out."""


def layout_of(
    document: LayerDocument,
    without_words: str = "name",
    background: str = "element",
    colours: int = MAX_COLOURS,
) -> Layout:
    """Return a document's layers as elements. Hidden layers, and those of which nothing can be seen, are left out.

    Words that begin with a text in double quotes make a text element: ``"OPEN", red letters`` is the text OPEN.

    Args:
        document: any document; its layers' words, visible masks and pictures are used.
        without_words: one of :data:`WITHOUT_WORDS`.
        background: one of :data:`BACKGROUNDS`; ``apart`` takes layers that cover nine tenths of the canvas.
        colours: greatest number of colours of a palette, 0..5; 0: no palettes.

    Raises:
        LayeredError: an argument is wrong, or nothing of the document can be seen.
    """
    for where, value, allowed in (
        ("without_words", without_words, WITHOUT_WORDS),
        ("background", background, BACKGROUNDS),
    ):
        if value not in allowed:
            raise invalid(where, value, ", ".join(allowed))
    check_whole("colours", colours, 0, MAX_COLOURS)
    names: dict[str, list[str]] = {kind: [] for kind in _REMARKS}
    elements, apart = [], []
    for number, alpha, seen in masks_from_front(document):
        layer = document.layers[number]
        shown = seen > SEEN * alpha.amax()
        if not bool(shown.any()):
            names["covered"].append(layer.name)
            continue
        if not layer.prompt.strip():
            names[without_words].append(layer.name)
            if without_words == "leave out":
                continue
        text, desc = _words(layer, without_words)
        if background == "apart" and float(alpha.mean()) >= BACKGROUND_SHARE:
            names["apart"].append(layer.name)
            apart.append(text_words(text, desc))
        else:
            box = _box(shown)
            elements.append(Element(layer.name, box, text, desc, _palette(layer, seen, box, colours)))
    names["text"] = [element.name for element in elements if element.text]
    names["hidden"] = [layer.name for layer in reversed(document.layers) if not _is_shown(layer)]
    remarks = tuple(line.format(_listed(names[kind][::-1])) for kind, line in _REMARKS.items() if names[kind])
    if not elements and not apart:
        why = " ".join(remarks) or "The document is empty."
        raise LayeredError(f"layers: no layer makes an element. {why} Add a visible layer with words")
    aside = ", ".join(words for words in reversed(apart) if words)
    return Layout(document.width, document.height, tuple(reversed(elements)), aside, remarks)


_REMARKS: dict[str, str] = {
    "covered": "Left out, as nothing of them can be seen: {}.",
    "hidden": "Left out, as they are hidden: {}.",
    "leave out": "Left out, as they have no words: {}.",
    "name": "Described by their names, as they have no words: {}.",
    "empty": "Without a description, as they have no words: {}.",
    "apart": "Not in the list, as they are the background: {}.",
    "text": "Text elements, as their words begin with a text in double quotes: {}.",
}


def plain_elements(layout: Layout) -> list[dict[str, Any]]:
    """Return ComfyUI's ARRAY of elements: ``{"type", "bbox": [ymin, xmin, ymax, xmax] in 0..1000, "text" (of a text
    only), "desc", "color_palette" (if there is one)}``, keys in this order."""
    found = []
    for element in layout.elements:
        entry: dict[str, Any] = {"type": _kind(element), "bbox": _thousandths(element.box, layout)}
        if element.text:
            entry["text"] = element.text
        entry["desc"] = element.desc
        if element.palette:
            entry["color_palette"] = list(element.palette)
        found.append(entry)
    return found


def pixel_boxes(layout: Layout) -> list[list[dict[str, Any]]]:
    """Return ComfyUI's BOUNDING_BOX for one picture: ``[[{"x", "y", "width", "height", "metadata"}, ...]]`` in pixels.

    ComfyUI's nodes read from ``metadata`` what they need: ``type``, ``text``, ``desc`` and ``palette`` (Create
    Bounding Boxes), ``name`` (Layers From Bounding Boxes). No boxes: an empty list, as Create Bounding Boxes gives.
    """
    boxes = []
    for element in layout.elements:
        left, top, right, bottom = element.box
        metadata: dict[str, Any] = {"name": element.name, "type": _kind(element), "text": element.text}
        metadata |= {"desc": element.desc, "palette": list(element.palette)}
        size = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        boxes.append({**size, "metadata": metadata})
    return [boxes] if boxes else []


def box_layers(layout: Layout) -> tuple[Layer, ...]:
    """Return a layer without a picture for every box, back to front, to draw or to go on with."""
    layers = []
    for element in layout.elements:
        left, top, right, bottom = element.box
        words = text_words(element.text, element.desc)
        layers.append(
            Layer(element.name, prompt=words, x=left, y=top, width=right - left, height=bottom - top)
        )
    return tuple(layers)


def split_text(words: str) -> tuple[str, str]:
    """Return the text in double quotes with which the words begin, and the rest of them; ``("", words)`` if they do
    not begin with one. Straight and curved quotes count."""
    match = _TEXT.fullmatch(words)
    return ((match[1] or match[2]).strip(), match[3].strip()) if match else ("", words)


def text_words(text: str, desc: str) -> str:
    """Return words for a text element: the inverse of :func:`split_text`."""
    if not text.strip():
        return desc
    quoted = f"“{text.replace('”', chr(34))}”" if '"' in text else f'"{text}"'
    return f"{quoted}, {desc}" if desc else quoted


def _is_shown(layer: Layer) -> bool:
    return layer.visible and layer.opacity > 0


def _words(layer: Layer, without_words: str) -> tuple[str, str]:
    """Return the text and the description of a layer's words; a name in quotes is no text."""
    if words := layer.prompt.strip():
        return split_text(words)
    return "", layer.name if without_words == "name" else ""


def _kind(element: Element) -> str:
    return "text" if element.text else "obj"


def _box(shown: Tensor) -> Box:
    """Return the smallest box around the pixels of a mask ``[H, W]`` that is true somewhere."""
    rows, columns = (shown.any(axis).nonzero()[:, 0] for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _thousandths(box: Box, layout: Layout) -> list[int]:
    """Return ymin, xmin, ymax, xmax in 0..1000, rounded; a box stays at least 1 wide and high."""
    left, top, right, bottom = box
    ymin, ymax = _edges(top, bottom, layout.height)
    xmin, xmax = _edges(left, right, layout.width)
    return [ymin, xmin, ymax, xmax]


def _edges(low: int, high: int, size: int) -> tuple[int, int]:
    first, last = round(low * GRID / size), round(high * GRID / size)
    if first == last:
        first, last = (first - 1, last) if last == GRID else (first, last + 1)
    return first, last


def _palette(layer: Layer, seen: Tensor, box: Box, most: int) -> tuple[str, ...]:
    """Return the dominant colours of what is seen of a layer; none for a layer without a picture."""
    if layer.image is None or not most:
        return ()
    left, top, right, bottom = box
    step = max(1, math.ceil(math.sqrt((right - left) * (bottom - top) / _PALETTE_PIXELS)))
    moved = replace(layer, x=layer.x - left, y=layer.y - top)
    pixels = straight(premultiplied(moved, right - left, bottom - top)[::step, ::step])
    weights = seen[top:bottom:step, left:right:step]
    return dominant_colours(pixels[..., :3].reshape(-1, 3), weights.reshape(-1), most)


def _listed(names: list[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
