"""Convert the layers of a file, which another program may have changed, back to a document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..document import Layer, LayerDocument, unique_names
from ..errors import LayeredError, invalid
from ..progress import steps
from .file_layers import PLACE, VERSION, FileLayer, LayerFile, ReadBlob, split_title
from .layer_look import look_of_values
from .limits import Budget
from .pixel_numbers import TYPES, to_values
from .plain_values import is_version, is_whole, read_recipe


def restore(
    size: tuple[int, int],
    layers: Sequence[FileLayer],
    private: Mapping[str, Any],
    read_blob: ReadBlob,
    budget: Budget,
    warnings: Iterable[str] = (),
) -> LayerFile:
    """Return the document of a file: the one that :func:`~.to_file.flatten` got, or, if another program made
    or changed the file, as much of one as it holds.

    Args:
        size: canvas width and height.
        layers: the layers of the file, back to front.
        private: the result of :func:`~.to_file.document_private`, or empty; its ``workflow``, if any, is
            returned with the document.
        read_blob: reads original pixels by key.
        budget: limits the memory for original pixels.
        warnings: warnings of the format's reader, to which more are added.

    Raises:
        LayeredError: the private data are of another version or wrong, or a layer is.
    """
    if private and not is_version(private.get("version"), VERSION):
        raise invalid(
            "version of the layer data",
            private.get("version"),
            str(VERSION),
            "A newer version of this project wrote the file: update",
        )
    warnings = list(warnings)
    background = None
    if layers and (background := _background(layers[0], size)) is not None:
        layers = layers[1:]
    made: list[Layer] = []
    for number, item in steps(list(enumerate(layers, 1))):
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


def _background(item: FileLayer, size: tuple[int, int]) -> tuple[float, float, float] | None:
    """Return the background colour from the layer that :func:`~.to_file.flatten` made of it; None if it is
    another layer, or no longer one opaque colour over the whole canvas."""
    written = (item.private or {}).get("background")
    width, height = size
    box = (
        item.left <= 0
        and item.top <= 0
        and item.left + item.pixels.shape[1] >= width
        and item.top + item.pixels.shape[0] >= height
    )
    plain = item.mask is None and item.opacity == 1 and item.blend_mode == "normal" and item.visible
    if (
        written is None
        or not (box and plain)
        or not bool((item.pixels == item.pixels[0, 0]).all())
        or item.pixels[0, 0, 3] != 1
    ):
        return None
    colour = item.pixels[0, 0, :3].tolist()
    if (
        isinstance(written, (list, tuple))
        and len(written) == 3
        and all(isinstance(w, (int, float)) for w in written)
    ):
        same = all(abs(a - b) <= 0.5 / 255 + 1e-6 for a, b in zip(colour, written, strict=True))
        colour = list(written) if same else colour
    return colour[0], colour[1], colour[2]


def _layer(
    item: FileLayer, number: int, read_blob: ReadBlob, budget: Budget, warnings: list[str]
) -> Layer | None:
    private = item.private
    name, prompt = split_title(item.title, number)
    look: dict[str, Any] = {"opacity": item.opacity, "blend_mode": item.blend_mode, "visible": item.visible}
    look |= {"x": item.left, "y": item.top, "width": item.pixels.shape[1], "height": item.pixels.shape[0]}
    invisible = not _is_visible(item.pixels)
    nothing = (
        max(item.pixels.shape[:2]) <= 1 and invisible
    )  # programs write no pixels, or one, for an empty layer
    if private is None or "background" in private:
        if nothing or (invisible and item.mask is None and not prompt):
            return None
        return Layer(name, None if invisible else item.pixels, item.mask, prompt=prompt, **look)
    written = private.get("title")
    if item.title == written or (
        isinstance(written, str) and len(item.title) >= 31 and written.startswith(item.title)
    ):  # the program has cut the title short
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
    look_now = look_of_values(item.pixels, item.mask)
    if look_now.has(original.get("checksum")) and not ("image" in original and _masked(item)):
        own = _original(name, original, read_blob, budget)
        if own is not None:
            layer = Layer(
                name, own["image"], own["mask"], **{**look, **_moved(original, item, look_now.corner)}
            )
            if layer.image is None and layer.mask is None:  # what is made of it is as large as its box
                budget.fits(f"layer {name!r}", layer.width, layer.height, channels=1)
            return layer
        warnings.append(
            f"layer {name!r}: the program that saved the file last left out its original pixels; the placed "
            f"ones are used"
        )
    if nothing:
        return None
    return Layer(name, None if invisible and "image" not in original else item.pixels, item.mask, **look)


def _is_visible(pixels: Tensor) -> bool:
    """Return whether a pixel is not transparent; most layers have one in the first rows that are looked at."""
    return any(bool((pixels[top : top + 64, :, 3] > 0).any()) for top in range(0, len(pixels), 64))


def _masked(item: FileLayer) -> bool:
    """Return whether some pixels are hidden by a mask, a group's mask or clipping that another program added:
    layers with an original image are written without a mask."""
    return item.mask is not None and bool((item.mask[item.pixels[..., 3] > 0] < 1).any())


def _original(
    name: str, original: Mapping[str, Any], read_blob: ReadBlob, budget: Budget
) -> dict[str, Tensor | None] | None:
    """Return the layer's own image and mask; None if one of them is no longer in the file."""
    own: dict[str, Tensor | None] = {"image": None, "mask": None}
    for what, channels in (("image", 4), ("mask", 1)):
        stored = original.get(what)
        if stored is None:
            continue
        if (
            not isinstance(stored, Mapping)
            or stored.get("type") not in TYPES
            or not isinstance(stored.get("key"), str)
        ):
            raise invalid(f"original {what}", stored, "width, height, type and key")
        width, height = stored.get("width"), stored.get("height")
        if not is_whole(width) or not is_whole(height):
            raise invalid(f"size of original {what}", [width, height], "whole numbers")
        budget.take(f"original {what} of layer {name!r}", width, height, channels)
        kind = stored["type"]
        data = read_blob(stored["key"], width * height * channels * TYPES[kind].itemsize)
        if data is None:
            return None
        shape = (height, width, 4) if what == "image" else (height, width)
        own[what] = to_values(np.frombuffer(data, TYPES[kind]).reshape(shape))
    return own


def _moved(original: Mapping[str, Any], item: FileLayer, corner: tuple[int, int] | None) -> dict[str, Any]:
    """Return the placement, shifted by as much as another program has moved the layer's visible pixels."""
    placement, box, written = original.get("place"), original.get("box"), original.get("corner")
    if not isinstance(placement, Mapping) or set(placement) != set(PLACE):
        raise invalid("place", placement, ", ".join(PLACE))
    for what, values, count in (("box", box, 4), ("corner", written or [0, 0], 2)):
        if (
            not isinstance(values, (list, tuple))
            or len(values) != count
            or not all(is_whole(v) for v in values)
        ):
            raise invalid(what, values, f"{count} whole numbers")
    dx = dy = 0
    if written and corner is not None:
        dx, dy = item.left + corner[0] - written[0], item.top + corner[1] - written[1]
    elif [item.pixels.shape[1], item.pixels.shape[0]] == list(box or ())[2:]:
        dx, dy = item.left - box[0], item.top - box[1]  # type: ignore[index]  # checked above
    x, y = placement["x"], placement["y"]
    if isinstance(x, (int, float)) and isinstance(y, (int, float)):  # if not, Layer raises an error
        x, y = x + dx, y + dy
    return {**placement, "x": x, "y": y}
