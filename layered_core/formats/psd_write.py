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
from ..progress import by_rows, pause, steps
from .file_layers import FileLayer, as_stored, look_of
from .pictures import to_image, write_whole
from .psd_names import BLOB, NEAREST, PSD_MODES
from .to_file import document_private, file_bits, flatten
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
    bits = file_bits(document)
    layers, blobs = flatten(document, bits, masks=True)
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
    private["layers"] = [_entry(layer, number, bits) for number, layer in enumerate(layers, 1)]
    merged = composite(document, rules="photoshop")
    info = _layer_info(layers, header)
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


def _entry(layer: FileLayer, number: int, bits: int) -> dict[str, Any]:
    entry = {
        **(layer.private or {}),
        "id": number,
        "look": look_of(*as_stored(layer.pixels, layer.mask, bits))[0],
    }
    if layer.blend_mode in NEAREST:
        entry["blend_mode"] = layer.blend_mode
    return entry


def _layer_info(layers: Sequence[FileLayer], header: FileHeader) -> LayerInfo:
    pairs = [_record(layer, number, header) for number, layer in steps(list(enumerate(layers, 1)))]
    # A negative count means that the composite's fourth channel is its transparency.
    return LayerInfo(
        -len(pairs), LayerRecords([p[0] for p in pairs]), ChannelImageData([p[1] for p in pairs])
    )


def _record(layer: FileLayer, number: int, header: FileHeader) -> tuple[LayerRecord, ChannelDataList]:
    height, width = layer.pixels.shape[:2]
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
        (ChannelID.TRANSPARENCY_MASK, layer.pixels[..., 3]),
        *((ChannelID(c), layer.pixels[..., c]) for c in range(3)),
    ]
    if layer.mask is not None:
        record.mask_data = MaskData(**box, background_color=0)
        planes.append((ChannelID.USER_LAYER_MASK, layer.mask))
    channels = ChannelDataList()
    for channel, values in planes:
        pause()
        # Without prediction, as Krita 5.1 reads 16-bit data with prediction wrongly.
        data = ChannelData(Compression.RLE if header.depth == 8 else Compression.ZIP)
        data.set_data(_plane(values, header.depth), width, height, header.depth, header.version)
        record.channel_info.append(ChannelInfo(channel, len(data.data) + 2))
        channels.append(data)
    return record, channels


def _pascal(title: str) -> str:
    """Return the title as programs without Unicode show it, at most 255 bytes."""
    return title.encode("macroman", "replace")[:255].decode("macroman")


def _plane(values: Tensor, depth: int) -> bytes:
    array: np.ndarray[Any, Any] = (values.float() * (2**depth - 1)).round().numpy()
    return array.astype("u1" if depth == 8 else ">u2").tobytes()


def _image_data(merged: Tensor, header: FileHeader) -> ImageData:
    """Return the composite for the file: colours laid over white, as every program writes them, and alpha."""
    shown = by_rows(lambda part: torch.cat([_over_white(part), part[..., 3:]], -1).clamp_(0, 1), merged)
    data = ImageData(compression=Compression.RLE)
    pause()
    data.set_data([_plane(shown[..., c], header.depth) for c in range(4)], header)
    return data


def _over_white(pixels: Tensor) -> Tensor:
    return pixels[..., :3] * pixels[..., 3:] + (1 - pixels[..., 3:])


def _resources(private: Mapping[str, Any], blobs: Mapping[str, bytes], merged: Tensor) -> ImageResources:
    resources = ImageResources.new()

    def add(key: int, data: object) -> None:
        resources[key] = ImageResource(key=key, data=data)

    add(Resource.XMP_METADATA, _xmp(private))
    small = to_image(by_rows(_over_white, merged))
    small.thumbnail((160, 160))
    jpeg = BytesIO()
    small.save(jpeg, "JPEG", quality=85)
    row = (small.width * 24 + 31) // 32 * 4
    add(
        Resource.THUMBNAIL_RESOURCE,
        ThumbnailResource(1, small.width, small.height, row, row * small.height, 24, 1, jpeg.getvalue()),
    )
    for key, (name, data) in zip(_PLUGIN_RESOURCES, blobs.items()):
        add(key, BLOB + name.encode() + b"\n" + _deflated(data))
    return resources


def _deflated(data: bytes) -> bytes:
    """Return the data compressed as ``zlib.compress`` does, in pieces."""
    compressor, packed = zlib.compressobj(3), BytesIO()
    for start in range(0, len(data), 2**24):
        pause()
        packed.write(compressor.compress(memoryview(data)[start : start + 2**24]))
    return packed.getvalue() + compressor.flush()


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
