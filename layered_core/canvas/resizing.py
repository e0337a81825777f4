"""Pictures and masks at other sizes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def resized(pictures: Tensor, height: int, width: int) -> Tensor:
    """Return pictures or masks ``[..., H, W]`` at another size, ``[..., height, width]``: bilinear, and smoothed
    first where it shrinks. A picture of that size already is returned as it is."""
    if pictures.shape[-2:] == (height, width):
        return pictures
    flat = pictures.reshape(1, -1, *pictures.shape[-2:])
    out = functional.interpolate(flat, (height, width), mode="bilinear", antialias=True)
    return out.reshape(*pictures.shape[:-2], height, width)
