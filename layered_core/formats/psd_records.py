"""What the records of a PSD say of a layer, and which private data belongs to which layer."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from psd_tools.constants import ChannelID, SectionDivider, Tag
from psd_tools.psd.layer_and_mask import LayerRecord

from ..errors import invalid
from .file_layers import FileLayer, clean_text, look_of, split_title
from .psd_names import NAMES, NEAREST

_DIVIDERS = (Tag.SECTION_DIVIDER_SETTING, Tag.NESTED_SECTION_DIVIDER_SETTING)


VECTOR_MASKS = (Tag.VECTOR_MASK_SETTING1, Tag.VECTOR_MASK_SETTING2)


_FILLS = (
    Tag.SOLID_COLOR_SHEET_SETTING,
    Tag.PATTERN_FILL_SETTING,
    Tag.GRADIENT_FILL_SETTING,
    Tag.VECTOR_STROKE_CONTENT_DATA,
)


def section_divider(record: LayerRecord) -> SectionDivider | None:
    for tag in reversed(_DIVIDERS):
        setting = record.tagged_blocks.get_data(tag)
        if setting is not None and setting.kind != SectionDivider.OTHER:
            return SectionDivider(setting.kind)
    return None


def is_shape(record: LayerRecord) -> bool:
    """Whether the layer is a fill in a vector mask, which its pixels show cut."""
    return all(any(tag in record.tagged_blocks for tag in tags) for tags in (_FILLS, VECTOR_MASKS))


def is_rendered(record: LayerRecord) -> bool:
    """Whether the file has the vector mask in pixels."""
    data, present = record.mask_data, {info.id for info in record.channel_info}
    return (
        data is not None
        and ChannelID.USER_LAYER_MASK in present
        and (data.flags.user_mask_from_render or ChannelID.REAL_USER_LAYER_MASK in present)
    )


def title(record: LayerRecord) -> str:
    return clean_text(str(record.tagged_blocks.get_data(Tag.UNICODE_LAYER_NAME, record.name)).rstrip("\0"))


def match_private(layers: Sequence[tuple[FileLayer, int | None]], entries: object) -> None:
    """Give each layer the private data that was written with it: by whole title, else by name, else by id and
    look."""
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
    # The id of a layer that is gone may be given to a new one.
    claim(
        lambda layer, identity, e: (
            identity is not None
            and identity == e.get("id")
            and look_of(layer.pixels, layer.mask)[0] == e.get("look")
        )
    )
    for layer, _ in layers:
        true = (layer.private or {}).get("blend_mode")
        if isinstance(true, str) and true in NEAREST and NAMES[NEAREST[true]] == layer.blend_mode:
            layer.blend_mode = true


def inflate(data: bytes | None, count: int) -> bytes | None:
    """Exactly ``count`` bytes, or None."""
    if data is None:
        return None
    try:
        out = zlib.decompressobj().decompress(data, count + 1)
    except zlib.error:
        return None
    return out if len(out) == count else None
