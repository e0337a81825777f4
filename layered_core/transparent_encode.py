"""A transparent picture to latents: colours padded under its holes, laid on grey, and its alpha as an offset of the latents.

Source: the encoder of lllyasviel/LayerDiffuse_DiffusersCLI and sd-forge-layerdiffuse; algorithms.md §2.4 [V].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

RATIO = 1.2
"""Side of one level of the padding pyramid over that of the next smaller one."""


def pad_colours(rgba: Tensor) -> Tensor:
    """Straight colours ``[B, 3, H, W]`` in which every pixel under alpha 0 has the colour of what is near it.

    A pyramid of premultiplied colour and alpha down to a side of 1; from the mean colour at its top each level lays its own colours over the
    enlarged level above: ``f <- c + (1 - a) f``. Where alpha is 1 colours stay as they are; a picture that is all transparent becomes black.

    Args:
        rgba: ``[B, 4, H, W]``, 0..1, straight alpha.
    """
    alpha = rgba[:, 3:]
    levels = [torch.cat([rgba[:, :3] * alpha, alpha], 1)]
    while min(levels[-1].shape[2:]) > 1:
        height, width = (max(int(side / RATIO), 1) for side in levels[-1].shape[2:])
        levels.append(_area_resize(levels[-1], height, width))
    total = levels[-1].sum((2, 3), keepdim=True)
    colours = total[:, :3] / total[:, 3:].clamp_min(1e-8)
    for level in reversed(levels):
        colours = functional.interpolate(colours, level.shape[2:], mode="bilinear", align_corners=False)
        colours = level[:, :3] + colours * (1 - level[:, 3:])
    return colours


def on_grey(colours: Tensor, alpha: Tensor) -> Tensor:
    """What the VAE encodes: straight colours ``[B, 3, H, W]`` in 0..1 over mid-grey, ``(2 c - 1) a / 2 + 1/2``; ``alpha`` ``[B, 1, H, W]``."""
    return (colours - 0.5) * alpha + 0.5


def _area_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Means over the areas that the smaller pixels cover."""
    return _overlaps(x.shape[2], height).to(x) @ x @ _overlaps(x.shape[3], width).to(x).mT


def _overlaps(before: int, after: int) -> Tensor:
    """Share of each of ``before`` pixels in each of ``after`` pixels of the same line, ``[after, before]``; rows sum to 1."""
    ends = torch.arange(after, dtype=torch.float64)[:, None] * before / after
    starts = torch.arange(before, dtype=torch.float64)
    overlap = torch.minimum(ends + before / after, starts + 1) - torch.maximum(ends, starts)
    return overlap.clamp_min(0) * after / before
