"""Documents of scenes that are still to be made: layers with words, and no pictures yet.

>>> from layered_core.document import LayerDocument
>>> empty = LayerDocument(128, 128, prompt="a red ball by the sea")
>>> scene = with_layers(empty, ["a red ball"], background="by the sea")
>>> [(layer.name, layer.prompt, layer.visible) for layer in scene]  # doctest: +NORMALIZE_WHITESPACE
[('background', 'by the sea', True), ('a red ball', 'a red ball', True),
 ('blend', 'a red ball by the sea', False)]
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace

from ..canvas.masks import layer_alpha
from ..document import Layer, LayerDocument
from ..errors import invalid
from .editing import BLEND

BACKGROUND = "background"
"""Name of the layer at the back of a new scene."""

FOREGROUND = "foreground"
"""Name of the only layer of a new scene whose layers have no words of their own."""

_OPAQUE = 0.999

_LEAST = 1 / 400
"""Least share of the canvas that a layer must cover to count as showing something."""


def layer_names(words: Sequence[str], taken: Collection[str] = (BACKGROUND, BLEND)) -> list[str]:
    """Return a name for each layer: its words, numbered where they were used before or are among ``taken``."""
    names: list[str] = []
    for text in words:
        numbers = itertools.count(2)
        name = text
        while name in taken or name in names:
            name = f"{text} {next(numbers)}"
        names.append(name)
    return names


def with_layers(
    document: LayerDocument, words: Sequence[str], background: str = "", held: Collection[str] = ()
) -> LayerDocument:
    """Return a document with everything that a scene has: a background, layers, and the hidden blend. What it has
    not yet is added without a picture.

    Args:
        document: the layers so far, with the scene's words.
        words: of new layers, back to front; they come in front of those so far. With none, a document that has no
            layer in front of its background gets one with the words of the scene.
        background: words of the background. Neutral: empty, its own, or those of the scene.
        held: names of layers that stay as they are.

    Raises:
        LayeredError: a layer has no words.
    """
    for number, text in enumerate(words, 1):
        if not text.strip():
            raise invalid(f"layer {number}: words", text, "words that say what the layer shows")
    blend = [x for x in document if x.name == BLEND and not x.visible]
    layers = [x for x in document if x not in blend]
    shown = [x for x in layers if x.visible]
    has_back = bool(shown) and _covers(shown[0], document)
    names = layer_names(words, [BACKGROUND, BLEND, *(x.name for x in document)])
    new = [Layer(name, prompt=text) for name, text in zip(names, words, strict=True)]
    scene = replace(document, layers=(*layers, *new)).words
    if len(shown) == has_back and not new:
        new = [Layer(FOREGROUND, prompt=scene)]
    if has_back and shown[0].name not in held:
        told = replace(shown[0], prompt=background or shown[0].prompt or scene)
        layers[layers.index(shown[0])] = told
    elif not has_back and document.background is None:
        (name,) = layer_names([BACKGROUND], [x.name for x in document])
        layers.insert(0, Layer(name, prompt=background or scene))
    blend = blend or [Layer(BLEND, prompt=scene, visible=False)]
    return replace(document, layers=(*layers, *new, *blend))


def _covers(layer: Layer, document: LayerDocument) -> bool:
    return bool((layer_alpha(layer, document) >= _OPAQUE).all())


def empty_remark(document: LayerDocument, made: Collection[str]) -> str:
    """Return a sentence that names the layers among ``made`` which came out empty: less than 1 / 400 of the canvas has
    an alpha of at least 0.5. Empty if there is none."""
    least = _LEAST * document.width * document.height
    empty = [
        layer.name
        for layer in document
        if layer.name in made and layer.visible and float((layer_alpha(layer, document) >= 0.5).sum()) < least
    ]
    if not empty:
        return ""
    names = ", ".join(map(repr, empty))
    return f"Nothing came out in {'layer' if len(empty) == 1 else 'layers'} {names}. Make it anew, or take another seed"
