"""The part of a layer that nearer ones cover: where it may be, how it is painted, and how it joins the layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from layered_core.canvas.compositing import composite
from layered_core.canvas.soft_masks import grow
from layered_core.document import Layer, LayerDocument
from layered_core.painting.mattes import difference_matte, uncovered


@dataclass(frozen=True, eq=False)
class Hidden:
    """The hidden part of a layer."""

    mask: Tensor
    """Where it may be, bool ``[H, W]``."""
    covered: float
    """Its share of the layer, 0..1."""
    colours: Tensor | None = None
    """Its colours, without what lies behind it, ``[3, H, W]`` in 0..1; None if it was not painted."""
    alpha: Tensor | None = None
    """Where the painted part is the thing, ``[H, W]`` in 0..1."""

    def painted(self, colours: Tensor, behind: Tensor) -> Hidden:
        """Return this part with what was painted, ``[3, H, W]``; it is the thing where it differs from what lies
        ``behind`` it, ``[3, H, W]``."""
        alpha = difference_matte(behind, colours) * self.mask
        own = uncovered(behind, colours, alpha)[..., :3].permute(2, 0, 1)
        return replace(self, colours=own, alpha=alpha)


def hidden_part(mask: Tensor, nearer: Tensor, band: int = 0) -> Hidden:
    """Return where nearer things cover a thing: inside its mask, and inside the convex hull of what is seen of it.

    Args:
        mask: the thing, ``[H, W]`` in 0..1, with or without its hidden part.
        nearer: what is in front of it, ``[H, W]`` in 0..1.
        band: pixels by which the part may reach beyond; they do not count for its share. Neutral: 0.
    """
    front = nearer >= 0.5
    seen = (mask >= 0.5) & ~front
    part = front & ((mask >= 0.5) | hull(seen))
    both = int(part.sum()) + int(seen.sum())
    wider = front & (grow(part.float(), band) > 0)
    return Hidden(wider, int(part.sum()) / both if both else 0.0)


def hull(mask: Tensor) -> Tensor:
    """Return the convex hull of the pixels of a mask, bool ``[H, W]``; those are in it."""
    height, width = mask.shape
    points = [(int(x), int(y)) for y, x in mask.nonzero().tolist()]
    if len(points) < 3:
        return mask.clone()
    points.sort()
    corners = _half(points)[:-1] + _half(points[::-1])[:-1]
    if len(corners) < 3:
        return mask.clone()
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).polygon(corners, fill=255)
    return (torch.from_numpy(np.array(image)) > 0) | mask


def _half(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return one side of the convex hull of sorted points (Andrew's monotone chain)."""
    side: list[tuple[int, int]] = []
    for p in points:
        while len(side) > 1 and _turn(side[-2], side[-1], p) <= 0:
            side.pop()
        side.append(p)
    return side


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def with_hidden(document: LayerDocument, hidden: Mapping[int, Hidden]) -> LayerDocument:
    """Return a document whose layers have their hidden parts, and whose composite is the same to the bit: a pixel is
    added only where a layer in front of it is opaque and the layer itself has none.

    Args:
        document: layers that are not turned, scaled or mirrored.
        hidden: painted parts by the layers' indices.
    """
    layers = list(document.layers)
    opaque = torch.zeros(document.height, document.width, dtype=torch.bool)
    for index in range(len(layers) - 1, -1, -1):
        shown = composite(replace(document, layers=(layers[index],), background=None))
        part = hidden.get(index)
        if part is not None and part.colours is not None and part.alpha is not None:
            added = opaque & (shown[..., 3] == 0) & (part.alpha > 0)
            colours = torch.cat([part.colours, part.alpha[None]]).permute(1, 2, 0)
            pixels = torch.where(added[..., None], colours, _own(layers[index], document))
            layers[index] = _cropped(layers[index], pixels)
        opaque |= shown[..., 3] == 1
    return replace(document, layers=tuple(layers))


def _own(layer: Layer, document: LayerDocument) -> Tensor:
    """Return a layer's own pixels on the canvas, RGBA ``[H, W, 4]``, as they are."""
    assert layer.image is not None
    out = torch.zeros(document.height, document.width, 4, dtype=layer.image.dtype)
    x, y = int(layer.x), int(layer.y)
    out[y : y + layer.height, x : x + layer.width] = layer.image
    return out


def _cropped(layer: Layer, pixels: Tensor) -> Layer:
    """Return the layer with pixels of the canvas's size, cut to its alpha."""
    rows, columns = (pixels[..., 3].any(d).nonzero()[:, 0] for d in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    image = pixels[top:bottom, left:right].clone()
    return replace(layer, image=image, x=left, y=top, width=right - left, height=bottom - top)
