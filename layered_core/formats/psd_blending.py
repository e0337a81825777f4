"""Photoshop's advanced blending of a layer or group: fill opacity, blend-if, knockout, restricted channels.

Source: Adobe's "Photoshop File Formats Specification", layer records and additional layer information.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from psd_tools.constants import BlendMode, ColorMode, Tag
from psd_tools.psd.layer_and_mask import LayerBlendingRanges, LayerRecord
from torch import Tensor

from .file_layers import FileGroup, FileLayer, Item
from .group_canvas import box_of, mask_of, source
from .psd_masks import PixelMask
from .psd_names import NAMES
from .psd_records import blend_mode
from .special_blending import NEUTRAL, Range, Special, in_ranges

SIMILAR = {
    BlendMode.DISSOLVE: "normal",
    BlendMode.DARKER_COLOR: "darken",
    BlendMode.LIGHTER_COLOR: "lighten",
}
"""Photoshop modes that a document lacks, and the modes that are the most similar."""

_OWN = {BlendMode.DARKER_COLOR: "darker-color", BlendMode.LIGHTER_COLOR: "lighter-color"}


def fill_opacity(record: LayerRecord) -> float:
    """Return the fill opacity, 0..1."""
    value = record.tagged_blocks.get_data(Tag.BLEND_FILL_OPACITY, 255)
    return value / 255 if isinstance(value, int) else 1.0


def special_of(record: LayerRecord, colours: ColorMode) -> Special | None:
    """Return how the layer or group is blended; None if its mode, opacity and fill opacity as opacity say it."""
    mode = _OWN.get(blend_mode(record)) or NAMES.get(blend_mode(record), "normal")
    below = _ranges(record, 1, colours)
    fill, shapes = 1.0, True
    if mode in NEUTRAL:
        fill = fill_opacity(record)
        shapes = bool(record.tagged_blocks.get_data(Tag.TRANSPARENCY_SHAPES_LAYER, 1))
    if fill == 1 and shapes and not below and blend_mode(record) not in _OWN:
        return None
    return Special(mode, fill, shapes, below)


def opacity_of(record: LayerRecord) -> float:
    """Return the opacity, 0..1, times the fill opacity where that is opacity too."""
    fill = 1.0 if NAMES.get(blend_mode(record)) in NEUTRAL else fill_opacity(record)
    return float(record.opacity / 255 * fill)


def shown_by_own_colours(record: LayerRecord, pixels: Tensor, colours: ColorMode) -> Tensor | None:
    """Return the mask ``[H, W]`` of the pixels ``[H, W, 4]`` whose own colours lie in the layer's blend-if ranges;
    None if all do."""
    ranges = _ranges(record, 0, colours)
    return in_ranges(pixels[..., :3].movedim(-1, 0), ranges) if ranges else None


def has_own_ranges(record: LayerRecord) -> bool:
    """Return whether blend-if asks for some of the layer's own colours."""
    return bool(_ranges(record, 0, ColorMode.RGB))


def _ranges(record: LayerRecord, which: int, colours: ColorMode) -> tuple[Range | None, ...]:
    """Return the ranges of grey, red, green and blue of the layer itself (0) or of what is below it (1); empty if they
    hold all colours."""
    found = record.blending_ranges
    if not isinstance(found, LayerBlendingRanges) or not found.composite_ranges:
        return ()
    channels = list(found.channel_ranges or [])
    used = channels[:1] if colours == ColorMode.GRAYSCALE else [found.composite_ranges, *channels[:3]]
    ranges = tuple(_range(pair[which]) for pair in used)
    return ranges if any(ranges) else ()


def _range(ends: Sequence[int]) -> Range | None:
    """Return a range of the file: two black values in 16 bits, and two white ones; None if it holds all colours."""
    black, white = ends
    out = black >> 8, black & 255, white >> 8, white & 255
    return None if out == (0, 0, 255, 255) else out


def untold(record: LayerRecord, where: str) -> list[str]:
    """Return warnings on what is left out."""
    lines = []
    if record.tagged_blocks.get_data(Tag.CHANNEL_BLENDING_RESTRICTIONS_SETTING):
        lines.append(f"{where} changes some colour channels only; this is left out")
    if blend_mode(record) == BlendMode.DISSOLVE:
        lines.append(f"{where}: blend mode dissolve is read as normal")
    return lines


def cut_at_once(base: FileLayer, opacity: float, clipped: Sequence[Item]) -> None:
    """Cut layers that are clipped to ``base``, but blended without it (Photoshop's "blend clipped layers as group" is
    off): by its alpha and ``opacity``, and not by its fill opacity."""
    cut = _shape(base)
    for item in clipped:
        item.clipped = ""
        item.opacity *= opacity
        item.visible &= base.visible
        if isinstance(item, FileGroup):
            item.masks = (*item.masks, cut)
        else:
            mask = cut.over(box_of(item))
            item.mask = mask if item.mask is None else item.mask * mask


def knock_out(items: Sequence[Item], depths: Mapping[int, int], around: Sequence[Item]) -> list[str]:
    """Cut what lies below the layers and groups that knock it out, and return a warning for each.

    Args:
        items: the layers and groups of the document or of a group, back to front; they are changed.
        depths: 1 (shallow: to the bottom of the group) or 2 (deep: through pass-through groups too) by the ``id`` of
            the item.
        around: what lies below them, if a deep knockout reaches there.
    """
    told = []
    for number, item in enumerate(items):
        below = items[:number]
        deeper = (*around, *below)
        if isinstance(item, FileGroup):
            told += knock_out(item.items, depths, deeper if item.passthrough else ())
        depth = depths.get(id(item), 0)
        if depth and (item.opacity < 1 or item.special or item.blend_mode != "normal"):
            cut = _shape(item)
            hole = replace(cut, values=1 - cut.values, outside=1.0)
            for other in deeper if depth == 2 else below:
                _cut(other, hole)
            kind = "group" if isinstance(item, FileGroup) else "layer"
            told.append(
                f"{kind} {item.title!r} knocks out what is below it; masks of the layers below do so now"
            )
    return told


def _shape(item: Item) -> PixelMask:
    """Return the alpha of an item with its masks, without its opacity."""
    box = box_of(item)
    if not (box[2] and box[3]):
        return PixelMask(box[0], box[1], torch.zeros(0, 0), 0.0)
    alpha, limits = source(item, (), box)[1], mask_of(item, box)
    return PixelMask(box[0], box[1], alpha if limits is None else alpha * limits, 0.0)


def _cut(item: Item, hole: PixelMask) -> None:
    if isinstance(item, FileGroup):
        item.masks = (*item.masks, hole)
    elif item.clipped != "base":
        values = hole.over(box_of(item))
        item.mask = values if item.mask is None else item.mask * values
