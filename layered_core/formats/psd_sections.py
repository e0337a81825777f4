"""Read the sections of a PSD but leave the pixels in the file: channels, the merged picture and this project's blobs
are read when they are decoded, after the sizes that the file states have been checked.

Source of the format: Adobe's "Photoshop File Formats Specification". The small parts are parsed by psd-tools.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from psd_tools.constants import Compression, Resource, Tag
from psd_tools.psd import PSD
from psd_tools.psd.color_mode_data import ColorModeData
from psd_tools.psd.header import FileHeader
from psd_tools.psd.image_data import ImageData
from psd_tools.psd.image_resources import ImageResource, ImageResources
from psd_tools.psd.layer_and_mask import (
    ChannelData,
    ChannelDataList,
    ChannelImageData,
    LayerAndMaskInformation,
    LayerInfo,
    LayerInfoBlock,
    LayerRecord,
    LayerRecords,
)
from psd_tools.psd.tagged_blocks import TaggedBlock, TaggedBlocks

try:
    from psd_tools.psd.parse_limits import parse_context
except ImportError:  # psd-tools before 1.24 has no limit on the number of objects
    from contextlib import nullcontext as parse_context

from ..errors import LayeredError, invalid
from .psd_names import BLOB

_MAX_BYTES = 2**26
"""Greatest size of a part of the file that is read whole."""
_MAX_RECORDS_BYTES = 2**27
"""Greatest size of the records of all layers, without their pixels."""

_NEEDED = {Resource.XMP_METADATA: "XMP packet", Resource.ICC_PROFILE: "colour profile"}
"""Image resources that are not left out however large they are: the file is refused instead."""

_LARGE_BLOCKS = (
    Tag.LINKED_LAYER1, Tag.LINKED_LAYER2, Tag.LINKED_LAYER3, Tag.LINKED_LAYER_EXTERNAL,
    Tag.FILTER_EFFECTS1, Tag.FILTER_EFFECTS2, Tag.FILTER_EFFECTS3,
)  # fmt: skip
"""Blocks that hold whole files or pictures that are not read."""


@dataclass(frozen=True)
class Span:
    """A part of a file, which need not be open."""

    path: Path
    start: int
    """Offset of the first byte."""
    length: int
    """Number of bytes."""

    def read(self) -> bytes:
        """Return the bytes."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.length)
        if len(data) < self.length:
            raise LayeredError("the file is cut short. Save the file anew")
        return data


class _Stored:
    """Data that stay in the file until they are decoded, in place of a field of psd-tools' structures."""

    def __init__(self, compression: int, span: Span) -> None:
        super().__init__(compression)  # type: ignore[call-arg]  # of the structure beside this class
        self.span = span

    @property
    def data(self) -> bytes:
        """The compressed data, read anew each time."""
        return self.span.read()

    @data.setter
    def data(self, _: bytes) -> None:
        """Ignore the empty data that the constructor of psd-tools sets."""


class StoredChannel(_Stored, ChannelData):  # type: ignore[misc]  # psd-tools has no types
    """A channel whose data stay in the file."""


class StoredImage(_Stored, ImageData):  # type: ignore[misc]  # psd-tools has no types
    """The merged picture, whose data stay in the file."""


def read_sections(path: Path) -> tuple[PSD, dict[str, Span]]:
    """Return the sections of a PSD and this project's blobs (original pixels, deflated) by their keys.

    Linked files, stored results of filters, data of plug-ins and parts that are far larger than usual are left out.

    Raises:
        LayeredError: a part that is read whole is too large, or the file is cut short.
        Exception: whatever psd-tools raises on broken files.
    """
    with path.open("rb") as file, parse_context():
        reader = _Sections(path, file)
        psd = PSD(
            reader.header,
            reader.colour_table(),
            reader.resources(),
            reader.layers(),
            reader.merged(),
        )
    return psd, reader.blobs


