"""Limits on the sizes that a file may state. Files are not trusted: every size is checked before memory is
allocated for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from ..document import MAX_LAYERS, MAX_SIDE
from ..errors import LayeredError, check_whole, invalid


@dataclass(frozen=True)
class Limits:
    """Limits on reading. A file that exceeds one is refused with an error that names the limit."""

    max_side: int = MAX_SIDE
    """Greatest width or height of the canvas, a layer or a mask, pixels, 1..16384."""
    max_pixels: int = 2**27
    """Greatest area of the canvas, a layer or a mask, pixels."""
    max_layers: int = MAX_LAYERS
    """Greatest number of layers, 1..50."""
    max_file_bytes: int = 2**31
    """Greatest size of a file on disk, bytes."""
    max_alloc_bytes: int = 2**32
    """Greatest memory for the decoded pixels of all layers together, bytes; a pixel takes 16, a pixel of a
    mask 4."""
    option: str | None = None
    """Name of the host's option for the memory, which errors tell the user to raise; None: they name the field. Empty:
    the host has none."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name != "option":
                check_whole(
                    f"limits: {f.name}",
                    getattr(self, f.name),
                    1,
                    {"max_side": MAX_SIDE, "max_layers": MAX_LAYERS}.get(f.name, 2**63),
                )

    @classmethod
    def of_memory(cls, size: int, option: str | None = None) -> Limits:
        """Return limits with ``size`` bytes for decoded pixels, which the host's ``option`` sets. If that is more than
        the default, the limit on the area of one picture grows in proportion."""
        usual = cls()
        return cls(
            max_alloc_bytes=size,
            max_pixels=max(usual.max_pixels, usual.max_pixels * size // usual.max_alloc_bytes),
            option=option,
        )

    def fix(self, field: str, needed: int) -> str:
        """Return what a user can do where the limit ``field`` on memory is exceeded and ``needed`` bytes are needed."""
        if self.option is None:
            return f"Raise the memory limit, {field}"
        if not self.option:
            return "Make it smaller"
        return f"Raise the memory limit, {self.option}, to {-(-needed // 2**30)} GiB or more"


class Budget:
    """The memory that reading one file has used so far, with its limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._bytes = 0

    def take(self, where: str, width: int, height: int, channels: int = 4) -> None:
        """Count ``height`` x ``width`` x ``channels`` float32 values as used.

        Raises:
            LayeredError: a limit is exceeded.
        """
        self._bytes = self.fits(where, width, height, channels)

    def fits(self, where: str, width: int, height: int, channels: int = 4) -> int:
        """Return the bytes used if a picture were counted as :meth:`take` does, without counting it: for what
        is only in memory for a while.

        Raises:
            LayeredError: a limit is exceeded.
        """
        self.check(where, width, height)
        used = self._bytes + width * height * channels * 4
        self._check_bytes(f"memory for pixels up to {where}", used)
        return used

    def fits_all(self, sizes: Iterable[tuple[str, int, int, int]]) -> None:
        """Check pictures together before any of them is decoded: each is its name, width, height and number of
        channels.

        Raises:
            LayeredError: a limit is exceeded.
        """
        used, count = self._bytes, 0
        for where, width, height, channels in sizes:
            self.check(where, width, height)
            used += width * height * channels * 4
            count += 1
        self._check_bytes(f"memory for pixels of {count} layers and masks", used)

    def _check_bytes(self, what: str, used: int) -> None:
        most = self.limits.max_alloc_bytes
        if used > most:
            fix = self.limits.fix("max_alloc_bytes", used)
            raise invalid(what, f"{used:,} bytes", f"at most {most:,}", fix)

    def check(self, where: str, width: int, height: int) -> None:
        """Check a size without counting it as used.

        Raises:
            LayeredError: a limit is exceeded.
        """
        side, area = self.limits.max_side, self.limits.max_pixels
        if not (1 <= width <= side and 1 <= height <= side):
            raise invalid(
                f"size of {where}", f"{width}x{height}", f"at least 1 and at most {side} pixels a side"
            )
        if width * height > area:
            raise invalid(
                f"size of {where}",
                f"{width}x{height}",
                f"at most {area:,} pixels in all",
                self.limits.fix("max_pixels", width * height * Limits.max_alloc_bytes // Limits.max_pixels),
            )


def check_file(path: Path, kind: str, limits: Limits) -> None:
    """Raise :class:`LayeredError` unless ``path`` is an existing file that is neither empty nor too large.
    ``kind`` is the kind of file in the error."""
    if not os.path.isfile(path):  # Path.is_file raises an error for a name that is too long
        raise LayeredError(f"{kind} {str(path)!r} was not found. Give the path of an existing file")
    size = path.stat().st_size
    if not 0 < size <= limits.max_file_bytes:
        raise invalid(
            f"size of {path.name}",
            f"{size:,} bytes",
            f"1..{limits.max_file_bytes:,} bytes",
            "" if size else "The file is empty",
        )
