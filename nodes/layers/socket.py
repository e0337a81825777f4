"""Convert between ComfyUI's LAYERS and the core's documents. Nothing else in the pack reads or writes LAYERS.

LAYERS differ from a document: a mask of 1 is transparent, rotation is in radians, names may repeat or be
missing, each picture of an item's batch is a layer, and there is no place for words and recipe. Words and
recipe travel in the item's private key ``layered_diffusion``, which ComfyUI's own nodes pass on:
``{"version": 1, "prompt", "negative", "rotation" (degrees), "recipe": {...}, "region": mask or None}``.
``region`` is there only on a layer without a picture, whose ``image`` is then transparent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.canvas.placement import canvas_extent
from ...layered_core.document import MAX_LAYERS, Layer, LayerDocument, Recipe, unique_names
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.formats.plain_values import is_version, read_recipe
from ...layered_core.progress import steps
from .pictures import masks, pictures

KEY = "layered_diffusion"
"""The key in an item for everything that LAYERS has no place for."""

VERSION = 1
"""The version of LAYERS, and of the private key."""

SIDE = 512
"""Width and height, pixels, of a canvas of which nothing says how large it is, as of ComfyUI's empty latents."""

LAYERS = getattr(io, "Layers", None) or io.Custom("LAYERS")
"""The socket type. On hosts that do not name it yet, a custom type with the same string."""


def read_stack(stack: object) -> LayerDocument:
    """Return the :class:`LayerDocument` of a LAYERS document; items without an image are skipped, as
    ComfyUI's own nodes do.

    Raises:
        LayeredError: it is of another version, or an item is not valid; the text names the layer and the
            field.
    """
    items = _items(stack)
    layers = [layer for index, item in steps(list(enumerate(items))) for layer in _layers(item, index)]
    width, height = stack_canvas(stack) or _extent(layers)
    backdrop = next((item[KEY]["background"] for item in items if _is_backdrop(item)), None)
    words = next(
        (
            item[KEY]["document"]
            for item in items
            if isinstance(item.get(KEY), Mapping) and "document" in item[KEY]
        ),
        {},
    )
    return LayerDocument(width, height, unique_names(layers), backdrop, **words)


def write_stack(document: LayerDocument) -> dict[str, Any]:
    """Return a document as LAYERS. A background colour becomes a bottom layer of that colour, which
    :func:`read_stack` turns back into a background."""
    stack: dict[str, Any] = {"version": VERSION, "canvas": (document.width, document.height), "layers": []}
    if document.background is not None:
        stack["layers"].append(_backdrop(document))
    stack["layers"] += [_item(layer, 0) for layer in document]
    words = {k: v for k, v in (("prompt", document.prompt), ("negative", document.negative)) if v}
    if words and stack["layers"]:
        stack["layers"][0].setdefault(KEY, {"version": VERSION})["document"] = words
    return stack


