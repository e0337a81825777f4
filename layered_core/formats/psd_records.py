"""Read properties of a layer from a PSD's record, and match layers with their private data."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from psd_tools.constants import BlendMode, ChannelID, SectionDivider, Tag
from psd_tools.psd.layer_and_mask import LayerRecord

from ..errors import invalid
from .file_layers import FileLayer, split_title
from .layer_look import look_of_values
from .psd_names import NAMES, NEAREST

_DIVIDERS = (Tag.SECTION_DIVIDER_SETTING, Tag.NESTED_SECTION_DIVIDER_SETTING)


VECTOR_MASKS = (Tag.VECTOR_MASK_SETTING1, Tag.VECTOR_MASK_SETTING2)
"""Tags of vector masks."""

_FILLS = (
    Tag.SOLID_COLOR_SHEET_SETTING,
    Tag.PATTERN_FILL_SETTING,
    Tag.GRADIENT_FILL_SETTING,
    Tag.VECTOR_STROKE_CONTENT_DATA,
)


def blend_mode(record: LayerRecord) -> BlendMode:
    """Return the blend mode of a layer or group. That of a pass-through group is beside its divider; programs that
    do not know it read another one."""
    for tag in reversed(_DIVIDERS):
        setting = record.tagged_blocks.get_data(tag)
        if setting is not None and setting.blend_mode is not None:
            return BlendMode(setting.blend_mode)
    return record.blend_mode


def section_divider(record: LayerRecord) -> SectionDivider | None:
    """Return whether a record begins or ends a group; None for an ordinary layer."""
    for tag in reversed(_DIVIDERS):
        setting = record.tagged_blocks.get_data(tag)
        if setting is not None and setting.kind != SectionDivider.OTHER:
            return SectionDivider(setting.kind)
    return None


def unpaired_dividers(records: Sequence[LayerRecord]) -> set[int]:
    """Return the numbers of the records, back to front, that end a group without a beginning, or begin one without
    an end: psd-tools' ``PSDImage._unmatched_dividers``, which ignores them."""
    ends: list[int] = []
    alone: set[int] = set()
    for number, record in enumerate(records):
        kind = section_divider(record)
        if kind == SectionDivider.BOUNDING_SECTION_DIVIDER:
            ends.append(number)
        elif kind is not None and ends:
            ends.pop()
        elif kind is not None:
            alone.add(number)
    return alone | set(ends)


def is_shape(record: LayerRecord) -> bool:
    """Return whether the layer is a fill with a vector mask by which the pixels in the file are already cut."""
    return record.width * record.height > 0 and all(
        any(tag in record.tagged_blocks for tag in tags) for tags in (_FILLS, VECTOR_MASKS)
    )


def is_rendered(record: LayerRecord) -> bool:
    """Return whether the file holds the vector mask rendered to pixels."""
    data, present = record.mask_data, {info.id for info in record.channel_info}
    return (
        data is not None
        and ChannelID.USER_LAYER_MASK in present
        and (data.flags.user_mask_from_render or ChannelID.REAL_USER_LAYER_MASK in present)
    )


def match_private(layers: Sequence[tuple[FileLayer, int | None]], entries: object) -> None:
    """Assign each layer the private data that was written with it. They are matched by the whole title, else
    by name, else by id and checksum of the visible pixels.

    Raises:
        LayeredError: ``entries`` is no list of JSON objects.
    """
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise invalid("layer data: layers", entries, "a list of JSON objects")
    left = list(entries)

    def claim(same: Any) -> None:
        for layer, identity in layers:
            if (
                layer.private is None
                and (entry := next((e for e in left if same(layer, identity, e)), None)) is not None
            ):
                left.remove(entry)
                layer.private = entry

    claim(lambda layer, identity, e: layer.title == e.get("title"))
    claim(lambda layer, identity, e: split_title(layer.title, 0)[0] == e.get("name"))
    # The id of a removed layer may be reused for a new one, so the pixels must agree too.
    claim(
        lambda layer, identity, e: (
            identity is not None
            and identity == e.get("id")
            and look_of_values(layer.pixels, layer.mask).has(e.get("look"))
        )
    )
    for layer, _ in layers:
        true = (layer.private or {}).get("blend_mode")
        if isinstance(true, str) and true in NEAREST and NAMES[NEAREST[true]] == layer.blend_mode:
            layer.blend_mode = true


def inflate(data: bytes, count: int) -> bytes | None:
    """Decompress ``data``; return None unless that gives exactly ``count`` bytes."""
    try:
        out = zlib.decompressobj().decompress(data, count + 1)
    except zlib.error:
        return None
    return out if len(out) == count else None
