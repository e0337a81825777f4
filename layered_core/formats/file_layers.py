"""What PSD and OpenRaster share: how a document becomes plain pixel layers that any program shows, and comes back whole.

A file's own layer (:class:`FileLayer`) has a title, a whole-pixel place, pixels, opacity, blend mode and visibility. What else a layer
of ours has travels beside it as ``private`` JSON, which the formats store where other programs leave it alone:

``{"title", "name", "prompt", "negative", "opacity", "recipe": {...}, "original": {...}}``

``original`` is there when the pixels in the file are not the layer's own: it is turned, scaled, flipped, has no picture, or is finer
than the file. It holds the placement, the checksum and the place of what is seen in the file, and where the layer's own pixels are
stored (``{"width", "height", "type", "key"}``). If another program changed the pixels since, which the checksum tells, or gave them a mask,
then they count, and only words and recipe are taken from ``private``. Without ``private`` a title ``name: prompt`` still carries the prompt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..canvas.compositing import straight
from ..canvas.placement import bounds, place
from ..document import MAX_SIDE, Layer, LayerDocument
from ..errors import LayeredError, invalid
from .limits import Budget
from .plain_values import read_recipe, recipe_entries

VERSION = 1
"""Version of the private data."""

MAX_WORKFLOW_BYTES = 2**24
"""Greatest size of a workflow as JSON."""

BITS = (8, 16, 32)
"""How exactly a file may keep pixels: 8 or 16 bits a channel, or 32-bit floating point."""

_TITLE = re.compile(r"\s*(\S.*?):\s+(\S.*)", re.DOTALL)
_PLACE = ("x", "y", "width", "height", "rotation", "flip_h", "flip_v")
_TYPES: dict[str, Any] = {"u1": np.dtype("u1"), "u2": np.dtype("<u2"), "f4": np.dtype("<f4")}
_SCALE = {"u1": 255.0, "u2": 65535.0}


@dataclass(frozen=True)
class LayerFile:
    """What was read from a file."""

    document: LayerDocument
    """The layers."""
    workflow: Mapping[str, Any] = field(default_factory=dict)
    """What the host stored with it: ComfyUI's ``workflow`` and ``prompt``. Empty: nothing."""
    warnings: tuple[str, ...] = ()
    """What the file holds and a document cannot, one line each."""


@dataclass
class FileLayer:
    """One layer as PSD and OpenRaster know it."""

    title: str
    """Name in the file; ``name: prompt`` where there is a prompt."""
    left: int
    """Left edge, canvas pixels."""
    top: int
    """Top edge, canvas pixels."""
    pixels: Tensor
    """RGBA float32 ``[H, W, 4]``, straight alpha; 0 x 0 where the file has no pixels for it."""
    mask: Tensor | None = None
    """Float32 ``[H, W]``, 1 where the layer is; only in formats with masks."""
    opacity: float = 1.0
    """0..1."""
    blend_mode: str = "normal"
    """One of ``BLEND_MODES``."""
    visible: bool = True
    """Whether it is shown."""
    private: Mapping[str, Any] | None = None
    """What other programs do not know, or None where it was made elsewhere."""


ReadBlob = Callable[[str, int], "bytes | None"]
"""Gives the stored bytes of a key if there are exactly as many as said, else None."""


# Writing


def flatten(document: LayerDocument, bits: int, masks: bool) -> tuple[list[FileLayer], dict[str, bytes]]:
    """The document's layers as a file shows them, back to front, and the original pixels to store beside them by key.

    Args:
        document: any.
        bits: precision of the pixels in the file, 8 or 16; what is finer is kept beside them.
        masks: whether the format has masks. If not, they are multiplied into the alpha and kept beside it.
    """
    layers, blobs = [], {}
    if document.background is not None:
        layers.append(_backdrop(document))
    for number, layer in enumerate(document, 1):
        made, stored = _flat(layer, number, document, bits, masks)
        layers.append(made)
        blobs.update(stored)
    return layers, blobs


