"""Build a picture in stages, one layer after the other: the seed and place of a stage, and the layer it
adds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..canvas.compositing import straight
from ..canvas.placement import Box, bounds, place
from ..canvas.soft_masks import gaussian_blur, grow
from ..document import Layer, LayerDocument
from ..errors import LayeredError, invalid
from ..progress import pause
from .mattes import MATTES

ALPHAS = (*MATTES, "transparent")
"""Sources of a new layer's alpha: those of ``MATTES``, and ``transparent``: the layer is generated alone with
its own alpha, then brought :func:`into_place`."""


DRAFT_STRENGTH = 0.75
"""How far a draft redraws the picture to find a place for something new: enough for a thing to appear, too
little for another landscape. 0..1."""


def draft_steps(steps: int) -> int:
    """Return the sampling steps of a draft: half of a stage's, at least 1."""
    return max(1, steps // 2)


def draft_reach(width: int, height: int) -> int:
    """Return by how much the place that a draft shows is widened on every side, pixels: 1/16 of the longer
    side of the canvas."""
    return max(width, height) // 16


@dataclass(frozen=True, eq=False)
class StagePlan:
    """All that a host needs to make one layer of a document."""

    layer: Layer
    """The layer to be made, with its words; without a picture."""
    seed: int
    """Seed of its noise."""
    behind: LayerDocument
    """The document with only the layers behind it."""
    place: Tensor | None
    """Where it may be painted, ``[H, W]`` in 0..1; None: anywhere on the canvas."""

    @property
    def is_first(self) -> bool:
        """Whether nothing is seen behind it, so that it is made from words alone and is opaque."""
        return self.behind.background is None and not any(
            x.visible and x.image is not None for x in self.behind
        )

    @property
    def finds_place(self) -> bool:
        """Whether a draft has to show first where it goes."""
        return self.place is None and not self.is_first

    @property
    def region(self) -> Tensor:
        """``place``, or the whole canvas, ``[H, W]``."""
        return torch.ones(self.behind.height, self.behind.width) if self.place is None else self.place


def plan_stage(document: LayerDocument, layer: Layer, seed: int, place: Tensor | None = None) -> StagePlan:
    """Plan how one layer is made, anew or on top of the others.

    Args:
        document: the stack. If it has a layer of this name, what lies behind that one is behind the new one.
        layer: the layer with its box or mask, its words and its recipe.
        seed: base seed, 0..2**63-1, from which the layer's own is derived unless its recipe has one.
        place: ``[H, W]`` in 0..1, where it may be painted, in place of its box. A box that is the whole canvas
            means anywhere; a place that is, means all of it.

    Raises:
        LayeredError: its place is off the canvas.
    """
    names = [x.name for x in document]
    count = names.index(layer.name) if layer.name in names else len(names)
    if place is None:
        place = stage_region(layer, document.width, document.height)
        place = None if bool((place >= 1).all()) else place
    return StagePlan(
        replace(layer, image=None),
        stage_seed(seed, layer.name) if layer.recipe.seed is None else layer.recipe.seed,
        replace(document, layers=document.layers[:count]),
        place,
    )


def stage_seed(base: int, name: str) -> int:
    """Return the seed of one stage, 0..2**63-1. It depends on the base seed and the name alone (by SHA-256),
    not on the other stages."""
    digest = hashlib.sha256(f"{base} {name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def changed_region(before: Tensor, after: Tensor, share: float = 0.5) -> Tensor:
    """Return a mask of where a draft differs most from the picture it was made from. It gives a place to an
    object of which only the prompt is known.

    The difference is blurred by a thirty-second of the picture's side and kept where it is at least ``share``
    of its greatest value; of that, the connected part around the greatest value is returned.

    Args:
        before: ``[3, H, W]`` in 0..1.
        after: ``[3, H, W]``, the draft.
        share: threshold, 0..1; a smaller one gives a larger region.

    Returns:
        ``[H, W]`` of 0 and 1; at least one pixel is 1.

    Raises:
        LayeredError: the two pictures are equal.
    """
    difference = gaussian_blur((after - before).abs().amax(0), max(before.shape[-2:]) / 32)
    if not bool(difference.any()):
        raise LayeredError(
            "draft is equal to the picture it was made from, so no place for the layer can be found in it. "
            "Let it change more, or use another prompt"
        )
    mask = ((difference >= share * difference.max()) & (difference > 0)).float()
    seed = (difference == difference.max()).float()
    while True:
        pause()
        wider = grow(seed, 1) * mask
        if torch.equal(wider, seed):
            return seed
        seed = wider


def stage_region(layer: Layer, width: int, height: int) -> Tensor:
    """Return where a stage may paint, ``[height, width]`` in 0..1: the layer's mask, or else its box; its
    picture does not matter.

    Raises:
        LayeredError: that place has no pixel on the canvas.
    """
    shape = torch.ones(layer.height, layer.width) if layer.mask is None else layer.mask.float()
    region = place(shape[..., None], layer, width, height)[..., 0].clamp(0, 1)
    if not bool((region > 0).any()):
        raise invalid(
            f"layer {layer.name!r}: place",
            f"x {layer.x:g}, y {layer.y:g}",
            f"at least one pixel on the canvas of {width}x{height}",
            "Move it onto the canvas",
        )
    return region


def with_stage(layer: Layer, pixels: Tensor) -> Layer:
    """Return the layer with the RGBA result of its stage on the whole canvas, ``[H, W, 4]``, cut to the
    layer's box. The mask is then contained in the alpha."""
    left, top, right, bottom = bounds(layer)
    left, top, right, bottom = (
        max(left, 0),
        max(top, 0),
        min(right, pixels.shape[1]),
        min(bottom, pixels.shape[0]),
    )
    image = pixels[top:bottom, left:right].clone()
    return replace(
        layer,
        image=image,
        mask=None,
        x=left,
        y=top,
        width=right - left,
        height=bottom - top,
        rotation=0.0,
        flip_h=False,
        flip_v=False,
    )


def into_place(pixels: Tensor, region: Tensor) -> Tensor:
    """Fit a layer that was generated alone into the region where a stage may paint: trimmed, scaled as large
    as fits, and centred.

    It is trimmed to the box where alpha is above half of its greatest value, plus a thirty-second of the
    box's longer side for soft edges.

    Args:
        pixels: RGBA ``[H', W', 4]`` in 0..1, straight alpha, of any size.
        region: ``[H, W]`` in 0..1, 1 where the stage may paint; above 0 on at least one pixel.

    Returns:
        RGBA ``[H, W, 4]``, straight alpha; transparent where ``region`` is 0.
    """
    alpha = pixels[..., 3]
    left, top, right, bottom = _box(alpha > alpha.max() / 2)
    around = max(right - left, bottom - top) // 32 + 1
    left, top, right, bottom = (
        max(left - around, 0),
        max(top - around, 0),
        min(right + around, alpha.shape[1]),
        min(bottom + around, alpha.shape[0]),
    )
    trimmed = pixels[top:bottom, left:right].float()
    x, y, end, foot = _box(region > 0)
    scale = min((end - x) / (right - left), (foot - y) / (bottom - top))
    width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    layer = Layer(
        "placed", x=x + (end - x - width) // 2, y=y + (foot - y - height) // 2, width=width, height=height
    )
    multiplied = torch.cat([trimmed[..., :3] * trimmed[..., 3:], trimmed[..., 3:]], -1)
    return straight(
        place(multiplied, layer, region.shape[1], region.shape[0]) * region[..., None].to(multiplied)
    ).clamp(0, 1)


def _box(mask: Tensor) -> Box:
    """Return the smallest box around a mask ``[H, W]``; the whole canvas for an empty mask."""
    rows, columns = (mask.any(d).nonzero()[:, 0].tolist() or [0, mask.shape[1 - d] - 1] for d in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
