"""The backdrop: the picture that the other layers of a document lie on."""

from __future__ import annotations

from ..document import Layer, LayerDocument
from .masks import layer_alpha

_OPAQUE = 0.999
"""Least alpha of a backdrop: scaling an opaque picture may round its alpha down by a little."""


def find_backdrop(document: LayerDocument) -> Layer | None:
    """Return the backdrop, or None: the hindmost visible layer, if it has a picture and no words, covers every
    pixel of the canvas opaquely, and has other visible layers in front of it.

    Nobody has said what such a picture should become, so it keeps its pixels unless its recipe says otherwise.
    A picture that is alone on the canvas is none: it is there to be changed.
    """
    shown = [layer for layer in document if layer.visible and layer.opacity > 0]
    if len(shown) < 2:
        return None
    layer = shown[0]
    if layer.image is None or layer.prompt.strip() or layer.blend_mode != "normal":
        return None
    return layer if bool((layer_alpha(layer, document) >= _OPAQUE).all()) else None