def rounded(document: LayerDocument, bits: int) -> LayerDocument:
    """The document with every pixel rounded to ``bits`` a channel; 32 changes nothing."""
    if bits not in BITS:
        raise invalid("bits", bits, ", ".join(str(b) for b in BITS))
    if bits == 32:
        return document
    top = 2**bits - 1
    layers = []
    for layer in document:
        image, mask = ((None if t is None else (t.float() * top).round() / top) for t in (layer.image, layer.mask))
        layers.append(replace(layer, image=image, mask=mask))
    return replace(document, layers=tuple(layers))


def file_bits(document: LayerDocument) -> int:
    """16 where some pixels need that and none needs more, else 8."""
    needs = {pixel_type(t) for layer in document for t in (layer.image, layer.mask) if t is not None}
    return 16 if "u2" in needs and "f4" not in needs else 8


def pixel_type(values: Tensor) -> str:
    """The smallest of ``u1``, ``u2`` and ``f4`` that holds the values exactly."""
    values = values.float()
    for name, top in _SCALE.items():
        if torch.equal((values * top).round() / top, values):
            return name
    return "f4"


def title_of(layer: Layer) -> str:
    """``name: prompt`` as one line that every program can show; at most 255 characters."""
    text = f"{layer.name}: {layer.prompt}" if layer.prompt else layer.name
    return clean_text(text)[:255]


def clean_text(text: str) -> str:
    """The text without what XML and Photoshop cannot hold: control characters, halves of surrogate pairs, more than one line."""
    text = "".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\ufffe\uffff" else c for c in text)
    return text.encode("utf-16-be", "replace").decode("utf-16-be")


def check_workflow(workflow: Mapping[str, Any] | None) -> None:
    """Raise :class:`LayeredError` unless the workflow is plain JSON values and not larger than reading allows."""
    try:
        size = len(json.dumps(workflow))
    except (TypeError, ValueError, RecursionError) as error:
        raise LayeredError(f"workflow cannot be stored as JSON: {error}") from None
    if size > MAX_WORKFLOW_BYTES:
        raise invalid("size of the workflow", f"{size:,} bytes", f"at most {MAX_WORKFLOW_BYTES:,}", "Write without it")


def document_private(document: LayerDocument) -> dict[str, Any]:
    """What the document has beside canvas and layers."""
    return {"version": VERSION, "prompt": document.prompt, "negative": document.negative}


def _backdrop(document: LayerDocument) -> FileLayer:
    assert document.background is not None
    colour = torch.tensor([*document.background, 1.0])
    private = {"title": "background colour", "background": list(document.background)}
    return FileLayer(private["title"], 0, 0, colour.expand(document.height, document.width, 4), private=private)  # type: ignore[arg-type]  # a string


def _flat(layer: Layer, number: int, document: LayerDocument, bits: int, masks: bool) -> tuple[FileLayer, dict[str, bytes]]:
    private: dict[str, Any] = {"title": title_of(layer), "name": layer.name, "prompt": layer.prompt, "negative": layer.negative}
    private |= {"opacity": layer.opacity, "recipe": recipe_entries(layer.recipe)}
    blobs = {}
    if _is_plain(layer, bits, masks):
        assert layer.image is not None
        left, top, pixels, mask = int(layer.x), int(layer.y), layer.image.float(), None if layer.mask is None else layer.mask.float()
    else:
        left, top, pixels, mask = _baked(layer, document, masks)
        checksum, corner = look_of(*as_stored(pixels, mask, bits))
        original: dict[str, Any] = {"place": {k: getattr(layer, k) for k in _PLACE}, "checksum": checksum}
        original |= {"box": [left, top, pixels.shape[1], pixels.shape[0]], "corner": corner and [left + corner[0], top + corner[1]]}
        for what, values in (("image", layer.image), ("mask", layer.mask)):
            if values is not None:
                kind, key = pixel_type(values), f"{number}-{what}"
                blobs[key] = _pack(values, kind)
                original[what] = {"width": values.shape[1], "height": values.shape[0], "type": kind, "key": key}
        private["original"] = original
    return FileLayer(private["title"], left, top, pixels, mask, layer.opacity, layer.blend_mode, layer.visible, private), blobs


