"""Holes: the parts of a layer that are not known because layers in front cover them, and what fills them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.compositing import composite, flat
from ..canvas.masks import layer_alpha
from ..canvas.placement import bounds, is_exact
from ..canvas.soft_masks import grow
from ..document import Layer, LayerDocument
from ..errors import LayeredError, invalid
from ..progress import pause
from .edges import spread
from .exact_mixing import LEVELS, mix_exactly, on_grid
from .mattes import difference_matte

_BESIDE = 1
"""How many pixels beside a layer may show some of its colour though it does not cover them."""

_REACH = 8
"""How far from the hole a rim may lie, pixels: what is farther under something transparent is known."""

_UNLIKE = 0.06
"""Least difference of a bottom layer's colour to those around an edge for which it is taken for a rim."""

_SPREAD = 9
"""The square of that difference is also greater than the variance of the colours near by this many times: what
has texture or an edge of its own stays."""

_AROUND = 4
"""Half of how far away these colours are, pixels."""


def hole_of(document: LayerDocument, name: str) -> Tensor:
    """Return where a layer is not known: where it is transparent and another in front of it hides it
    wholly, bool ``[H, W]``. What is put there changes no pixel of the composite.

    Of the backmost layer that is all that is covered. Of another one it is what lies near its own pixels,
    by up to half of the longer side of their box: no mask says how far it goes on behind others.

    Raises:
        LayeredError: there is no such layer, or it has no picture.
    """
    layer, index = _found(document, name)
    own = layer_alpha(replace(layer, opacity=1.0), document)
    hole = _covered(document, index) & (own < 1)
    return hole if index == 0 else hole & _near(own > 0)


def fill_hole(document: LayerDocument, name: str, picture: Tensor) -> LayerDocument:
    """Return the document with a picture in the hole of one layer; the composite by the rules ``photoshop``
    stays equal to the bit, for an 8-bit picture also after the layers have been rounded to 8 bits.

    The backmost layer becomes opaque there. At soft edges directly over it, and one pixel beside them, it
    becomes smooth where it had a rim: it gets the colours around, spread over the edge, and the layer in
    front gets what it loses (:func:`rim_of`). All other pixels of all layers stay as they are.

    Of another layer, what ``picture`` shows differently from the layers up to this one is taken for its
    hidden part (:func:`~.mattes.difference_matte`).

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
    filled = document.with_layer(_patched(layer, hole, picture.to(layer.image), alpha))
    return filled if index else without_rim(filled, hole)


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


class _Rim(NamedTuple):
    """Where soft edges lie directly over an opaque bottom layer."""

    where: Tensor
    """Bool ``[H, W]``: pixels whose colours may be shared out anew between the two."""
    top: Tensor
    """Index of the layer in front, int64 ``[H, W]``."""
    alpha: Tensor
    """Its alpha ``[H, W]``, below 1."""


def rim_of(document: LayerDocument) -> Tensor:
    """Return where soft edges of layers lie directly over the bottom one, and the pixels of it that are next
    to an edge, bool ``[H, W]``: what is seen of it there may still have colours of the layers in front."""
    return _rim(document).where


def _rim(document: LayerDocument) -> _Rim:
    """Find the pixels where one layer is partly transparent and only the opaque bottom one is behind it, and
    those of the bottom layer alone that are within ``_BESIDE`` pixels of a layer in front."""
    size = document.height, document.width
    count = torch.zeros(size, dtype=torch.int64)
    top, alpha = torch.zeros_like(count), torch.zeros(size)
    bottom = document.layers[0]
    fits = layer_alpha(bottom, document) == 1 if _is_plain(bottom) else torch.zeros(size, dtype=torch.bool)
    for i, layer in enumerate(document.layers[1:], 1):
        if layer.image is None or not layer.visible or layer.opacity == 0:
            continue
        own = layer_alpha(layer, document)
        there = own > 0
        count += there
        top[there], alpha[there] = i, own[there]
        if not _is_plain(layer):
            fits &= grow(own, _BESIDE) == 0
    near = grow(top.float(), _BESIDE).long()
    where = fits & (alpha < 1) & (near > 0) & (count <= 1)
    return _Rim(where, torch.where(count > 0, top, near), alpha)


def _is_plain(layer: Layer) -> bool:
    """Return whether a layer's own pixels are what is laid, as they are, on the canvas."""
    return (
        layer.image is not None
        and layer.image.dtype == torch.float32
        and layer.visible
        and layer.opacity == 1
        and layer.blend_mode == "normal"
        and is_exact(layer, *layer.image.shape[:2])
        and (layer.mask is None or layer.mask.shape == layer.image.shape[:2])
    )


