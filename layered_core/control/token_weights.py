"""Weigh a change of a transformer's tokens by where they lie on the canvas.

A control that patches a transformer changes its image tokens in place. The change is weighed as
``before + (after - before) * weight``, with one weight for each patch of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import invalid
from .control_map import centre_crop, on_grid


@dataclass(frozen=True)
class PictureTokens:
    """Where the tokens of the picture that is sampled stand among all image tokens of a transformer."""

    cells: tuple[int, int]
    """Height and width of the latent, cells."""
    patch: int
    """Side of a token's square, cells."""
    frames: int
    """Number of pictures in the latent: frames of a video, or layers. A still picture has 1."""
    start: int
    """Index of the picture's first token."""
    total: int
    """Number of all image tokens: before the picture's own may stand others, and after it reference pictures
    and padding."""

    @classmethod
    def find(
        cls, total: int, cells: tuple[int, int], patch: int, *, frames: int = 1, multiple: int = 1,
        before: int = 0, after: int = 0, at_end: bool = False,
    ) -> PictureTokens:  # fmt: skip
        """Return where the picture's tokens are among ``total`` ones.

        Args:
            total: number of image tokens.
            cells: height and width of the latent, cells.
            patch: side of a token's square in cells.
            frames: number of pictures in the latent.
            multiple: the model pads a picture's tokens to a multiple of it.
            before: number of tokens before the picture's.
            after: number of the tokens after them that are known; more may follow.
            at_end: whether the picture's tokens, with their padding, are the last ones.

        Raises:
            LayeredError: there are fewer tokens than the picture has patches.
        """
        patches = frames * -(-cells[0] // patch) * -(-cells[1] // patch)
        needed = patches + -patches % multiple
        if total - before - after < needed:
            where = "a patched model's number of image tokens"
            allowed = f"{needed} or more for a latent of {cells[1]}x{cells[0]} cells"
            raise invalid(
                where, total - before - after, allowed, "Sample the whole latent at once, without tiles"
            )
        return cls(cells, patch, frames, total - needed if at_end else before, total)

    def weights(self, weight: Tensor) -> Tensor:
        """Return the weight of every token, ``[total]``: in the picture that of its patch, elsewhere the mean
        over the picture, as those tokens have no place.

        Args:
            weight: ``[H, W]`` over the canvas, of any size.
        """
        own = patch_weights(weight, self.cells, self.patch).flatten().repeat(self.frames)
        out = own.mean().repeat(self.total)
        out[self.start : self.start + len(own)] = own
        return out


def patch_weights(weight: Tensor, cells: tuple[int, int], patch: int) -> Tensor:
    """Return the mean of a map ``[H, W]`` over each patch of a latent, ``[rows, columns]``.

    The map is cropped to the latent's aspect ratio as ComfyUI crops a hint. Where the model pads the latent to
    whole patches, the edge is repeated.
    """
    height, width = cells
    small = on_grid(centre_crop(weight, height, width), cells)
    padding = (0, -width % patch, 0, -height % patch)
    return functional.avg_pool2d(functional.pad(small[None, None], padding, mode="replicate"), patch)[0, 0]


def weighed(before: Tensor, after: Tensor, weight: Tensor | float) -> Tensor:
    """Return ``before + (after - before) * weight``: where the weight is 0, ``before`` to the bit, and where it
    is 1, ``after``.

    Args:
        before: features, ``[B, ..., C]``.
        after: the same, changed.
        weight: a number, or weights that can be broadcast.
    """
    if not isinstance(weight, Tensor):
        return before if weight == 0 else after if weight == 1 else before + (after - before) * weight
    mixed = before + (after - before) * weight.to(before.dtype)
    return torch.where(weight == 0, before, torch.where(weight == 1, after, mixed))
