"""What a layer in a file looks like, by which it is known again after another program has changed the file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..progress import pause, pieces, steps
from .pixel_numbers import Numbers, pixel_type, to_numbers

_SECOND = "2:"
"""Prefix of checksums; those of earlier versions of this project have none and are made of 32-bit numbers."""


@dataclass(frozen=True, eq=False)
class Look:
    """The visible pixels of a layer, or its mask if it has none."""

    part: Numbers | None
    """Their smallest rectangle, ``[h, w, 4]`` or of a mask ``[h, w]``; 0 where a pixel is transparent. None: nothing is
    visible."""
    corner: tuple[int, int] | None = None
    """Left top corner of the rectangle, pixels from that of the layer; None if nothing is visible."""

    def checksum(self) -> str:
        """Return a checksum, empty if nothing is visible."""
        if self.part is None:
            return ""
        digest = hashlib.sha256(f"{self.part.shape} {self.part.dtype.itemsize}".encode())
        for piece in pieces(self.part.data):
            digest.update(piece)
        return _SECOND + digest.hexdigest()

    def has(self, checksum: object) -> bool:
        """Return whether a checksum that was written before, also by an earlier version, is of this look."""
        if self.part is None or not isinstance(checksum, str) or checksum.startswith(_SECOND):
            return checksum == self.checksum()
        digest = hashlib.sha256(repr(tuple(self.part.shape)).encode())
        for row in steps(range(len(self.part))):
            digest.update(self.part[row].astype("<i4") * (257 if self.part.dtype.itemsize == 1 else 1))
        return checksum == digest.hexdigest()


def look_of(pixels: Numbers, mask: Numbers | None) -> Look:
    """Return the look of a layer with pixels ``[H, W, 4]`` and a mask ``[H, W]`` of 8 or 16 bits.

    Programs crop layers to their visible part, change the colours of transparent pixels, and may convert to
    16 bits. None of that changes the checksum.
    """
    wide = np.dtype(f"<u{4 * pixels.dtype.itemsize}")
    seen, whole = pixels[..., 3] > 0, np.ascontiguousarray(pixels).view(wide)[..., 0]
    if not seen.any():
        if mask is None or not mask.any():
            return Look(None)
        seen, whole = mask > 0, mask
    pause()
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    part = np.where(seen[box], whole[box], whole.dtype.type(0))
    pause()
    if whole is not mask:
        part = part.view(pixels.dtype).reshape(*part.shape, 4)
    if part.dtype.itemsize == 2 and not (part % 257).any():
        part = (part // 257).astype("u1")
    return Look(part, (int(columns[0]), int(rows[0])))


def look_of_values(pixels: Tensor, mask: Tensor | None) -> Look:
    """Return the look of a layer that was read from a file: values in 0..1, ``[H, W, 4]`` and ``[H, W]``."""
    kinds = {pixel_type(values) for values in (pixels, mask) if values is not None}
    kind = "u1" if kinds == {"u1"} else "u2"
    return look_of(to_numbers(pixels, kind), None if mask is None else to_numbers(mask, kind))