def append_layers(stack: object, layers: Sequence[Layer], canvas: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """Return a new LAYERS document with ``layers`` on top of those of ``stack``, whose items stay the same
    objects.

    Args:
        stack: a LAYERS document, or None to start one.
        layers: back to front.
        canvas: width and height in pixels, see :func:`canvas_below`. Where that is unknown, the first picture
            sets it: it then holds all layers so far. Until there is a picture, it is left open.
    """
    check_room(stack, len(layers))
    below = [] if stack is None else _items(stack)
    top = max((_whole(item.get("z_index")) for item in below), default=0)
    kept = [] if stack is None else stack.get("layers") or []
    document: dict[str, Any] = {
        "version": VERSION,
        "layers": [*kept, *(_item(layer, top) for layer in layers)],
    }
    after = canvas_below(stack, canvas)
    if not all(after) and (any(after) or any(layer.image is not None for layer in layers)):
        extent = _read_extent(document)
        after = after[0] or extent[0], after[1] or extent[1]
    if all(after):
        document["canvas"] = after
    return document


def canvas_below(stack: object, canvas: tuple[int, int]) -> tuple[int, int]:
    """Return the width and height, pixels, of the canvas on which the next layer is laid; 0 where it is not
    known yet.

    Args:
        stack: a LAYERS document, or None.
        canvas: what the user says; 0 takes that of ``stack``, or of its layers if some have a picture.
    """
    if all(canvas):
        return canvas
    below = stack_canvas(stack)
    if below is None and stack is not None and any("region" not in _own(i, "") for i in _items(stack)):
        below = _read_extent(stack)
    width, height = below or (0, 0)
    return canvas[0] or width, canvas[1] or height


def check_room(stack: object, more: int) -> None:
    """Raise :class:`LayeredError` unless a LAYERS document, or None, has room for ``more`` layers."""
    count = sum(_pictures_of(item) for item in ([] if stack is None else _items(stack))) + more
    if count > MAX_LAYERS:
        raise invalid(
            "layers: number of layers",
            count,
            f"at most {MAX_LAYERS}",
            "Composite some of them first, and go on with that picture as one layer",
        )


def _pictures_of(item: Mapping[str, Any]) -> int:
    """Return the number of pictures of an item; one whose image has another shape is refused when it is
    read."""
    return len(item["image"]) if item["image"].ndim == 4 else 1


def _read_extent(stack: object) -> tuple[int, int]:
    """Return the width and height of a LAYERS document that states no canvas."""
    document = read_stack(stack)
    return document.width, document.height


def _extent(layers: Sequence[Layer]) -> tuple[int, int]:
    """Return the canvas that holds all layers that have a size; without any, a square of :data:`SIDE`."""
    sized = [layer for layer in layers if layer.width and layer.height]
    return canvas_extent(sized) if sized or not layers else (SIDE, SIDE)


def stack_canvas(stack: object) -> tuple[int, int] | None:
    """Return the width and height that a LAYERS document states, pixels, or None."""
    canvas = stack.get("canvas") if isinstance(stack, Mapping) else None
    if not isinstance(canvas, (tuple, list)) or len(canvas) != 2:
        return None
    width, height = _whole(canvas[0]), _whole(canvas[1])
    return (width, height) if width > 0 and height > 0 else None


def frame_names(stack: object) -> list[str | None]:
    """Return the name of our layer for every picture that ComfyUI's compositor counts in a LAYERS document,
    back to front; None for a background."""
    layers = iter(read_stack(stack))
    names: list[str | None] = []
    for item in _items(stack):
        names += [None] if _is_backdrop(item) else [next(layers).name for _ in range(len(item["image"]))]
    return names


def frame_titles(stack: object) -> list[str]:
    """Return the names that ComfyUI's compositor shows for the pictures of :func:`frame_names`. The pictures
    of a batch share one name, and two layers may have the same."""
    return [str(item.get("name") or "") for item in _items(stack) for _ in item["image"]]


def mask_to_presence(mask: Tensor) -> Tensor:
    """Convert a LAYERS mask (1 is transparent, as Load Image gives it) to the core's (1 is where the layer
    is), or back; ``[..., H, W]``."""
    return 1 - mask.float().clamp(0, 1)


def _items(stack: object) -> list[dict[str, Any]]:
    """Return the items that are layers, back to front."""
    if not isinstance(stack, Mapping):
        raise invalid(
            "layers",
            stack,
            "a LAYERS document",
            "Connect the output of Load Layer, Add Layer or another node that gives LAYERS",
        )
    version = stack.get("version")
    if version is not None and not is_version(version, VERSION):
        raise invalid(
            "layers: version",
            version,
            str(VERSION),
            "The stack comes from a node of a newer ComfyUI: update this pack",
        )
    items = [
        item
        for item in stack.get("layers") or []
        if isinstance(item, dict) and isinstance(item.get("image"), Tensor)
    ]
    return sorted(items, key=lambda item: _whole(item.get("z_index")))


def _layers(item: Mapping[str, Any], index: int) -> list[Layer]:
    """Return the layers of one item: one for each picture of its batch."""
    if _is_backdrop(item):
        return []
    name = (
        item.get("name")
        if isinstance(item.get("name"), str) and item["name"].strip()
        else f"layer {index + 1}"
    )
    if item.get("type", "raster") != "raster":
        raise invalid(f"layer {name!r}: type", item["type"], "raster")
    image = pictures(item["image"], f"layer {name!r}: image")
    own = _own(item, name)
    rotation = _real(item.get("rotation"))
    degrees = own.get("rotation")
    shared: dict[str, Any] = {
        "prompt": own.get("prompt", ""),
        "negative": own.get("negative", ""),
        "x": _real(item.get("x")),
        "y": _real(item.get("y")),
        "width": max(_whole(item.get("w")), 0) or image.shape[2],
        "height": max(_whole(item.get("h")), 0) or image.shape[1],
        # Converting to radians and back may change the last bit of what the user typed.
        "rotation": degrees
        if degrees is not None and math.radians(degrees) == rotation
        else math.degrees(rotation),
        "flip_h": bool(item.get("flip_h", False)),
        "flip_v": bool(item.get("flip_v", False)),
        "opacity": item.get("opacity", 1.0),
        "blend_mode": item.get("blend_mode") or "normal",
        "visible": bool(item.get("visible", True)),
        "recipe": _recipe(own.get("recipe", {}), name),
    }
    if "region" in own:
        size = {"width": max(_whole(item.get("w")), 0), "height": max(_whole(item.get("h")), 0)}
        return [Layer(name, None, own["region"], **{**shared, **size})]
    frames = item.get("mask")
    frames = masks(frames, f"layer {name!r}: mask") if isinstance(frames, Tensor) else None
    count = len(image)
    names = [name] if count == 1 else [f"{name} {i + 1}" for i in range(count)]
    return [Layer(names[i], rgba(image[i]), _frame(frames, i), **shared) for i in range(count)]


def rgba(image: Tensor) -> Tensor:
    """Return one picture ``[H, W, 3 or 4]`` as float32 RGBA on the CPU, clamped to 0..1; a picture without
    alpha is opaque."""
    pixels = clamped(image)
    return pixels if pixels.shape[-1] == 4 else torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)


