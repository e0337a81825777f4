"""Write Photoshop documents (PSD, PSB) through the structures of psd-tools.

Source of the format: Adobe's "Photoshop File Formats Specification", and psd-tools where it goes beyond that.
Data that the format lacks are stored in two places that other programs keep: prompts, recipes and workflow in
the document's XMP packet (a property in this project's namespace), and the original pixels of rotated or
scaled layers, compressed, in image resources for plug-ins.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import torch
from PIL import Image
from psd_tools.constants import ChannelID, ColorMode, Compression, Resource, Tag
from psd_tools.psd import PSD
from psd_tools.psd.header import FileHeader
from psd_tools.psd.image_data import ImageData
from psd_tools.psd.image_resources import ImageResource, ImageResources, ThumbnailResource
from psd_tools.psd.layer_and_mask import (
    ChannelData,
    ChannelDataList,
    ChannelImageData,
    ChannelInfo,
    GlobalLayerMaskInfo,
    LayerAndMaskInformation,
    LayerInfo,
    LayerInfoBlock,
    LayerRecord,
    LayerRecords,
    MaskData,
)
from psd_tools.psd.tagged_blocks import TaggedBlock, TaggedBlocks
from torch import Tensor

from ..canvas.compositing import composite
from ..document import LayerDocument
from ..errors import LayeredError
from ..progress import pause, pieces, steps
from .file_layers import FileLayer
from .icc_profiles import SRGB_PROFILE
from .layer_look import look_of
from .pictures import write_whole
from .pixel_numbers import Numbers, to_numbers
from .psd_names import BLOB, NEAREST, PSD_MODES
from .to_file import PixelTypes, document_private, file_bits, flatten
from .untrusted import NAMESPACE

_PLUGIN_RESOURCES = range(4100, 5000)
"""Ids of image resources for plug-ins; Photoshop itself uses the first few of 4000..4999."""


def write_psd(document: LayerDocument, path: str | Path, workflow: Mapping[str, Any] | None = None) -> None:
    """Write a PSD, or a PSB if the name ends in ``.psb``. The file appears complete or not at all.

    Channels have 16 bits if the pixels need them, else 8. Other programs show every layer as placed, and the
    composite by Photoshop's rules; reading the file gives an equal document.

    Args:
        document: any document.
        path: file to write; its folder must exist.
        workflow: data of the host that is stored in the file, plain JSON values.

    Raises:
        LayeredError: the file would be larger than the format allows.
    """
    path = Path(path)
    types = PixelTypes()
    bits = file_bits(document, types)
    layers, blobs = flatten(document, bits, masks=True, types=types)
    version = 2 if path.suffix.lower() == ".psb" else 1
    header = FileHeader(
        version=version,
        channels=4,
        height=document.height,
        width=document.width,
        depth=bits,
        color_mode=ColorMode.RGB,
    )
    private = document_private(document)
    if workflow:
        private["workflow"] = workflow
    info, private["layers"] = _layer_info(layers, header)
    merged = _over_white(composite(document, rules="photoshop"), f"u{bits // 8}")
    section = LayerAndMaskInformation(info, GlobalLayerMaskInfo(), TaggedBlocks())
    if bits == 16:  # Photoshop expects 16-bit layers in a block of their own
        block = LayerInfoBlock(info.layer_count, info.layer_records, info.channel_image_data)
        section.layer_info = LayerInfo()
        section.tagged_blocks[Tag.LAYER_16] = TaggedBlock(key=Tag.LAYER_16, data=block)
    record = PSD(
        header=header,
        image_resources=_resources(private, blobs, merged),
        layer_and_mask_information=section,
        image_data=_image_data(merged, header),
    )
    try:
        write_whole(path, lambda file: record.write(file))
    except struct.error as error:  # the format's lengths have 32 bits
        raise LayeredError(
            f"{path.name} would be larger than the format allows: write a .psb or .ora ({error})"
        ) from error


def _layer_info(layers: Sequence[FileLayer], header: FileHeader) -> tuple[LayerInfo, list[dict[str, Any]]]:
    """Return the layers as the file has them, and their private data."""
    records, channels, entries = [], [], []
    kind = f"u{header.depth // 8}"
    for number, layer in steps(list(enumerate(layers, 1))):
        pixels = to_numbers(layer.pixels, kind)
        mask = None if layer.mask is None else to_numbers(layer.mask, kind)
        entries.append(_entry(layer, number, pixels, mask))
        record, planes = _record(layer, number, pixels, mask, header)
        records.append(record)
        channels.append(planes)
    # A negative count means that the composite's fourth channel is its transparency.
    return LayerInfo(-len(records), LayerRecords(records), ChannelImageData(channels)), entries


def _entry(layer: FileLayer, number: int, pixels: Numbers, mask: Numbers | None) -> dict[str, Any]:
    entry = {**(layer.private or {}), "id": number}
    original = entry.get("original")
    entry["look"] = look_of(pixels, mask).checksum() if original is None else original["checksum"]
    if layer.blend_mode in NEAREST:
        entry["blend_mode"] = layer.blend_mode
    return entry


def _record(
    layer: FileLayer, number: int, pixels: Numbers, mask: Numbers | None, header: FileHeader
) -> tuple[LayerRecord, ChannelDataList]:
    height, width = pixels.shape[:2]
    box = {"top": layer.top, "left": layer.left, "bottom": layer.top + height, "right": layer.left + width}
    record = LayerRecord(
        **box,
        blend_mode=PSD_MODES.get(layer.blend_mode) or NEAREST[layer.blend_mode],
        opacity=round(layer.opacity * 255),
        name=_pascal(layer.title),
    )
    record.flags.visible = layer.visible
    record.tagged_blocks.set_data(Tag.UNICODE_LAYER_NAME, layer.title)
    record.tagged_blocks.set_data(Tag.LAYER_ID, number)
    planes = [
        (ChannelID.TRANSPARENCY_MASK, pixels[..., 3]),
        *((ChannelID(c), pixels[..., c]) for c in range(3)),
    ]
    if mask is not None:
        record.mask_data = MaskData(**box, background_color=0)
        planes.append((ChannelID.USER_LAYER_MASK, mask))
    channels = ChannelDataList()
    for channel, numbers in steps(planes):
        data = _channel(numbers, header)
        record.channel_info.append(ChannelInfo(channel, len(data.data) + 2))
        channels.append(data)
    return record, channels


def _channel(numbers: Numbers, header: FileHeader) -> ChannelData:
    """Return one channel, compressed; ``numbers`` are ``[height, width]``."""
    height, width = numbers.shape
    if header.depth == 8:
        data = ChannelData(Compression.RLE)
        data.set_data(numbers.tobytes(), width, height, header.depth, header.version)
        return data
    # Without prediction, as Krita 5.1 reads 16-bit data with prediction wrongly.
    return ChannelData(Compression.ZIP, _deflated(numbers.astype(">u2").tobytes(), 1))


def _pascal(title: str) -> str:
    """Return the title as programs without Unicode show it, at most 255 bytes."""
    return title.encode("macroman", "replace")[:255].decode("macroman")


def _over_white(merged: Tensor, kind: str) -> Numbers:
    """Return the composite for the file, ``[H, W, 4]``: colours laid over white, as every program writes them, and
    alpha."""
    out = np.empty(merged.shape, kind)
    for top in range(0, len(out), 64):
        pause()
        rows = merged[top : top + 64]
        alpha = rows[..., 3:]
        out[top : top + 64] = to_numbers(torch.cat([rows[..., :3] * alpha + (1 - alpha), alpha], -1), kind)
    return out


def _image_data(merged: Numbers, header: FileHeader) -> ImageData:
    data = ImageData(compression=Compression.RLE)
    planes = merged if header.depth == 8 else merged.astype(">u2")
    data.set_data([planes[..., c].tobytes() for c in range(4)], header)
    return data


def _resources(private: Mapping[str, Any], blobs: Mapping[str, bytes], merged: Numbers) -> ImageResources:
    resources = ImageResources.new()

    def add(key: int, data: object) -> None:
        resources[key] = ImageResource(key=key, data=data)

    add(Resource.XMP_METADATA, _xmp(private))
    add(Resource.ICC_PROFILE, SRGB_PROFILE)
    small = Image.fromarray((merged[..., :3] // (257 if merged.itemsize == 2 else 1)).astype("u1"))
    small.thumbnail((160, 160))
    jpeg = BytesIO()
    small.save(jpeg, "JPEG", quality=85)
    row = (small.width * 24 + 31) // 32 * 4
    add(
        Resource.THUMBNAIL_RESOURCE,
        ThumbnailResource(1, small.width, small.height, row, row * small.height, 24, 1, jpeg.getvalue()),
    )
    for key, (name, data) in zip(_PLUGIN_RESOURCES, blobs.items()):
        add(key, BLOB + name.encode() + b"\n" + _deflated(data, 3))
    return resources


def _deflated(data: bytes, level: int) -> bytes:
    """Return data as ``zlib.compress`` does, in pieces."""
    compressor = zlib.compressobj(level)
    return b"".join([*(compressor.compress(piece) for piece in pieces(data)), compressor.flush()])


def _xmp(private: Mapping[str, Any]) -> bytes:
    text = escape(json.dumps(private))
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" '
        f'xmlns:ld="{NAMESPACE}"><ld:document>{text}</ld:document></rdf:Description>'
        '</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
    ).encode()
