"""Convert a document to the layers of a file that other programs can read too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..canvas.compositing import straight
from ..canvas.placement import bounds, place
from ..document import MAX_SIDE, Layer, LayerDocument
from ..errors import LayeredError, invalid
from ..progress import steps
from .file_layers import BITS, MAX_WORKFLOW_BYTES, PLACE, VERSION, FileLayer, clean_text
from .layer_look import look_of
from .pixel_numbers import pixel_type, to_numbers, to_values
from .plain_values import recipe_entries


class PixelTypes:
    """Finds the smallest types of tensors by :func:`~.pixel_numbers.pixel_type`, that of each tensor once."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Tensor, str]] = {}

    def of(self, values: Tensor) -> str:
        """Return the type of a tensor that is not written to meanwhile."""
        if id(values) not in self._found:
            self._found[id(values)] = (
                values,
                pixel_type(values),
            )  # the tensor is kept, so that its id stays its own
        return self._found[id(values)][1]


def flatten(
    document: LayerDocument, bits: int, masks: bool, types: PixelTypes | None = None
) -> tuple[list[FileLayer], dict[str, bytes]]:
    """Return the document's layers as a file shows them, back to front, and the original pixels to store
    beside them, by key.

    Args:
        document: any document.
        bits: precision of the pixels in the file, 8 or 16; pixels of a higher precision are also stored as
            originals.
        masks: whether the format has masks. If not, they are multiplied into the alpha and also stored as
            originals.
        types: the types of the document's tensors that were found before.
    """
    layers, blobs, types = [], {}, types or PixelTypes()
    if document.background is not None:
        layers.append(_backdrop(document))
    for number, layer in steps(list(enumerate(document, 1))):
        made, stored = _file_layer(layer, number, document, bits, masks, types)
        layers.append(made)
        blobs.update(stored)
    return layers, blobs


def rounded(document: LayerDocument, bits: int) -> LayerDocument:
    """Return the document with every pixel rounded to ``bits`` a channel; 32 changes nothing.

    Raises:
        LayeredError: ``bits`` is not one of ``BITS``.
    """
    if bits not in BITS:
        raise invalid("bits", bits, ", ".join(str(b) for b in BITS))
    if bits == 32:
        return document
    layers = []
    for layer in steps(document.layers):
        image, mask = (
            None if t is None else to_values(to_numbers(t, f"u{bits // 8}")).to(t.device)
            for t in (layer.image, layer.mask)
        )
        layers.append(replace(layer, image=image, mask=mask))
    return replace(document, layers=tuple(layers))


def file_bits(document: LayerDocument, types: PixelTypes) -> int:
    """Return the bits a channel for a file: 16 if some pixels need 16 and none needs more, else 8."""
    needs = {types.of(t) for layer in document for t in (layer.image, layer.mask) if t is not None}
    return 16 if "u2" in needs and "f4" not in needs else 8


def title_of(layer: Layer) -> str:
    """Return ``name: prompt`` as one line that every program can show, at most 255 characters."""
    text = f"{layer.name}: {layer.prompt}" if layer.prompt else layer.name
    return clean_text(text)[:255]


def check_workflow(workflow: Mapping[str, Any] | None) -> None:
    """Raise :class:`LayeredError` unless the workflow consists of plain JSON values and is small enough to be
    read again."""
    try:
        size = len(json.dumps(workflow))
    except (TypeError, ValueError, RecursionError) as error:
        raise LayeredError(f"workflow cannot be stored as JSON: {error}") from None
    if size > MAX_WORKFLOW_BYTES:
        raise invalid(
            "size of the workflow", f"{size:,} bytes", f"at most {MAX_WORKFLOW_BYTES:,}", "Write without it"
        )


def document_private(document: LayerDocument) -> dict[str, Any]:
    """Return the private data of a document: its version and prompts."""
    return {"version": VERSION, "prompt": document.prompt, "negative": document.negative}


