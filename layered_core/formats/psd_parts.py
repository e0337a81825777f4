"""Count the parts of a PSD before psd-tools reads it, which takes up to 100 microseconds for each of them.

Source: Adobe Photoshop File Formats Specification, sections Image Resources, and Layer and Mask Information.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import repeat
from typing import BinaryIO

from ..errors import invalid

MAX_PARTS = 50_000
"""Greatest number of layers, channels, blocks and resources together. Files of Photoshop have about 17 for each layer,
so that they may have some 3,000 layers."""

_HEADER_BYTES = 26
_RESOURCES = (b"8BIM", b"MeSa", b"AgHg", b"PHUT", b"DCSR")
_BLOCKS = (b"8BIM", b"8B64")
_LAYERS = (b"Lr16", b"Lr32")
"""Keys of the blocks that hold the layers of a file with 16 or 32 bits a channel."""
_LONG = {
    *(b"LMsk", b"Lr16", b"Lr32", b"Layr", b"Mt16", b"Mt32", b"Mtrn", b"Alph", b"FMsk", b"lnk2", b"lnk3"),
    *(b"lnkE", b"FEid", b"FXid", b"PxSD", b"pths", b"extn", b"cinf", b"artd"),
}
"""Keys of the blocks whose length has 8 bytes in a PSB."""


def check_parts(file: BinaryIO) -> None:
    """Go through a file of PSD or PSB without reading pixels, and back to its beginning. A broken file is counted up
    to where it is broken; the reader tells of that.

    Raises:
        LayeredError: it has more than :data:`MAX_PARTS`.
    """
    with suppress(struct.error, OverflowError):
        for count, _ in enumerate(_parts(file), 1):
            if count > MAX_PARTS:
                raise invalid(
                    "number of layers, channels, blocks and resources",
                    f"over {MAX_PARTS:,}",
                    f"at most {MAX_PARTS:,}",
                    "Merge layers, or save the file anew",
                )
    file.seek(0)


def _parts(file: BinaryIO) -> Iterator[None]:
    """Yield once for every part of the file."""
    file.seek(4)
    version = _number(file, "H")
    file.seek(_HEADER_BYTES)
    file.seek(_end(file, "I"))  # of the colour table
    yield from _resources(file, _end(file, "I"))
    length = "Q" if version == 2 else "I"
    end = _end(file, length)
    if file.tell() == end:
        return
    end_of_layers = _end(file, length)
    if end_of_layers > file.tell():
        yield from _layers(file, version)
    file.seek(end_of_layers)
    if file.read(4) not in _BLOCKS:
        file.seek(end_of_layers)
        end_of_layers = _end(file, "I")  # and of the mask for all of them
    file.seek(end_of_layers)
    yield from _blocks(file, end, version, padding=4)


def _resources(file: BinaryIO, end: int) -> Iterator[None]:
    while file.tell() < end and file.read(4) in _RESOURCES:
        yield
        file.seek(2, 1)
        file.seek(_number(file, "B") | 1, 1)  # the name and its length fill pairs of bytes
        size = _number(file, "I")
        file.seek(size + size % 2, 1)
    file.seek(end)


def _layers(file: BinaryIO, version: int) -> Iterator[None]:
    for _ in range(abs(_number(file, "h"))):
        file.seek(16, 1)
        channels = _number(file, "H")
        file.seek(channels * (10 if version == 2 else 6) + 12, 1)
        end = _end(file, "I")
        yield from repeat(None, 1 + channels)
        file.seek(_end(file, "I"))  # of the mask
        file.seek(_end(file, "I"))  # of the blending ranges
        file.seek(_number(file, "B") | 3, 1)  # the name and its length fill groups of four bytes
        yield from _blocks(file, end, version, padding=1)
        file.seek(end)


def _blocks(file: BinaryIO, end: int, version: int, padding: int) -> Iterator[None]:
    while file.tell() + 8 <= end and file.read(4) in _BLOCKS:
        yield
        key = file.read(4)
        next_block = _end(file, "Q" if version == 2 and key in _LONG else "I", padding)
        # No program puts these into a layer; psd-tools reads them there too, but not deeply nested.
        if key in _LAYERS and padding == 4:
            yield from _layers(file, version)
        file.seek(next_block)


def _number(file: BinaryIO, form: str) -> int:
    """Read one big-endian number."""
    form = f">{form}"
    return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])


def _end(file: BinaryIO, form: str, padding: int = 1) -> int:
    """Read the length of what follows, and return where that ends."""
    size = _number(file, form)
    return file.tell() + size + -size % padding
