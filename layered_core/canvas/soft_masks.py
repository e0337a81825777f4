"""Soft masks: grow, feather and blur them, and mix two pictures by a mask so that pixels outside it stay
exact."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..progress import pause, row_bands, steps


def keep_outside(changed: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
    """Return ``mask * changed + (1 - mask) * kept``, exactly ``kept`` where the mask is 0 and exactly
    ``changed`` where it is 1.

    On pictures this is a soft paste. On latents after every step, with ``kept`` noised to the current level,
    it is blended latent diffusion (Avrahami et al., arXiv 2206.02779 section 3.2).

    Args:
        changed: ``[..., H, W]``.
        kept: of the same shape.
        mask: ``[H, W]`` or any shape that broadcasts, 0..1, 1 where ``changed`` is shown.
    """
    mixed = torch.lerp(kept, changed, mask.to(kept.dtype).expand_as(kept))
    return torch.where(mask > 0, torch.where(mask < 1, mixed, changed), kept)


def grow(mask: Tensor, pixels: int) -> Tensor:
    """Grow the mask ``[H, W]`` by ``pixels`` on every side, or shrink it if negative: the greatest or least
    value of the square around each pixel."""
    if pixels == 0:
        return mask
    sign = 1 if pixels > 0 else -1
    # One axis after the other gives the same as a square and is faster.
    across = _greatest_along_rows(sign * mask, abs(pixels))
    return sign * _greatest_along_rows(across.mT, abs(pixels)).mT.contiguous()


def _greatest_along_rows(mask: Tensor, reach: int) -> Tensor:
    """Return the greatest value within ``reach`` pixels to the left and right of each pixel: windows that double
    until two of them, side by side or overlapping, are as wide as needed."""
    size, covered = 2 * reach + 1, 1
    greatest = functional.pad(mask, (reach, reach), value=-math.inf)
    while covered < size:
        pause()
        by = min(covered, size - covered)
        greatest = torch.maximum(greatest[:, :-by], greatest[:, by:])
        covered += by
    return greatest


def feather(mask: Tensor, pixels: int) -> Tensor:
    """Add a soft border outside the mask ``[H, W]``: unchanged inside, exactly 0 more than ``pixels`` away
    from it."""
    outer = grow(mask, (pixels + 1) // 2)
    reach = pixels // 2
    if reach == 0:
        return outer
    ramp = 1 + reach - torch.arange(-reach, reach + 1, dtype=mask.dtype, device=mask.device).abs()
    return torch.maximum(_convolved(outer, ramp / ramp.sum()).clamp(0, 1), mask)


def gaussian_blur(pictures: Tensor, deviation: float) -> Tensor:
    """Blur ``[..., H, W]`` with a Gaussian of standard deviation ``deviation`` in pixels; 0 changes nothing.
    Edge pixels are repeated outside."""
    if deviation <= 0:
        return pictures
    reach = max(1, math.ceil(3 * deviation))
    x = torch.arange(-reach, reach + 1, dtype=pictures.dtype, device=pictures.device)
    kernel = torch.exp(-0.5 * (x / deviation) ** 2)
    return _convolved(pictures, kernel / kernel.sum())


def _convolved(pictures: Tensor, kernel: Tensor) -> Tensor:
    """Convolve ``[..., H, W]`` with one kernel along both axes; edge pixels are repeated outside."""
    reach = len(kernel) // 2
    flat = pictures.reshape(-1, 1, *pictures.shape[-2:])

    def down(x: Tensor) -> Tensor:
        padded = functional.pad(x, (0, 0, reach, reach), mode="replicate")
        return functional.conv2d(padded, kernel[None, None, :, None])

    def across(x: Tensor) -> Tensor:
        padded = functional.pad(x, (reach, reach, 0, 0), mode="replicate")
        return functional.conv2d(padded, kernel[None, None, None, :])

    flat = _in_bands(across, _in_bands(down, flat, len(kernel), -1), len(kernel), -2)
    return flat.reshape(pictures.shape)


def _in_bands(filtered: Callable[[Tensor], Tensor], x: Tensor, size: int, axis: int) -> Tensor:
    """Filter ``[..., H, W]`` by a filter of ``size`` pixels along the other axis than ``axis``, in bands of ``axis``
    if that takes long."""
    length = x.shape[axis]
    bands = row_bands(length, x.numel() // length, size, 2**29)
    if len(bands) == 1:
        return filtered(x)
    return torch.cat([filtered(x.narrow(axis, b.start, b.stop - b.start)) for b in steps(bands)], axis)