class _Sections:
    """Reads the sections one after the other; every method begins where the one before it has ended."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = file.seek(0, 2)
        file.seek(0)
        self.header = FileHeader.read(file)
        self.big = self.header.version == 2
        self.blobs: dict[str, Span] = {}
        self.left = _MAX_BYTES
        """How many bytes more are read of parts that a document can do without."""

    def _numbers(self, form: str) -> tuple[Any, ...]:
        form = f">{form}"
        data = self.file.read(struct.calcsize(form))
        if len(data) < struct.calcsize(form):
            raise LayeredError("the file is cut short. Save the file anew")
        return struct.unpack(form, data)

    def _length(self, form: str, end: int) -> int:
        """Return a length that is read from the file, and must not lead beyond ``end``."""
        (length,) = self._numbers(form)
        left = end - self.file.tell()
        if length > left:
            raise invalid("length of a part of the file", length, f"at most {left}, as the file ends there")
        return int(length)

    def _check(self, what: str, length: int, most: int = _MAX_BYTES) -> None:
        if length > most:
            raise invalid(f"size of the {what}", f"{length:,} bytes", f"at most {most:,}")

    def _affordable(self, length: int) -> bool:
        """Return whether a part of ``length`` bytes is read, and count it."""
        if length > self.left:
            return False
        self.left -= length
        return True

    def colour_table(self) -> ColorModeData:
        start = self.file.tell()
        self._check("colour table", self._length("I", self.size))
        self.file.seek(start)
        return ColorModeData.read(self.file)

    def resources(self) -> ImageResources:
        end = self._length("I", self.size) + self.file.tell()
        found = []
        while self.file.tell() + 12 <= end:
            start = self.file.tell()
            _, key, name = self._numbers("4sHB")
            self.file.seek(name + (1 - name % 2), 1)
            length = self._length("I", end)
            data = self.file.tell()
            if key in _NEEDED:
                self._check(_NEEDED[key], length)
            if Resource.is_plugin_resource(key):
                self._note_blob(Span(self.path, data, length))
            elif key in _NEEDED or self._affordable(length):
                self.file.seek(start)
                resource = ImageResource.read(self.file)
                found.append((resource.key, resource))
            self.file.seek(data + length + length % 2)
        self.file.seek(end)
        return ImageResources(found)

    def _note_blob(self, span: Span) -> None:
        """Note the key of an image resource if it is one of this project's blobs."""
        head, line, _ = self.file.read(min(span.length, 256)).partition(b"\n")
        if line and head.startswith(BLOB):
            begin = len(head) + 1
            key = head[len(BLOB) :].decode("ascii", "replace")
            self.blobs[key] = Span(span.path, span.start + begin, span.length - begin)

    def layers(self) -> LayerAndMaskInformation:
        form = "Q" if self.big else "I"
        end = self._length(form, self.size) + self.file.tell()
        if end == self.file.tell():
            return LayerAndMaskInformation()
        inner = self._length(form, end) + self.file.tell()
        info = LayerInfo() if inner == self.file.tell() else LayerInfo(*self._layer_info(inner))
        self.file.seek(inner)
        if self.file.tell() + 4 <= end:
            mark = self.file.read(4)
            self.file.seek(-4, 1)
            if mark not in (b"8BIM", b"8B64"):  # the mask of the whole document, which no program uses
                self.file.seek(self._length("I", end), 1)
        blocks = self._blocks(end)
        self.file.seek(end)
        return LayerAndMaskInformation(info, None, blocks)

    def _layer_info(self, end: int) -> tuple[int, LayerRecords, ChannelImageData]:
        """Return the number of layers, their records, and their channels, which stay in the file."""
        (count,) = self._numbers("h")
        first = self.file.tell()
        records = LayerRecords([self._record(first, end) for _ in range(abs(count))])
        start = self.file.tell()
        layers = []
        for record in records:
            channels = []
            for info, size in zip(record.channel_info, record.channel_sizes, strict=True):
                if info.length > end - start:
                    raise LayeredError(
                        "the file is cut short: channels of a layer are missing. Save the file anew"
                    )
                self.file.seek(start)
                compression = self._numbers("H")[0] if info.length > 1 else Compression.RAW
                span = Span(self.path, start + 2, min(max(info.length - 2, 0), self._most(*size)))
                channels.append(StoredChannel(compression, span))
                start += info.length
            layers.append(ChannelDataList(channels))
        return count, records, ChannelImageData(layers)

    def _record(self, first: int, end: int) -> LayerRecord:
        """Read the record of a layer; that of the first one begins at ``first``."""
        start = self.file.tell()
        channels = self._numbers("16xH")[0]
        self.file.seek(channels * (10 if self.big else 6) + 12, 1)
        length = self._length("I", end)
        self._check("layers' records", self.file.tell() + length - first, _MAX_RECORDS_BYTES)
        self.file.seek(start)
        return LayerRecord.read(self.file, version=self.header.version)

    def _blocks(self, end: int) -> TaggedBlocks:
        """Return the document's blocks; 16-bit layers are in one of them."""
        found = []
        while self.file.tell() + 12 <= end:
            start = self.file.tell()
            signature, key = self._numbers("4s4s")
            if signature not in (b"8BIM", b"8B64"):
                break
            length = self._length(TaggedBlock._length_format(key, self.header.version), end)
            data = self.file.tell()
            if key in (Tag.LAYER_16, Tag.LAYER_32):
                block = TaggedBlock(key=Tag(key), data=LayerInfoBlock(*self._layer_info(data + length)))
                found.append((block.key, block))
            elif key not in _LARGE_BLOCKS and self._affordable(length):
                self.file.seek(start)
                block = TaggedBlock.read(self.file, self.header.version, 4)
                found.append((block.key, block))
            self.file.seek(min(data + length + -length % 4, end))
        return TaggedBlocks(found)

    def merged(self) -> StoredImage:
        (compression,) = self._numbers("H")
        start, header = self.file.tell(), self.header
        most = self._most(header.width, header.height * header.channels)
        return StoredImage(compression, Span(self.path, start, min(self.size - start, most)))

    def _most(self, width: int, height: int) -> int:
        """Return the greatest number of bytes that rows of pixels take by any compression; what lies behind them is
        never read."""
        size = (width * self.header.depth + 7) // 8 * height
        return int(size + size // 64 + 8 * height + 1024)
