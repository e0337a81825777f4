"""How much a file may ask for. A file from elsewhere is not to be trusted: every size it states is checked
before memory is taken."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from ..document import MAX_LAYERS, MAX_SIDE
from ..errors import check_whole, invalid


@dataclass(frozen=True)
class Limits:
    """Bounds on what is read. What exceeds one is refused with an error that names it."""

    max_side: int = MAX_SIDE
    """Greatest width or height of the canvas, a layer or a mask, pixels, 1..16384."""
    max_pixels: int = 2**27
    """Greatest area of the canvas, a layer or a mask, pixels."""
    max_layers: int = MAX_LAYERS
    """Greatest number of layers, 1..50."""
    max_file_bytes: int = 2**31
    """Greatest size of a file on disk, bytes."""
    max_alloc_bytes: int = 2**32
    """Greatest memory for the decoded pixels of all layers together, bytes; a pixel takes 16, a mask's 4."""

    def __post_init__(self) -> None:
        for f in fields(self):
            check_whole(
                f"limits: {f.name}",
                getattr(self, f.name),
                1,
                {"max_side": MAX_SIDE, "max_layers": MAX_LAYERS}.get(f.name, 2**63),
            )

    @classmethod
    def of_memory(cls, size: int) -> Limits:
        """Limits with ``size`` bytes for decoded pixels; where that is more than usual, each picture may be
        larger in step."""
        usual = cls()
        return cls(
            max_alloc_bytes=size,
            max_pixels=max(usual.max_pixels, usual.max_pixels * size // usual.max_alloc_bytes),
        )


class Budget:
    """What reading one file has used of its limits so far."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._bytes = 0

    def take(self, where: str, width: int, height: int, channels: int = 4) -> None:
        """Account for ``height`` x ``width`` x ``channels`` float32 values; raises :class:`LayeredError`
        where a limit is exceeded."""
        self.check(where, width, height)
        self._bytes += width * height * channels * 4
        if self._bytes > self.limits.max_alloc_bytes:
            allowed = f"at most {self.limits.max_alloc_bytes:,}"
            raise invalid(
                f"memory for pixels up to {where}",
                f"{self._bytes:,} bytes",
                allowed,
                "Raise the memory limit, max_alloc_bytes",
            )

    def check(self, where: str, width: int, height: int) -> None:
        """Check a size without accounting for it."""
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
                "Raise the memory limit, max_pixels",
            )


def check_file(path: Path, kind: str, limits: Limits) -> None:
    """Raise :class:`LayeredError` unless ``path`` is an existing file that is neither empty nor too large."""
    if not path.is_file():
        raise invalid(kind, str(path), "an existing file")
    size = path.stat().st_size
    if not 0 < size <= limits.max_file_bytes:
        raise invalid(
            f"size of {path.name}",
            f"{size:,} bytes",
            f"1..{limits.max_file_bytes:,} bytes",
            "" if size else "The file is empty",
        )