def _is_plain(layer: Layer, bits: int, masks: bool) -> bool:
    """Whether the file's layer can be the layer's own pixels."""
    if layer.image is None or layer.rotation or layer.flip_h or layer.flip_v or not (float(layer.x).is_integer() and float(layer.y).is_integer()):
        return False
    if layer.image.shape[:2] != (layer.height, layer.width) or (layer.mask is not None and (not masks or layer.mask.shape != layer.image.shape[:2])):
        return False
    fits = ("u1", "u2") if bits == 16 else ("u1",)
    return all(pixel_type(t) in fits for t in (layer.image, layer.mask) if t is not None)


def _baked(layer: Layer, document: LayerDocument, masks: bool) -> tuple[int, int, Tensor, Tensor | None]:
    """Left, top, pixels and mask of the layer as placed. One larger than the canvas is cut at it: an enlarged one might fill any file."""
    left, top, right, bottom = bounds(layer)
    if (right - left) * (bottom - top) > document.width * document.height or max(right - left, bottom - top) > MAX_SIDE:
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


def as_stored(pixels: Tensor, mask: Tensor | None, bits: int) -> tuple[Tensor, Tensor | None]:
    """Pixels and mask rounded to ``bits`` a channel, as a file has them."""
    top = 2**bits - 1
    return (pixels * top).round() / top, None if mask is None else (mask * top).round() / top


