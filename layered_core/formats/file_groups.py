"""Turn the groups of a file into a plain list of layers.

A document has no groups. A group is taken apart where that leaves the picture as it is: its opacity and masks go to
its layers. Otherwise it becomes one layer, which keeps the group's title, opacity, blend mode and masks. Whether the
picture stays the same follows from the structure, or else from drawing it both ways over what lies below. Layers that
are clipped to a translucent one, and blending that a document lacks, are treated alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import invalid
from .file_layers import FileGroup, FileLayer, Item
from .group_canvas import Canvas, box_of, draw_run, is_shown, mask_of, meet, runs, source, taken_off
from .limits import Budget
from .psd_masks import PixelMask, Rectangle, is_translucent, product

GROUPS = ("auto", "apart", "merged")
"""What becomes of groups: ``auto`` (taken apart where the picture stays the same, else merged), ``apart`` or
``merged`` (every group in no other group becomes one layer)."""


def check_groups(groups: str) -> None:
    """Raise :class:`LayeredError` unless ``groups`` is one of :data:`GROUPS`."""
    if groups not in GROUPS:
        raise invalid("groups", groups, ", ".join(GROUPS))


def flatten_groups(
    items: Sequence[Item], size: tuple[int, int], groups: str, budget: Budget, warnings: list[str]
) -> list[FileLayer]:
    """Return the layers that give the picture of ``items``, back to front.

    Args:
        items: layers and groups of a file, back to front; they are changed.
        size: canvas width and height; merged layers are cut at its edges.
        groups: one of :data:`GROUPS`.
        budget: the memory for what is merged is taken from it.
        warnings: a line is added for everything that is merged, lost or not quite right.

    Raises:
        LayeredError: there is not enough memory for merging.
    """
    flattening = _Flattening((0, 0, *size), groups, budget, warnings)
    below = flattening.ground()
    return flattening.stack(items, below, isolated=True).layers


@dataclass
class _Flat:
    """Layers that items have become."""

    layers: list[FileLayer]
    exact: bool = True
    """Whether they give the same picture."""


class _Below:
    """What lies below an item, drawn when it is asked for."""

    def __init__(self, start: Callable[[], Canvas]) -> None:
        self._start = start
        self._canvas: Canvas | None = None
        self._pending: list[tuple[Item, Sequence[Item]]] = []

    def add(self, base: Item, clipped: Sequence[Item]) -> None:
        """Put an item with those that are clipped to it on top."""
        self._pending.append((base, clipped))

    def canvas(self) -> Canvas:
        """Return the canvas; it must not be changed."""
        canvas = self._canvas = self._canvas or self._start()
        for base, clipped in self._pending:
            draw_run(base, clipped, canvas)
        self._pending.clear()
        return canvas


class _Flattening:
    def __init__(self, box: Rectangle, groups: str, budget: Budget, warnings: list[str]) -> None:
        self.box = box
        self.groups = groups
        self.budget = budget
        self.warnings = warnings
        self.hidden = 0
        """Number of hidden groups around what is treated; nothing in them changes the picture."""

    def ground(self, start: Callable[[], Canvas] | None = None) -> _Below:
        """Return an empty canvas, or another to begin with."""

        def make() -> Canvas:
            self.budget.fits("drawing the groups", self.box[2], self.box[3], 15)
            return start() if start else Canvas.empty(self.box)

        return _Below(make)

    def stack(self, items: Sequence[Item], below: _Below, isolated: bool = False) -> _Flat:
        """Return the layers of a group's items over ``below``, to which the items are added. If some items have no
        equal layers, all up to them become one, provided that the group is isolated."""
        out = _Flat([])
        for base, clipped in runs(items):
            flat = self.run(base, clipped, below)
            below.add(base, clipped)
            if flat.exact or self.hidden:
                out.layers += flat.layers
            elif isolated and self.groups != "apart":
                out.layers = self.all_below([*out.layers, *flat.layers], base, below)
            else:
                out.layers += flat.layers
                out.exact = isolated
                if isolated:
                    self.warnings.append(
                        f"{_kind(base)} {base.title!r} acts on what lies below it, which is translucent and shines "
                        f"through it"
                    )
        return out

    def all_below(self, layers: Sequence[FileLayer], top: Item, below: _Below) -> list[FileLayer]:
        """Return all layers up to ``top``, which has no equal layer, as one, named after the lowest."""
        shown = [layer for layer in layers if _shows(layer)]
        box = _around(map(box_of, shown), self.box)
        self.budget.take(f"the layers up to {top.title!r}", max(box[2], 1), max(box[3], 1))
        pixels = below.canvas().cut(box).pixels()
        self.warnings.append(
            f"{_kind(top)} {top.title!r} is merged with all layers below it: it acts on them, and they are translucent"
        )
        hidden = [layer for layer in layers if not is_shown(layer)]
        return [FileLayer(shown[0].title, box[0], box[1], pixels), *_places(layers), *hidden]

    def run(self, base: Item, clipped: Sequence[Item], below: _Below) -> _Flat:
        """Return the layers of an item and of those that are clipped to it."""
        if not clipped:
            return self.item(base, below)
        flat = self.item(base, below)
        box = meet(box_of(base), self.box)

        def ground() -> Canvas:
            colour, _ = source(base, (), box, below.canvas().cut(box))
            canvas = Canvas.empty(self.box)
            canvas.alpha.fill_(1)
            canvas.cut(box).colour.copy_(colour)
            return canvas

        over = self.ground(ground)
        on_top: list[FileLayer] = []
        for item in clipped:
            on_top += self.item(item, over).layers
            over.add(item, ())
        on_top, why = self.clip(on_top, base, box, below)
        layers = [*flat.layers, *on_top]
        if not why or self.same(base, clipped, layers, below):
            return replace(flat, layers=layers)
        where = f"{_kind(base)} {base.title!r}"
        if self.groups == "apart":
            self.warnings.append(
                f"{where} is kept apart from the layers clipped to it, which changes the picture: {why}"
            )
            return replace(flat, layers=layers)
        self.warnings.append(f"{where} is merged with the layers clipped to it: {why}")
        return self.merged(base, clipped, below, layers)

    def clip(
        self, layers: Sequence[FileLayer], base: Item, box: Rectangle, below: _Below
    ) -> tuple[list[FileLayer], str]:
        """Return layers cut by the alpha of what they are clipped to (a group lies in ``box``), and why they may then
        look different; empty if they do not, but for the edges of ``base``."""
        before = below.canvas().cut(box) if isinstance(base, FileGroup) else None
        box = box if isinstance(base, FileGroup) else box_of(base)
        alpha, limits = source(base, (), box, before)[1], mask_of(base, box)
        shape = PixelMask(box[0], box[1], alpha if limits is None else alpha * limits, 0.0)
        out, translucent = [], False
        for layer in layers:
            own = box_of(layer)
            cut = None
            if own[2] and own[3]:
                self.budget.take(f"the clipping of layer {layer.title!r}", own[2], own[3], 1)
                cut = shape.over(own)
            opacity, visible = layer.opacity * base.opacity, layer.visible and base.visible
            made = replace(layer, mask=_times(layer.mask, cut), opacity=opacity, visible=visible, clipped="")
            if cut is not None and _shows(made):
                seen = layer.pixels[..., 3] > 0
                translucent |= is_translucent(cut, seen) or (base.opacity < 1 and bool((cut[seen] > 0).any()))
            out.append(made)
        if any(_shows(layer) for layer in out) and (base.blend_mode != "normal" or base.special is not None):
            return out, f"its blend mode {base.blend_mode} acts on them together"
        return out, "it is translucent" if translucent else ""

    def item(self, item: Item, below: _Below) -> _Flat:
        """Return the layers of an item, without those that are clipped to it."""
        if item.clipped == "below":
            return self.cut_to_below(self.item(replace(item, clipped=""), below), below)
        if isinstance(item, FileGroup):
            return self.group(item, below)
        return self.special(item, below) if item.special is not None else _Flat([item])

    def cut_to_below(self, flat: _Flat, below: _Below) -> _Flat:
        """Return layers cut by the alpha of all that lies below them."""
        out, exact = [], flat.exact
        for layer in flat.layers:
            own = box_of(layer)
            box = meet(own, self.box)
            if box[2]:
                self.budget.take(f"the clipping of layer {layer.title!r}", own[2], own[3], 1)
                cut = PixelMask(box[0], box[1], below.canvas().cut(box).alpha.clone(), 0.0).over(own)
                exact &= not (_shows(layer) and is_translucent(cut, layer.pixels[..., 3] > 0))
                layer = replace(layer, mask=_times(layer.mask, cut))
            out.append(layer)
        return _Flat(out, exact)

    def special(self, layer: FileLayer, below: _Below) -> _Flat:
        """Return a layer that is blended as a document's layers cannot be, as one that looks the same over what lies
        below it now."""
        special, box = layer.special, meet(box_of(layer), self.box)
        assert special is not None
        plain = replace(layer, special=None, opacity=layer.opacity * special.fill)
        if not box[2]:
            return _Flat([plain])
        before = below.canvas().cut(box)
        after = before.copy()
        draw_run(replace(layer, visible=True, opacity=1.0), (), after)
        for made, how in _plain(layer, before, after, box):
            drawn = before.copy()
            draw_run(replace(made, visible=True, opacity=1.0), (), drawn)
            if not drawn.differs(after):
                if how:
                    self.warnings.append(f"layer {layer.title!r}: {special.name} is {how}")
                return _Flat([made])
        return _Flat([plain], exact=not _shows(layer))

    def group(self, group: FileGroup, below: _Below) -> _Flat:
        """Return the layers of a group: its own, or one."""
        if group.merge or self.groups == "merged":
            if group.merge:
                self.warnings.append(f"group {group.title!r} is merged into one layer to make room")
            return self.merged(group, (), below, [leaf for leaf, _ in _leaves(group, True)])
        inner = self.ground((lambda: below.canvas().copy()) if group.passthrough else None)
        self.hidden += not is_shown(group)
        flat = self.stack(group.items, inner, isolated=not group.passthrough)
        self.hidden -= not is_shown(group)
        if not flat.exact:
            return _Flat(self.apart(group, flat.layers), exact=False)
        why, layers = self.taken_apart(group, flat.layers, below)
        if not why:
            return _Flat(layers)
        if self.groups == "apart":
            self.warnings.append(f"group {group.title!r} is taken apart, which changes the picture: {why}")
            return _Flat(layers)
        self.warnings.append(f"group {group.title!r} is merged into one layer: {why}")
        return self.merged(group, (), below, flat.layers)

    def taken_apart(
        self, group: FileGroup, layers: Sequence[FileLayer], below: _Below
    ) -> tuple[str, list[FileLayer]]:
        """Return the layers of a group taken apart, and why the picture is then another; empty if it is the same."""
        shown = [layer for layer in layers if _shows(layer)]
        whole = group.opacity == 1 and not group.masks and group.special is None
        modes = [layer.blend_mode for layer in shown if layer.blend_mode != "normal"]
        apart = self.apart(group, layers)
        if self.hidden or not is_shown(group) or not shown:
            return "", apart
        if group.passthrough and whole:
            return "", apart
        if group.special is None and not self.overlap(shown):
            if not group.passthrough:
                for layer in apart:
                    layer.blend_mode = group.blend_mode
            return "", apart
        if whole and group.blend_mode == "normal" and not modes:
            return "", apart
        if not group.passthrough:
            self.draw_once(group)
        if group.special is None and self.same(group, (), apart, below):
            return "", apart
        if not group.passthrough and (group.blend_mode != "normal" or group.special is not None):
            return f"its blend mode {group.blend_mode} acts on its layers together", apart
        if group.opacity < 1:
            return "its opacity acts on its layers together", apart
        if group.masks and not modes:
            return "its mask acts on its layers together", apart
        return f"its layers of the mode {modes[0]} act inside it only", apart

    def draw_once(self, group: FileGroup) -> None:
        """Put one layer in the place of what is seen in an isolated group, so that its layers are not drawn again with
        the groups around it."""
        box = meet(box_of(group), self.box)
        hidden = [replace(leaf, visible=False) for leaf, shown in _leaves(group, True) if not shown]
        self.budget.fits(f"drawing the group {group.title!r}", max(box[2], 1), max(box[3], 1))
        colour, alpha = source(group, (), box)
        pixels = torch.cat([colour, alpha[None]]).movedim(0, -1).contiguous()
        group.items = [FileLayer(group.title, box[0], box[1], pixels), *hidden]

    def apart(self, group: FileGroup, layers: Sequence[FileLayer]) -> list[FileLayer]:
        """Return copies of the layers of a group with the group's opacity, masks and visibility."""
        out = []
        for layer in layers:
            around = None
            if group.masks and layer.pixels.numel():
                box = box_of(layer)
                self.budget.take(f"the mask of layer {layer.title!r}", box[2], box[3], 1)
                around = product(group.masks, box)
            opacity, visible = layer.opacity * group.opacity, layer.visible and group.visible
            out.append(replace(layer, mask=_times(layer.mask, around), opacity=opacity, visible=visible))
        return out

    def overlap(self, layers: Sequence[FileLayer]) -> bool:
        """Return whether two of the layers have visible pixels at the same place of the canvas."""
        boxes = [meet(box_of(layer), self.box) for layer in layers]
        if not any(meet(a, b)[2] for i, a in enumerate(boxes) for b in boxes[:i]):
            return False
        around = _around(boxes, self.box)
        taken = torch.zeros(around[3], around[2], dtype=torch.bool)
        for layer, box in zip(layers, boxes, strict=True):
            if not box[2]:
                continue
            alpha = source(layer, (), box)[1]
            limits = mask_of(layer, box)
            seen = alpha > 0 if limits is None else (alpha > 0) & (limits > 0)
            x, y = box[0] - around[0], box[1] - around[1]
            part = taken[y : y + box[3], x : x + box[2]]
            if bool((part & seen).any()):
                return True
            part |= seen
        return False

    def same(self, base: Item, clipped: Sequence[Item], layers: Sequence[FileLayer], below: _Below) -> bool:
        """Return whether layers look as the items do that they are made of, over ``below``."""
        if self.hidden:
            return True
        box = _around((meet(box_of(item), self.box) for item in (base, *clipped)), self.box)
        if not box[2]:
            return True
        before = below.canvas().cut(box)
        wanted, got = before.copy(), before.copy()
        draw_run(base, clipped, wanted)
        for layer in layers:
            draw_run(layer, (), got)
        return not got.differs(wanted)

    def merged(
        self, base: Item, clipped: Sequence[Item], below: _Below, layers: Sequence[FileLayer]
    ) -> _Flat:
        """Return one layer for an item and those that are clipped to it. It has the item's title, opacity, blend
        mode, masks and visibility. Layers without a picture stay beside it."""
        box = meet(box_of(base), self.box)
        self.budget.take(f"the merged layer {base.title!r}", max(box[2], 1), max(box[3], 1))
        self.tell_of_lost(base, clipped)
        before = below.canvas().cut(box) if isinstance(base, FileGroup) and base.passthrough else None
        colour, alpha = source(base, clipped, box, before)
        private = base.private if isinstance(base, FileLayer) else None
        layer = FileLayer(
            base.title, box[0], box[1], torch.cat([colour, alpha[None]]).movedim(0, -1).contiguous(),
            mask_of(base, box) if box[2] else None, base.opacity, base.blend_mode, base.visible, private,
            special=base.special,
        )  # fmt: skip
        made = self.special(layer, below) if layer.special else _Flat([layer])
        exact = before is None or self.same(base, clipped, made.layers, below)
        return _Flat([*made.layers, *_places(layers)], made.exact and exact)

    def tell_of_lost(self, base: Item, clipped: Sequence[Item]) -> None:
        """Add a line on the hidden layers of what is merged."""
        leaves = [leaf for item in (base, *clipped) for leaf in _leaves(item, True)]
        lost = sum(not shown for _, shown in leaves)
        if lost:
            self.warnings.append(
                f"{_kind(base)} {base.title!r}: {lost} hidden layer{'s' * (lost > 1)} in it "
                f"{'are' if lost > 1 else 'is'} lost by merging"
            )


