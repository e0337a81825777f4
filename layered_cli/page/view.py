"""What the page shows of a document: plain values, pictures as ``data:`` addresses."""

from __future__ import annotations

import base64
import io
from typing import Any

from torch import Tensor

from layered_core.canvas.compositing import composite
from layered_core.document import LayerDocument
from layered_core.editing.layer_picture import thumbnail
from layered_core.formats.pictures import save_png, to_image

from .editor import HARMONISED, freedom

MOST_SIDE = 1280
"""Greatest side of the picture that the page shows, pixels; files have the document's own size."""

THUMBNAIL = 64
"""Greatest side of a layer's small picture, pixels."""


def shown_picture(document: LayerDocument | None) -> str:
    """Return the composite of a document as an address, at most :data:`MOST_SIDE` pixels a side; empty without a
    document."""
    if document is None:
        return ""
    return _address(composite(document), MOST_SIDE)


def shown_layers(document: LayerDocument | None) -> list[dict[str, Any]]:
    """Return what the page shows of each layer, front to back."""
    return (
        [_layer(document, index) for index in reversed(range(len(document)))] if document is not None else []
    )


def _layer(document: LayerDocument, index: int) -> dict[str, Any]:
    """Return one layer: its name, words, box in hundredths of the canvas, and small picture."""
    layer = document.layers[index]
    small = thumbnail(layer, THUMBNAIL)
    return {
        "name": layer.name,
        "words": layer.prompt,
        "visible": layer.visible,
        "made": layer.image is not None,
        "harmonised": layer.name == HARMONISED,
        "freedom": round(freedom(document, layer.name), 3),
        "box": [
            100 * layer.x / document.width,
            100 * layer.y / document.height,
            100 * layer.width / document.width,
            100 * layer.height / document.height,
        ],
        "rotation": layer.rotation,
        "picture": "" if small is None or layer.image is None else _address(small, THUMBNAIL),
    }


def _address(pixels: Tensor, side: int) -> str:
    """Return ``[H, W, 4]`` in 0..1 as the address of a PNG, scaled down to at most ``side`` pixels a side."""
    image = to_image(pixels)
    image.thumbnail((side, side))
    file = io.BytesIO()
    save_png(image, file, compress_level=3)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
