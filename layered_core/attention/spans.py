"""Where texts, picture and references stand in a transformer's sequence of tokens, told as ranges.

Families order their tokens differently, and diffusers orders some of them otherwise than ComfyUI; therefore
nothing here relies on an order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.masks import mask_pyramid
from ..errors import LayeredError

NONE = range(0)


@dataclass(frozen=True)
class Spans:
    """The tokens of one attention call, N in all. Tokens in none of the ranges, such as reference pictures and
    their padding, are read by the picture and read what the picture reads."""

    length: int
    """N, number of tokens."""
    main: range
    """Text of the whole picture."""
    texts: tuple[range, ...]
    """Own text of every region; empty for a region without one."""
    image: range
    """Pixels of the picture, frame by frame, each in reading order."""
    grid: tuple[int, int]
    """Height and width of a frame, tokens."""
    pads: range = NONE
    """Padding that belongs to the text of the whole picture."""
    closed: range = NONE
    """Tokens that nobody reads."""

    def __post_init__(self) -> None:
        placed = sorted(
            (r.start, r.stop) for r in (self.main, *self.texts, self.image, self.pads, self.closed) if r
        )
        pixels = self.grid[0] * self.grid[1]
        edges = [0, *(edge for place in placed for edge in place), self.length]
        if edges != sorted(edges):
            raise LayeredError(f"tokens of a transformer: spans {self} overlap, or lie outside the sequence")
        if pixels < 1 or len(self.image) % pixels:
            raise LayeredError(
                f"tokens of a transformer: {len(self.image)} tokens of the picture, which is no multiple of "
                f"{self.grid[0]} x {self.grid[1]}"
            )

    @property
    def frames(self) -> int:
        """Number of frames, 1 for a picture."""
        return len(self.image) // (self.grid[0] * self.grid[1])

    def others(self) -> Tensor:
        """Return the tokens in none of the ranges, int64 ``[R]``."""
        free = torch.ones(self.length, dtype=torch.bool)
        for r in (self.main, *self.texts, self.image, self.pads, self.closed):
            free[r.start : r.stop] = False
        return free.nonzero()[:, 0]


def tokens(*ranges: range) -> Tensor:
    """Return the indices in ``ranges``, int64 ``[T]``."""
    return torch.cat([torch.arange(r.start, r.stop) for r in ranges])


def patch_masks(masks: Tensor, latent: tuple[int, int], patch: int) -> Tensor:
    """Return the masks ``[L, H, W]`` of a canvas on the grid of a transformer's patches, ``[L, h', w']``.

    Args:
        masks: 0..1.
        latent: height and width of the latents, h and w, which the canvas covers.
        patch: side of a patch, latent cells. Sides of latents that are no multiple of it are filled up with
            the edge's values, as the models fill up the latents.
    """
    cells = mask_pyramid(masks, [latent])[0]
    if patch == 1:
        return cells
    down, across = -latent[0] % patch, -latent[1] % patch
    padded = functional.pad(cells[None], (0, across, 0, down), mode="replicate")[0]
    return functional.avg_pool2d(padded, patch)