def clamped(pixels: Tensor) -> Tensor:
    """Return pixels as float32 on the CPU, clamped to 0..1; those that are so already are not copied."""
    pixels = pixels.detach().float().cpu()
    least, most = pixels.aminmax()
    return pixels if least >= 0 and most <= 1 else pixels.clamp(0, 1)


def _frame(mask: Tensor | None, index: int) -> Tensor | None:
    """Return the mask of picture ``index`` of a batch: a single mask serves all pictures; None if there is no
    mask for this one."""
    if mask is None or (len(mask) > 1 and index >= len(mask)):
        return None
    return mask_to_presence(mask[min(index, len(mask) - 1)].detach().cpu())


def _item(layer: Layer, z_index: int) -> dict[str, Any]:
    own: dict[str, Any] = {"version": VERSION, "prompt": layer.prompt, "negative": layer.negative}
    own |= {"rotation": layer.rotation, "recipe": asdict(layer.recipe)}
    item: dict[str, Any] = {
        "type": "raster",
        "name": layer.name,
        "z_index": z_index,
        "w": layer.width,
        "h": layer.height,
        KEY: own,
    }
    if layer.image is None:
        own["region"] = layer.mask
        item["image"] = torch.zeros(1, 1, 1, 4)
    else:
        item["image"] = layer.image[None]
        if layer.mask is not None:
            item["mask"] = mask_to_presence(layer.mask)[None]
    item |= {
        "x": _integral(layer.x),
        "y": _integral(layer.y),
        "rotation": math.radians(layer.rotation),
        "opacity": layer.opacity,
    }
    item |= {
        "blend_mode": layer.blend_mode,
        "visible": layer.visible,
        "flip_h": layer.flip_h,
        "flip_v": layer.flip_v,
    }
    return item


def _backdrop(document: LayerDocument) -> dict[str, Any]:
    item = _item(
        Layer(
            "background",
            torch.tensor([[[*document.background, 1.0]]]),
            width=document.width,
            height=document.height,
        ),
        0,
    )
    item[KEY]["background"] = document.background
    return item


def _is_backdrop(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get(KEY), Mapping) and "background" in item[KEY]


def _own(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the content of our private key; without the key, a neutral recipe."""
    own = item.get(KEY)
    if own is None:
        return {"recipe": asdict(NEUTRAL)}
    if not isinstance(own, Mapping):
        raise invalid(f"layer {name!r}: {KEY}", own, "a mapping")
    if not is_version(own.get("version"), VERSION):
        raise invalid(
            f"layer {name!r}: {KEY}: version",
            own.get("version"),
            str(VERSION),
            "Another version of this pack wrote the layer: update the pack",
        )
    return own


NEUTRAL = Recipe(inside=0.0, outside=0.0, noise=1.0)
"""The recipe of a layer that was made without this pack: no method does anything to it."""


def _recipe(entries: object, name: str) -> Recipe:
    try:
        return read_recipe(entries)
    except LayeredError as error:
        raise LayeredError(f"layer {name!r}: {error}") from None


def _whole(value: object) -> int:
    """Return a whole number as ComfyUI reads it from LAYERS: anything that is not a number counts as 0."""
    return (
        int(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        else 0
    )


def _real(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def _integral(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