def _backdrop(document: LayerDocument) -> FileLayer:
    assert document.background is not None
    colour = torch.tensor([*document.background, 1.0])
    title = "background colour"
    private = {"title": title, "background": list(document.background)}
    return FileLayer(title, 0, 0, colour.expand(document.height, document.width, 4), private=private)


def _file_layer(
    layer: Layer, number: int, document: LayerDocument, bits: int, masks: bool, types: PixelTypes
) -> tuple[FileLayer, dict[str, bytes]]:
    private: dict[str, Any] = {
        "title": title_of(layer),
        "name": layer.name,
        "prompt": layer.prompt,
        "negative": layer.negative,
    }
    private |= {"opacity": layer.opacity, "recipe": recipe_entries(layer.recipe)}
    blobs = {}
    if _is_plain(layer, bits, masks, types):
        assert layer.image is not None
        left, top, pixels, mask = (
            int(layer.x),
            int(layer.y),
            layer.image.float(),
            None if layer.mask is None else layer.mask.float(),
        )
    else:
        left, top, pixels, mask = _as_placed(layer, document, masks)
        kind = f"u{bits // 8}"
        look = look_of(to_numbers(pixels, kind), None if mask is None else to_numbers(mask, kind))
        original: dict[str, Any] = {
            "place": {k: getattr(layer, k) for k in PLACE},
            "checksum": look.checksum(),
            "box": [left, top, pixels.shape[1], pixels.shape[0]],
            "corner": look.corner and [left + look.corner[0], top + look.corner[1]],
        }
        for what, values in (("image", layer.image), ("mask", layer.mask)):
            if values is not None:
                kind, key = types.of(values), f"{number}-{what}"
                blobs[key] = to_numbers(values, kind).tobytes()
                original[what] = {
                    "width": values.shape[1],
                    "height": values.shape[0],
                    "type": kind,
                    "key": key,
                }
        private["original"] = original
    return FileLayer(
        private["title"], left, top, pixels, mask, layer.opacity, layer.blend_mode, layer.visible, private
    ), blobs


def _is_plain(layer: Layer, bits: int, masks: bool, types: PixelTypes) -> bool:
    """Return whether the file can store the layer's own pixels as they are."""
    if (
        layer.image is None
        or layer.rotation
        or layer.flip_h
        or layer.flip_v
        or not (float(layer.x).is_integer() and float(layer.y).is_integer())
    ):
        return False
    if layer.image.shape[:2] != (layer.height, layer.width) or (
        layer.mask is not None and (not masks or layer.mask.shape != layer.image.shape[:2])
    ):
        return False
    fits = ("u1", "u2") if bits == 16 else ("u1",)
    return all(types.of(t) in fits for t in (layer.image, layer.mask) if t is not None)


def _as_placed(layer: Layer, document: LayerDocument, masks: bool) -> tuple[int, int, Tensor, Tensor | None]:
    """Return left, top, pixels and mask of the placed layer. A layer larger than the canvas is cropped to it,
    as an enlarged layer could fill any file."""
    left, top, right, bottom = bounds(layer)
    if (right - left) * (bottom - top) > document.width * document.height or max(
        right - left, bottom - top
    ) > MAX_SIDE:
        left, top = min(max(left, 0), document.width - 1), min(max(top, 0), document.height - 1)
        right, bottom = max(min(right, document.width), left + 1), max(min(bottom, document.height), top + 1)
    width, height = right - left, bottom - top
    here = replace(layer, x=layer.x - left, y=layer.y - top)
    if layer.image is None:
        shown = place(layer.coverage[..., None], here, width, height)[..., 0].clamp(0, 1)
        everywhere = layer.mask is None and bool((shown == 1).all())
        return left, top, torch.zeros(height, width, 4), shown if masks and not everywhere else None
    alpha = layer.coverage[..., None]
    placed = place(torch.cat([layer.image[..., :3].float() * alpha, alpha], -1), here, width, height)
    return left, top, straight(placed).clamp(0, 1), None
