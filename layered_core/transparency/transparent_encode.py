"""Encode a transparent picture to latents: colours are padded under transparent pixels and laid on grey, and
alpha becomes an offset of the latents.

Source: the encoder of lllyasviel/LayerDiffuse_DiffusersCLI and sd-forge-layerdiffuse; algorithms.md §2.4 [V].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.resizing import resized
from ..errors import check_number, invalid
from .transparent_networks import CELL, TransparentEncoder, over_mid_grey, to_file_order

Posterior = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A VAE's encoding: a picture ``[B, 3, H, W]`` in 0..1 to the mean and standard deviation of its latents,
each ``[B, C, H/8, W/8]``."""

RATIO = 1.2
"""Ratio of the sides of consecutive levels of the padding pyramid."""


@torch.no_grad()
def encode(
    encoder: TransparentEncoder, rgba: Tensor, posterior: Posterior, offset_scale: float = 1.0
) -> Tensor:
    """Compute the latents of a transparent picture in the VAE's space:
    ``mean + deviation * offset_scale * offset``, ``[B, C, H/8, W/8]``.

    The offset replaces the noise that an ordinary encoding samples.

    Args:
        encoder: of any floating dtype, on any device.
        rgba: ``[B, 4, H, W]``, 0..1, straight alpha; sides are multiples of 8, see :func:`crop_to_cells`.
        posterior: the ordinary VAE's encoding; the deviation is 1 for a VAE without one.
        offset_scale: the factor that the encoder's file needs, 1 or 300; see ``offset_scale`` of the
            published files.

    Raises:
        LayeredError: a side is no multiple of 8, or the encoder is for another VAE.
    """
    check_number("offset scale", offset_scale, 0, 1000)
    height, width = rgba.shape[2:]
    if height % CELL or width % CELL or not height or not width:
        raise invalid("image's size", f"{width}x{height}", f"multiples of {CELL} pixels", "Scale or crop it")
    padded = torch.cat([pad_colours(rgba), rgba[:, 3:]], 1)
    mean, deviation = posterior(over_mid_grey(padded))
    if mean.shape[1] != encoder.latent_channels:
        raise invalid(
            "VAE: latent channels",
            mean.shape[1],
            f"{encoder.latent_channels}, as the encoder was made for",
            "Load the VAE of its family",
        )
    weight = next(encoder.parameters())
    offset: Tensor = encoder(to_file_order(padded, encoder.latent_channels).to(weight)).to(mean)
    return mean + deviation * offset_scale * offset


def with_alpha(picture: Tensor, alpha: Tensor | None) -> Tensor:
    """Combine a picture and an alpha to RGBA ``[B, 4, H, W]`` in float32, 0..1.

    Args:
        picture: ``[B or 1, 3 or 4, H, W]``; three channels are opaque.
        alpha: ``[B or 1, h, w]``, 1 is opaque; it is scaled to the picture's size and replaces the picture's
            own alpha. None: the picture's own.

    Raises:
        LayeredError: both batches have more than one row, and their sizes differ.
    """
    picture = picture.float()
    if alpha is not None:
        if len({len(picture), len(alpha)} - {1}) > 1:
            raise invalid("mask: batch size", len(alpha), f"1 or {len(picture)}, as many as pictures")
        picture = picture.expand(max(len(picture), len(alpha)), -1, -1, -1)
        own = resized(alpha.float()[:, None], *picture.shape[2:])
    else:
        own = picture[:, 3:4] if picture.shape[1] > 3 else torch.ones_like(picture[:, :1])
    return torch.cat([picture[:, :3], own.to(picture).expand(len(picture), -1, -1, -1)], 1).clamp(0, 1)


def crop_to_cells(picture: Tensor) -> Tensor:
    """Crop ``[B, C, H, W]`` around its centre to sides that are multiples of 8, as ComfyUI's VAE Encode does.

    Raises:
        LayeredError: a side is below 8.
    """
    if min(picture.shape[2:]) < CELL:
        raise invalid(
            "image's size", f"{picture.shape[3]}x{picture.shape[2]}", f"at least {CELL}x{CELL} pixels"
        )
    height, width = (side // CELL * CELL for side in picture.shape[2:])
    top, left = ((side % CELL) // 2 for side in picture.shape[2:])
    return picture[:, :, top : top + height, left : left + width]


def pad_colours(rgba: Tensor) -> Tensor:
    """Return straight colours ``[B, 3, H, W]`` in which pixels with alpha 0 have the colours of nearby
    pixels.

    This uses a pyramid of premultiplied colour and alpha down to a side of 1. Starting with the mean colour
    at its top, each level lays its own colours over the enlarged result of the smaller level:
    ``f <- c + (1 - a) f``. Colours stay unchanged where alpha is 1; a fully transparent picture becomes
    black.

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


def _area_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Reduce ``[B, C, H, W]`` to ``height`` x ``width`` by the mean over the area that each new pixel
    covers."""
    return _overlaps(x.shape[2], height).to(x) @ x @ _overlaps(x.shape[3], width).to(x).mT


def _overlaps(before: int, after: int) -> Tensor:
    """Return the share of each of ``before`` pixels in each of ``after`` pixels of the same line,
    ``[after, before]``; rows sum to 1."""
    ends = torch.arange(after, dtype=torch.float64)[:, None] * before / after
    starts = torch.arange(before, dtype=torch.float64)
    overlap = torch.minimum(ends + before / after, starts + 1) - torch.maximum(ends, starts)
    return overlap.clamp_min(0) * after / before