def without_rim(document: LayerDocument, hole: Tensor | None = None) -> LayerDocument:
    """Return the document with the bottom layer smooth across soft edges; what it loses there the layer in
    front gets, so that the composite stays equal to the bit.

    At the edges the bottom layer was estimated, or shows what could not be told apart. Colours are spread
    there from the filled hole and from outside. Where what is there is unlike them by more than the colours
    near by differ, they are taken. Alpha rises to where the pixel lies between them and the layer's colour,
    at least to the level at which the layer in front can make up for them.

    Args:
        document: the layers.
        hole: where the bottom layer was filled, bool ``[H, W]``. None: wherever others hide it.
    """
    hole = _covered(document, 0) if hole is None else hole
    rim, old = _rim(document), composite(document)
    if not bool(rim.where.any()) or old.dtype != torch.float32:
        return document
    below = composite(replace(document, layers=document.layers[:1]))[..., :3]
    smooth = on_grid(_spread_over(below, rim.where).clamp(0, 1))
    sure = ~hole & ~rim.where
    _, noise = spread(below, sure, sure, rim.where, _AROUND)
    where = (
        rim.where
        & (grow(hole.float(), _REACH) > 0)
        & ((smooth - below).square().sum(-1) > _UNLIKE**2 + _SPREAD * noise)
    )
    seen, back = old[..., :3][where], smooth[where]
    # How far the pixel lies from the colour behind towards the nearest one of the layer.
    way = _spread_over(old[..., :3], ~hole)[where] - back
    along = ((seen - back) * way).sum(1) / way.square().sum(1).clamp_min(1e-4)
    # Colours in 0..1 can make up for the one behind from this alpha on.
    least = torch.where(seen > back, (seen - back) / (1 - back), (back - seen) / back).nan_to_num(0, 0, 0)
    alpha = torch.stack([rim.alpha[where], along, least.amax(1)]).amax(0)
    alpha = (alpha * LEVELS - 1e-3).ceil().clamp(1, LEVELS) / LEVELS
    front, exact = seen.clone(), alpha == 1
    mixed = ~exact
    front[mixed], back[mixed], exact[mixed] = mix_exactly(
        seen[mixed], seen[mixed], back[mixed], alpha[mixed], keep_back=True
    )
    where[where.clone()] = exact
    alpha, front, back = (x[exact] for x in (alpha, front, back))
    found = _shared_out(document, rim.top, where, alpha, front, back)
    wrong = (composite(found) != old).any(-1)
    if bool(wrong.any()):  # a processor that rounds in yet another way
        right = ~wrong[where]
        found = _shared_out(document, rim.top, where & ~wrong, alpha[right], front[right], back[right])
    return found


def _spread_over(colours: Tensor, hole: Tensor) -> Tensor:
    """Return :func:`smooth_fill` of colours ``[H, W, 3]``."""
    return smooth_fill(colours.movedim(-1, 0), hole).movedim(0, -1)


def _shared_out(
    document: LayerDocument, top: Tensor, where: Tensor, alpha: Tensor, front: Tensor, back: Tensor
) -> LayerDocument:
    """Return the document with ``alpha`` ``[N]`` and colours ``front`` ``[N, 3]`` of the layers ``top``
    ``[H, W]``, and ``back`` of the bottom one, at the pixels ``where``."""
    size = document.height, document.width
    fore, aft, share = (torch.zeros(*size, 3), torch.zeros(*size, 3), torch.zeros(size))
    fore[where], aft[where], share[where] = front, back, alpha
    for i in torch.unique(top[where]).tolist():
        own = where & (top == i)
        document = document.with_layer(_patched(document.layers[i], own, fore, share))
    if bool(where.any()):
        document = document.with_layer(_patched(document.layers[0], where, aft, torch.ones(size)))
    return document


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
