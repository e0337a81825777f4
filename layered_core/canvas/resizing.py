"""Pictures and masks at other sizes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..progress import steps

_LARGE = 2**26
"""Values of pictures that are not scaled all at once."""


def resized(pictures: Tensor, height: int, width: int) -> Tensor:
    """Return pictures or masks ``[..., H, W]`` at another size, ``[..., height, width]``: bilinear, and smoothed
    first where it shrinks. A picture of that size already is returned as it is."""
    if pictures.shape[-2:] == (height, width):
        return pictures
    flat = pictures.reshape(1, -1, *pictures.shape[-2:])
    if flat.numel() > _LARGE:  # channel by channel, which needs less memory and can be stopped
        out = flat.new_empty(1, flat.shape[1], height, width)
        for channel in steps(range(flat.shape[1])):
            out[:, channel] = _interpolated(flat[:, channel, None], height, width)[:, 0]
    else:
        out = _interpolated(flat, height, width)
    return out.reshape(*pictures.shape[:-2], height, width)


def _interpolated(flat: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(flat, (height, width), mode="bilinear", antialias=True)
