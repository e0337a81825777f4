"""The four parts that a picture is taken apart with. Any class with the method of one can be that part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture to be taken apart, or a part of one that is looked at again."""

    pixels: Tensor
    """RGB, ``[3, H, W]`` in 0..1."""
    file: Path | None = None
    """The file that it was read from; None for a picture that is not a file's."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.pixels.shape[-2]), int(self.pixels.shape[-1])


@dataclass(frozen=True)
class Caption:
    """A description of a picture in words."""

    text: str
    """The whole picture."""
    phrases: tuple[str, ...] = ()
    """The things in it that become layers, the most important first."""
    background: str = ""
    """What is behind the things. Neutral: empty, then :attr:`text`."""


@dataclass(frozen=True, eq=False)
class Found:
    """A thing that a segmenter found."""

    phrase: str
    """The phrase that it was found by."""
    mask: Tensor
    """``[H, W]`` in 0..1, 1 where the thing is; where another thing covers it, too, if the segmenter knows that."""
    score: float
    """The segmenter's confidence, 0..1."""


class Captioner(Protocol):
    """Describes pictures."""

    def describe(self, picture: Picture) -> Caption:
        """Return a description of a picture.

        Raises:
            LayeredError: this picture cannot be described; it is then left out with the error's text.
        """
        ...


class Segmenter(Protocol):
    """Finds things in pictures."""

    def find(self, picture: Picture, phrases: Sequence[str]) -> list[Found]:
        """Return where the things that ``phrases`` name are, any number for each.

        Raises:
            LayeredError: as :meth:`Captioner.describe`.
        """
        ...


class Depth(Protocol):
    """Tells which things are in front of others."""

    def order(self, picture: Picture, masks: Tensor) -> Sequence[int]:
        """Return the indices of ``masks`` ``[K, H, W]``, each once, from the farthest to the nearest.

        Raises:
            LayeredError: as :meth:`Captioner.describe`.
        """
        ...


class Inpainter(Protocol):
    """Paints what is behind things."""

    def fill(self, picture: Picture, hole: Tensor, words: str) -> Tensor:
        """Return the picture, ``[3, H, W]`` in 0..1, with ``words`` painted where ``hole`` ``[H, W]`` is 1. Pixels
        where it is 0 do not count.

        Raises:
            LayeredError: as :meth:`Captioner.describe`.
        """
        ...


def looks(part: object) -> bool:
    """Return whether a part looks at the pixels it gets. One that only reads files has an attribute ``looks`` that is
    False: it cannot examine a picture that was just made."""
    return bool(getattr(part, "looks", True))