def _plain(
    layer: FileLayer, before: Canvas, after: Canvas, box: Rectangle
) -> Iterable[tuple[FileLayer, str]]:
    """Yield layers without special blending that may look the same as ``after``, drawn on ``before``, and what was
    done, in words."""
    special = layer.special
    assert special is not None
    x, y = box[0] - layer.left, box[1] - layer.top
    area = slice(y, y + box[3]), slice(x, x + box[2])
    if special.below:
        shown = torch.zeros(layer.pixels.shape[:2])
        shown[area] = special.share(before.straight(), before.alpha)
        mask = _times(layer.mask, shown)
        if special.mode == layer.blend_mode and special.fill == 1:
            yield replace(layer, special=None, mask=mask), "put into its mask, for what lies below it now"
    fill, shape = special.filled(layer.pixels[..., 3])
    bare = torch.ones(layer.pixels.shape[:2])
    bare[area] = 1 - before.alpha
    if special.mode == layer.blend_mode and special.mode != "hard-mix" and not special.below:
        bare = (bare > 0.5).float()
        colour = layer.pixels[..., :3].movedim(-1, 0)
        mixed = torch.lerp(special.mixed(colour, fill), colour, bare)
        alpha = shape * (1 - bare * (1 - fill))
        pixels = torch.cat([mixed, alpha[None]]).movedim(0, -1)
        yield replace(layer, special=None, pixels=pixels), "mixed into its colours"
    colour, alpha = taken_off(before, after)
    pixels = torch.cat([colour, alpha[None]]).movedim(0, -1).contiguous()
    own = replace(layer, special=None, blend_mode="normal", mask=None, left=box[0], top=box[1], pixels=pixels)
    yield own, "put into its colours, for what lies below it now"