def look_of(pixels: Tensor, mask: Tensor | None) -> tuple[str, tuple[int, int] | None]:
    """Checksum and left top corner of what is seen of a layer, or of its mask where it has no visible pixel; None where that is nothing.

    Programs cut layers to their visible part, change the colours of transparent pixels, and may give them 16 bits: that does not count.
    """
    alpha = pixels[..., 3] > 0
    if bool(alpha.any()):
        values, seen = torch.where(pixels[..., 3:] > 0, pixels, 0.0), alpha
    elif mask is not None and bool((mask > 0).any()):
        values, seen = mask, mask > 0
    else:
        return "", None
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    top, left = int(rows[0]), int(columns[0])
    part = values[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    digest = hashlib.sha256(repr(tuple(part.shape)).encode())
    digest.update((part * 65535).round().to(torch.int32).contiguous().numpy().tobytes())
    return digest.hexdigest(), (left, top)


def _pack(values: Tensor, kind: str) -> bytes:
    array = values.detach().float().cpu()
    if kind in _SCALE:
        array = (array * _SCALE[kind]).round()
    return array.numpy().astype(_TYPES[kind]).tobytes()


# Reading


def restore(
    size: tuple[int, int], layers: Sequence[FileLayer], private: Mapping[str, Any], read_blob: ReadBlob, budget: Budget, warnings: Iterable[str] = ()
) -> LayerFile:
    """The document that :func:`flatten` was given; of a file that was made or changed elsewhere, what can be had.

    Args:
        size: canvas width and height.
        layers: of the file, back to front.
        private: of :func:`document_private`, or empty; its ``workflow``, if any, is handed on.
        read_blob: original pixels by key.
        budget: accounts for original pixels.
        warnings: of the format's own reader.
    """
    if private and private.get("version") != VERSION:
        raise invalid("version of the layer data", private.get("version"), str(VERSION), "A newer version of this project wrote the file: update")
    warnings = list(warnings)
    background = None
    if layers and (background := _background(layers[0], size)) is not None:
        layers = layers[1:]
    made: list[Layer] = []
    for number, item in enumerate(layers, 1):
        try:
            layer = _layer(item, number, read_blob, budget, warnings)
        except LayeredError as error:
            where = f"layer {item.title!r}: "
            raise LayeredError(str(error) if str(error).startswith("layer ") else f"{where}{error}") from None
        if layer is None:
            warnings.append(f"layer {item.title!r} is empty and left out")
        else:
            made.append(layer)
    words = {k: private[k] for k in ("prompt", "negative") if k in private}
    document = LayerDocument(*size, unique_names(made), background, **words)
    workflow = private.get("workflow", {})
    if not isinstance(workflow, Mapping):
        raise invalid("workflow", workflow, "a JSON object")
    return LayerFile(document, workflow, tuple(warnings))


def readable(shown: Sequence[bool], most: int, warnings: list[str]) -> list[bool]:
    """Which of a file's layers to read: all, or, where these are more than ``most``, the ``shown`` ones; that is warned of.

    Raises:
        LayeredError: those are too many, too.
    """
    if len(shown) <= most:
        return [True] * len(shown)
    count = sum(shown)
    if count > most:
        what = "number of layers" if all(shown) else "number of visible layers"
        raise invalid(what, count, f"at most {most}", "Merge some of them")
    warnings.append(f"{len(shown) - count} hidden layers are left out: with them there are {len(shown)}, and at most {most} are read")
    return list(shown)


def split_title(title: str, number: int) -> tuple[str, str]:
    """Name and prompt of a layer titled ``name: prompt`` (a colon and a space); the ``number`` of a nameless one becomes its name."""
    match = _TITLE.fullmatch(title)
    if match:
        return match[1], match[2].strip()
    return title.strip() or f"layer {number}", ""


def unique_names(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers, those whose names repeat with a number at the end."""
    taken: set[str] = set()
    unique = []
    for layer in layers:
        name, number = layer.name, 2
        while name in taken:
            name, number = f"{layer.name} {number}", number + 1
        taken.add(name)
        unique.append(layer if name == layer.name else replace(layer, name=name))
    return tuple(unique)


def _background(item: FileLayer, size: tuple[int, int]) -> tuple[float, float, float] | None:
    """The colour of a layer that :func:`flatten` made of the background and that still is one plain colour over the whole canvas."""
    written = (item.private or {}).get("background")
    width, height = size
    box = item.left <= 0 and item.top <= 0 and item.left + item.pixels.shape[1] >= width and item.top + item.pixels.shape[0] >= height
    plain = item.mask is None and item.opacity == 1 and item.blend_mode == "normal" and item.visible
    if written is None or not (box and plain) or not bool((item.pixels == item.pixels[0, 0]).all()) or item.pixels[0, 0, 3] != 1:
        return None
    colour = item.pixels[0, 0, :3].tolist()
    if isinstance(written, (list, tuple)) and len(written) == 3 and all(isinstance(w, (int, float)) for w in written):
        same = all(abs(a - b) <= 0.5 / 255 + 1e-6 for a, b in zip(colour, written, strict=True))
        colour = list(written) if same else colour
    return colour[0], colour[1], colour[2]


def _layer(item: FileLayer, number: int, read_blob: ReadBlob, budget: Budget, warnings: list[str]) -> Layer | None:
    private = item.private
    name, prompt = split_title(item.title, number)
    look: dict[str, Any] = {"opacity": item.opacity, "blend_mode": item.blend_mode, "visible": item.visible}
    look |= {"x": item.left, "y": item.top, "width": item.pixels.shape[1], "height": item.pixels.shape[0]}
    invisible = not bool((item.pixels[..., 3] > 0).any())
    nothing = max(item.pixels.shape[:2]) <= 1 and invisible  # programs write no pixels, or one, for an empty layer
    if private is None or "background" in private:
        if nothing or (invisible and item.mask is None and not prompt):
            return None
        return Layer(name, None if invisible else item.pixels, item.mask, prompt=prompt, **look)
    written = private.get("title")
    if item.title == written or (isinstance(written, str) and len(item.title) >= 31 and written.startswith(item.title)):  # cut short by the program
        name, prompt = private.get("name", name), private.get("prompt", prompt)
    look |= {"prompt": prompt or private.get("prompt", ""), "negative": private.get("negative", "")}
    opacity = private.get("opacity")
    if isinstance(opacity, (int, float)) and abs(opacity - item.opacity) <= 0.5 / 255 + 1e-6:
        look["opacity"] = opacity
    look["recipe"] = read_recipe(private.get("recipe", {}))
    original = private.get("original")
    if original is None:
        return Layer(name, item.pixels, item.mask, **look) if item.pixels.numel() else None
    if not isinstance(original, Mapping):
        raise invalid("original", original, "a JSON object")
    checksum, corner = look_of(item.pixels, item.mask)
    if original.get("checksum") == checksum and not ("image" in original and _masked(item)):
        own = _original(name, original, read_blob, budget)
        if own is not None:
            return Layer(name, own["image"], own["mask"], **{**look, **_moved(original, item, corner)})
        warnings.append(f"layer {name!r}: the program that saved the file last left out its original pixels; the placed ones are used")
    if nothing:
        return None
    return Layer(name, None if invisible and "image" not in original else item.pixels, item.mask, **look)


def _masked(item: FileLayer) -> bool:
    """Whether a mask, a group's mask or clipping of another program hides some of the pixels: those of ours that have an original have none."""
    return item.mask is not None and bool((item.mask[item.pixels[..., 3] > 0] < 1).any())


def _original(name: str, original: Mapping[str, Any], read_blob: ReadBlob, budget: Budget) -> dict[str, Tensor | None] | None:
    """The layer's own image and mask; None where one is not in the file any more."""
    own: dict[str, Tensor | None] = {"image": None, "mask": None}
    for what, channels in (("image", 4), ("mask", 1)):
        stored = original.get(what)
        if stored is None:
            continue
        if not isinstance(stored, Mapping) or stored.get("type") not in _TYPES or not isinstance(stored.get("key"), str):
            raise invalid(f"original {what}", stored, "width, height, type and key")
        width, height = stored.get("width"), stored.get("height")
        if not isinstance(width, int) or not isinstance(height, int):
            raise invalid(f"size of original {what}", [width, height], "whole numbers")
        budget.take(f"original {what} of layer {name!r}", width, height, channels)
        kind = stored["type"]
        data = read_blob(stored["key"], width * height * channels * _TYPES[kind].itemsize)
        if data is None:
            return None
        values = torch.from_numpy(np.frombuffer(data, _TYPES[kind]).astype(np.float32)) / _SCALE.get(kind, 1.0)
        own[what] = values.reshape((height, width, 4) if what == "image" else (height, width))
    return own


def _moved(original: Mapping[str, Any], item: FileLayer, corner: tuple[int, int] | None) -> dict[str, Any]:
    """The placement, shifted as far as what is seen of the layer was since."""
    placement, box, written = original.get("place"), original.get("box"), original.get("corner")
    if not isinstance(placement, Mapping) or set(placement) != set(_PLACE):
        raise invalid("place", placement, ", ".join(_PLACE))
    for what, values, count in (("box", box, 4), ("corner", written or [0, 0], 2)):
        if not isinstance(values, (list, tuple)) or len(values) != count or not all(isinstance(v, int) for v in values):
            raise invalid(what, values, f"{count} whole numbers")
    dx = dy = 0
    if written and corner is not None:
        dx, dy = item.left + corner[0] - written[0], item.top + corner[1] - written[1]
    elif [item.pixels.shape[1], item.pixels.shape[0]] == list(box or ())[2:]:
        dx, dy = item.left - box[0], item.top - box[1]  # type: ignore[index]  # checked above
    x, y = placement["x"], placement["y"]
    if isinstance(x, (int, float)) and isinstance(y, (int, float)):  # else the layer says what is wrong
        x, y = x + dx, y + dy
    return {**placement, "x": x, "y": y}
