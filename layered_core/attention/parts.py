"""Find out which part of a picture a host samples, where it samples tile by tile."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """A part of the sampled picture, latent cells."""

    top: int
    bottom: int
    """Exclusive."""
    left: int
    right: int
    """Exclusive."""
    height: int
    """Height of the whole picture."""
    width: int
    """Width of the whole picture."""

    def cut(self, masks: Tensor) -> Tensor:
        """Return this part of masks ``[L, H, W]`` of the whole picture; at least one pixel."""
        down, across = masks.shape[-2] / self.height, masks.shape[-1] / self.width
        top, left = int(self.top * down), int(self.left * across)
        bottom, right = max(top + 1, round(self.bottom * down)), max(left + 1, round(self.right * across))
        return masks[..., top:bottom, left:right]


def find_part(part: Tensor, whole: Tensor) -> Part | None:
    """Return where the noisy latents ``whole`` ``[C, H, W]`` hold ``part`` ``[C, h, w]``, equal to the bit; None
    if they do not. Noise makes every place unlike the others."""
    height, width = part.shape[-2:]
    rows, columns = whole.shape[-2] - height + 1, whole.shape[-1] - width + 1
    if rows < 1 or columns < 1:
        return None
    corners = (whole[:, :rows, :columns] == part[:, :1, :1]).all(0)
    for top, left in corners.nonzero().tolist():
        if torch.equal(whole[:, top : top + height, left : left + width], part):
            return Part(top, top + height, left, left + width, whole.shape[-2], whole.shape[-1])
    return None