def _places(layers: Sequence[FileLayer]) -> list[FileLayer]:
    """Return the layers without visible pixels that stand for something to be generated."""
    return [
        layer
        for layer in layers
        if is_shown(layer)
        and not bool((layer.pixels[..., 3] > 0).any())
        and (layer.private or layer.mask is not None)
    ]


def _leaves(item: Item, shown: bool) -> Iterable[tuple[FileLayer, bool]]:
    """Yield the layers of an item, and whether each is visible if the item is."""
    if isinstance(item, FileLayer):
        yield item, shown
    else:
        for inner in item.items:
            yield from _leaves(inner, shown and is_shown(inner))


def _shows(layer: FileLayer) -> bool:
    return is_shown(layer) and bool((layer.pixels[..., 3] > 0).any())


def _around(boxes: Iterable[Rectangle], within: Rectangle) -> Rectangle:
    """Return the smallest box around the parts of boxes that lie ``within`` another."""
    parts = [part for box in boxes if (part := meet(box, within))[2]]
    if not parts:
        return within[0], within[1], 0, 0
    left, top = min(p[0] for p in parts), min(p[1] for p in parts)
    return left, top, max(p[0] + p[2] for p in parts) - left, max(p[1] + p[3] for p in parts) - top


def _times(mask: Tensor | None, by: Tensor | None) -> Tensor | None:
    """Return the product of two masks; None is all 1."""
    return by if mask is None else mask if by is None else mask * by


def _kind(item: Item) -> str:
    return "group" if isinstance(item, FileGroup) else "layer"
