"""Draw the layers and groups of a file as its program does: isolated and pass-through groups, clipping, and blending
that a document lacks. By Photoshop's rules, all in sRGB.

Everything drawn is a step ``R = (1 - share) B + share X`` in premultiplied colours: B the backdrop, X what the layer
gives where it shows wholly. For a layer of colour s, ``X = (1 - alpha) s + alpha blend(b, s)`` with alpha 1 (PDF
reference 1.7, 7.2.8); for a pass-through group, X is the backdrop with the group's layers drawn on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..progress import pause
from .file_layers import FileGroup, FileLayer, Item
from .psd_masks import Rectangle, product
from .special_blending import blend

SAME = 1 / 255 + 1e-4
"""Greatest difference, in any pixel and channel, of two pictures that count as the same."""


@dataclass
class Canvas:
    """A part of the canvas while layers are drawn on it."""

    box: Rectangle
    """Where it lies on the canvas."""
    colour: Tensor
    """Premultiplied colour, ``[3, h, w]``."""
    alpha: Tensor
    """``[h, w]``."""
    cover: Tensor
    """``[h, w]``, alpha of what was drawn alone, without the backdrop at the start."""

    @classmethod
    def empty(cls, box: Rectangle) -> Canvas:
        """Return a transparent canvas."""
        height, width = box[3], box[2]
        return cls(box, torch.zeros(3, height, width), torch.zeros(height, width), torch.zeros(height, width))

    def copy(self) -> Canvas:
        """Return a copy that counts what is here as its backdrop."""
        return Canvas(self.box, self.colour.clone(), self.alpha.clone(), torch.zeros_like(self.cover))

    def cut(self, box: Rectangle) -> Canvas:
        """Return the part in ``box``, which must lie within; drawing on it draws on this canvas."""
        x, y = box[0] - self.box[0], box[1] - self.box[1]
        area = (..., slice(y, y + box[3]), slice(x, x + box[2]))
        return Canvas(box, self.colour[area], self.alpha[area], self.cover[area])

    def straight(self) -> Tensor:
        """Return the straight colour, ``[3, h, w]``; 0 where alpha is 0."""
        return torch.where(self.alpha > 0, self.colour / self.alpha.clamp_min(1e-8), 0.0).clamp_(0, 1)

    def pixels(self) -> Tensor:
        """Return RGBA ``[h, w, 4]``, straight alpha."""
        return torch.cat([self.straight(), self.alpha[None].clamp(0, 1)]).movedim(0, -1).contiguous()

    def mix(self, colour: Tensor, alpha: Tensor | float, share: Tensor, cover: Tensor | float = 1.0) -> None:
        """Move towards a premultiplied colour ``[3, h, w]`` and alpha ``[h, w]`` by ``share``, ``[h, w]``."""
        self.colour.lerp_(colour, share.expand_as(self.colour))
        for own, other in ((self.alpha, alpha), (self.cover, cover)):
            own.lerp_(torch.as_tensor(other, dtype=own.dtype).expand_as(own), share)

    def differs(self, other: Canvas, edges: bool = True) -> bool:
        """Return whether some pixel differs by more than :data:`SAME` from ``other``, of the same box; without
        ``edges``, whether some pixel and all its neighbours do."""
        apart = (
            torch.maximum((self.colour - other.colour).abs().amax(0), (self.alpha - other.alpha).abs()) > SAME
        )
        return bool(apart.any()) if edges else bool((-max_pool2d(-apart.float()[None], 3, 1, 1)).any())


def runs(items: Sequence[Item]) -> Iterator[tuple[Item, list[Item]]]:
    """Yield the items back to front, each with those that are clipped to it."""
    base: Item | None = None
    clipped: list[Item] = []
    for item in items:
        if item.clipped == "base" and base is not None:
            clipped.append(item)
            continue
        if base is not None:
            yield base, clipped
        base, clipped = item, []
    if base is not None:
        yield base, clipped


def meet(a: Rectangle, b: Rectangle) -> Rectangle:
    """Return the rectangle that two share; it is empty, with sides of 0, if they share none."""
    left, top = max(a[0], b[0]), max(a[1], b[1])
    right, bottom = min(a[0] + a[2], b[0] + b[2]), min(a[1] + a[3], b[1] + b[3])
    return (left, top, right - left, bottom - top) if right > left and bottom > top else (left, top, 0, 0)


def box_of(item: Item) -> Rectangle:
    """Return the box of a layer, or that of all visible layers of a group."""
    if isinstance(item, FileLayer):
        return item.left, item.top, item.pixels.shape[1], item.pixels.shape[0]
    boxes = [box for inner in item.items if is_shown(inner) and (box := box_of(inner))[2] and box[3]]
    if not boxes:
        return 0, 0, 0, 0
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    return left, top, max(b[0] + b[2] for b in boxes) - left, max(b[1] + b[3] for b in boxes) - top


def is_shown(item: Item) -> bool:
    """Return whether an item is visible, apart from the groups around it."""
    return item.visible and item.opacity > 0


def draw(items: Sequence[Item], canvas: Canvas) -> None:
    """Draw items, back to front, on ``canvas``."""
    for base, clipped in runs(items):
        draw_run(base, clipped, canvas)


def draw_run(base: Item, clipped: Sequence[Item], canvas: Canvas) -> None:
    """Draw an item and those that are clipped to it: they are composed on it first, and the result is laid as the
    item is."""
    pause()
    box = meet(box_of(base), canvas.box)
    if not (is_shown(base) and box[2]):
        return
    part = canvas.cut(box)
    limits = mask_of(base, box)
    if isinstance(base, FileGroup) and base.passthrough and not clipped:
        inner = part.copy()
        draw(base.items, inner)
        share = torch.full_like(part.alpha, base.opacity) if limits is None else limits * base.opacity
        part.mix(inner.colour, inner.alpha, share, inner.cover)
        return
    colour, alpha = source(base, clipped, box, part)
    share = (alpha if limits is None else alpha * limits) * base.opacity
    lay(part, base, colour, share, alpha)


def lay(part: Canvas, item: Item, colour: Tensor, share: Tensor, alpha: Tensor) -> None:
    """Lay an item of straight colour ``[3, h, w]`` on a part of a canvas; ``share`` is its alpha with mask and
    opacity, ``alpha`` without."""
    special = item.special
    if special is None and item.blend_mode == "normal" and item.clipped != "below":
        part.mix(colour, 1.0, share)
        return
    backdrop, behind = part.straight(), part.alpha.clone()
    if special is not None:
        fill, shape = special.filled(alpha)
        whole, opacity = special.over(backdrop, behind, colour, fill)
        share = torch.where(alpha > 0, share / alpha.clamp_min(1e-8), 0.0) * shape
        part.mix(whole, opacity, share * special.share(backdrop, behind))
        return
    blended = blend(item.blend_mode, backdrop, colour)
    if item.clipped == "below":
        part.mix(behind * blended, behind, share)
    else:
        part.mix(behind * blended + (1 - behind) * colour, 1.0, share)


def source(
    base: Item, clipped: Sequence[Item], box: Rectangle, below: Canvas | None = None
) -> tuple[Tensor, Tensor]:
    """Return the straight colour ``[3, h, w]`` and alpha ``[h, w]`` of an item in ``box``, without its mask and
    opacity, with the items that are clipped to it composed on it as if it were opaque. Those of a pass-through group
    depend on what lies ``below``, in the same box."""
    if isinstance(base, FileLayer):
        x, y = box[0] - base.left, box[1] - base.top
        pixels = base.pixels[y : y + box[3], x : x + box[2]].movedim(-1, 0)
        colour, alpha = pixels[:3], pixels[3]
    else:
        before = below if base.passthrough else None
        inner = before.copy() if before is not None else Canvas.empty(box)
        draw(base.items, inner)
        colour, alpha = (inner.straight(), inner.alpha) if before is None else taken_off(before, inner)
    if clipped:
        ground = Canvas(box, colour.clone(), torch.ones_like(alpha), torch.zeros_like(alpha))
        for item in clipped:
            draw_run(item, (), ground)
        colour = ground.straight()
    return colour, alpha


def mask_of(item: Item, box: Rectangle) -> Tensor | None:
    """Return the item's own masks in ``box``, ``[h, w]``; None if it has none. For a layer, ``box`` must lie within
    its own."""
    if isinstance(item, FileGroup):
        return product(item.masks, box)
    if item.mask is None:
        return None
    x, y = box[0] - item.left, box[1] - item.top
    return item.mask[y : y + box[3], x : x + box[2]]


def taken_off(before: Canvas, after: Canvas) -> tuple[Tensor, Tensor]:
    """Return straight colour ``[3, h, w]`` and alpha ``[h, w]`` that, laid on ``before`` with the mode normal, give
    ``after``, which was drawn on a copy of it: ``C = (R - (1 - A) B) / A``. Where no colour in 0..1 does, the
    nearest."""
    clear = 1 - before.alpha
    alpha = torch.where(
        clear > 1e-3, (after.alpha - before.alpha) / clear.clamp_min(1e-3), after.cover
    ).clamp(0, 1)
    colour = (after.colour - (1 - alpha) * before.colour) / alpha.clamp_min(1e-6)
    return torch.where(alpha > 0, colour, 0.0).clamp(0, 1), alpha
