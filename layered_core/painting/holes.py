"""Holes: the parts of a layer that are not known because layers in front cover them, and what fills them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.compositing import flat
from ..canvas.masks import layer_alpha
from ..canvas.placement import bounds, is_exact
from ..canvas.soft_masks import grow
from ..document import Layer, LayerDocument
from ..errors import LayeredError, invalid
from ..progress import pause
from .mattes import difference_matte


def hole_of(document: LayerDocument, name: str) -> Tensor:
    """Return where a layer is not known: where it is transparent and another in front of it hides it
    wholly, bool ``[H, W]``. What is put there changes no pixel of the composite.

    Of the backmost layer that is all that is covered. Of another one it is what lies near its own pixels,
    by up to
    half of the longer side of their box: no mask says how far it goes on behind others.

    Raises:
        LayeredError: there is no such layer, or it has no picture.
    """
    layer, index = _found(document, name)
    own = layer_alpha(replace(layer, opacity=1.0), document)
    hole = _covered(document, index) & (own < 1)
    return hole if index == 0 else hole & _near(own > 0)


def fill_hole(document: LayerDocument, name: str, picture: Tensor) -> LayerDocument:
    """Return the document with a picture in the hole of one layer; the composite stays equal to the bit,
    and so do all other pixels of the layer.

    The backmost layer becomes opaque there. Of another layer, what ``picture`` shows differently from the
    layers up to this one is taken for its hidden part (:func:`~.mattes.difference_matte`).

    Args:
        document: the layers.
        name: the layer to fill.
        picture: ``[H, W, 3]`` in 0..1, the canvas without the layers in front.

    Raises:
        LayeredError: as :func:`hole_of`; the layer is scaled, turned or lies between pixels; the picture has
            another size than the canvas.
    """
    layer, index = _found(document, name)
    size = document.height, document.width
    if tuple(picture.shape) != (*size, 3):
        raise invalid(
            f"layer {name!r}: shape of the picture behind", list(picture.shape), f"[{size[0]}, {size[1]}, 3]",
            "Give it the size of the canvas",
        )  # fmt: skip
    assert layer.image is not None
    if not is_exact(layer, *layer.image.shape[:2]) or (
        layer.mask is not None and layer.mask.shape != layer.image.shape[:2]
    ):
        raise LayeredError(
            f"layer {name!r}: it is scaled, turned or lies between pixels, so nothing can be put behind others "
            f"exactly. Fill behind the layers first, and move it then"
        )
    hole = hole_of(document, name)
    if not bool(hole.any()):
        return document
    alpha = hole.float()
    if index:
        before = flat(replace(document, layers=document.layers[: index + 1]))
        alpha *= difference_matte(before, picture.to(before).movedim(-1, 0))
        hole &= alpha > 0
        if not bool(hole.any()):
            return document
    return document.with_layer(_patched(layer, hole, picture.to(layer.image), alpha))


def smooth_fill(picture: Tensor, hole: Tensor) -> Tensor:
    """Return a picture ``[C, H, W]`` with the colours around the hole, bool ``[H, W]``, spread smoothly
    into it (Gortler et al., *The Lumigraph*, SIGGRAPH 1996: pull and push). A picture that is all hole
    stays as it is."""
    weight = (~hole).to(picture)[None]
    if not bool(weight.any()):
        return picture
    return torch.where(hole, _pulled(picture * weight, weight), picture)


def _pulled(colours: Tensor, weight: Tensor) -> Tensor:
    """Return colours ``[C, H, W]``, premultiplied by their weight ``[1, H, W]``, divided by it, where it is
    0 those of a picture of half the size."""
    pause()
    own = colours / weight.clamp_min(1e-6)
    if bool((weight >= 1).all()) or max(weight.shape[-2:]) == 1:
        return own
    small, less = (functional.avg_pool2d(x[None], 2, ceil_mode=True)[0] for x in (colours, weight))
    more = less.clamp_min(1e-6)
    scale = (4 * less).clamp_max(1) / more
    below = _pulled(small * scale, less * scale)
    size = (int(weight.shape[-2]), int(weight.shape[-1]))
    wide = functional.interpolate(below[None], size, mode="bilinear", align_corners=False)[0]
    return torch.lerp(wide, own, weight.clamp_max(1).expand_as(own))


def _found(document: LayerDocument, name: str) -> tuple[Layer, int]:
    layer = document.layer(name)
    if layer.image is None:
        raise LayeredError(
            f"layer {name!r}: it has no picture, so nothing of it is hidden. Paint it first, or name another layer"
        )
    return layer, [x.name for x in document].index(name)


def _covered(document: LayerDocument, index: int) -> Tensor:
    """Return where a layer in front of number ``index`` hides all that is behind it, whatever that is."""
    covered = torch.zeros(document.height, document.width, dtype=torch.bool)
    for layer in document.layers[index + 1 :]:
        if (
            layer.image is not None
            and layer.visible
            and layer.opacity == 1
            and layer.blend_mode == "normal"
            and is_exact(layer, *layer.image.shape[:2])  # resampling may round an alpha of 1 down
        ):
            covered |= layer_alpha(layer, document) == 1
    return covered


def _near(own: Tensor) -> Tensor:
    """Return what is as near to the pixels ``own``, bool ``[H, W]``, as half of the longer side of their
    box."""
    sides = [own.any(axis).nonzero()[:, 0] for axis in (1, 0)]
    if not len(sides[0]):
        return own
    longest = max(int(at[-1] - at[0]) + 1 for at in sides)
    return grow(own.float(), (longest + 1) // 2) > 0


def _patched(layer: Layer, hole: Tensor, picture: Tensor, alpha: Tensor) -> Layer:
    """Return a layer on whole pixels with the picture ``[H, W, 3]`` and ``alpha`` ``[H, W]`` in the hole."""
    assert layer.image is not None
    rows, columns = (hole.any(axis).nonzero()[:, 0] for axis in (1, 0))
    box = bounds(layer)
    left, top = min(box[0], int(columns[0])), min(box[1], int(rows[0]))
    right, bottom = max(box[2], int(columns[-1]) + 1), max(box[3], int(rows[-1]) + 1)
    flips = [axis for axis, flip in ((0, layer.flip_v), (1, layer.flip_h)) if flip]
    image = layer.image.new_zeros(bottom - top, right - left, 4)
    own = slice(box[1] - top, box[3] - top), slice(box[0] - left, box[2] - left)
    image[own] = layer.image.flip(flips)
    mask = layer.mask
    at = hole.nonzero()
    there = at[:, 0] - top, at[:, 1] - left
    image[there] = torch.cat([picture[hole], alpha.to(picture)[hole][:, None]], -1)
    if layer.mask is not None:
        mask = layer.mask.new_zeros(bottom - top, right - left)
        mask[own] = layer.mask.flip(flips)
        mask[there] = 1
    return replace(
        layer, image=image, mask=mask, x=left, y=top, width=right - left, height=bottom - top, flip_h=False,
        flip_v=False,
    )  # fmt: skip
