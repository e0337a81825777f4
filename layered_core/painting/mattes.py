"""Mattes: which part of a changed picture is the new layer, and its colours freed of what shows through."""

from __future__ import annotations

import torch
from torch import Tensor

from ..canvas.colour import linear_to_srgb, srgb_to_linear
from ..canvas.soft_masks import grow
from ..errors import invalid

MATTES = ("difference", "mask")
"""Where the alpha of what was painted into a picture comes from: what changed, or where it was allowed to."""


def difference_matte(
    before: Tensor, after: Tensor, low: float = 0.06, high: float = 0.18, close: int = 2
) -> Tensor:
    """How much of each pixel something new covers, judged by how far the picture has changed there.

    ``alpha = clamp((d - low) / (high - low), 0, 1)`` with d the greatest difference of a channel, holes up to
    ``2 * close`` wide closed, and where that is above 0 never less than :func:`least_alpha`; so the layer of
    :func:`uncovered` over ``before`` is ``after`` wherever alpha is above 0, and differs by ``low`` at most
    elsewhere. Difference keying as in Smith and Blinn, *Blue Screen Matting*, SIGGRAPH 1996, with each
    pixel's own backing colour.

    Args:
        before: ``[3, H, W]`` in 0..1, without the thing.
        after: ``[3, H, W]``, with it.
        low: differences up to this are none, 0..1.
        high: differences from this on are whole, ``low``..1.
        close: pixels.

    Returns:
        ``[H, W]`` in 0..1.
    """
    difference = (after - before).abs().amax(0)
    alpha = ((difference - low) / max(high - low, 1e-6)).clamp(0, 1)
    alpha = torch.maximum(alpha, grow(grow(alpha, close), -close))
    return torch.where(alpha > 0, torch.maximum(alpha, least_alpha(before, after)), 0.0)


def least_alpha(before: Tensor, after: Tensor) -> Tensor:
    """The least alpha with which some colour in 0..1 over ``before`` gives ``after``; both ``[3, H, W]``,
    result ``[H, W]``."""
    up = (after - before) / (1 - before).clamp_min(1e-6)
    down = (before - after) / before.clamp_min(1e-6)
    return torch.maximum(up, down).amax(0).clamp(0, 1)


def uncovered(before: Tensor, after: Tensor, alpha: Tensor, linear: bool = False) -> Tensor:
    """The layer that, laid over ``before`` with ``alpha``, gives ``after``:
    ``F = (after - (1 - alpha) * before) / alpha``, clamped to 0..1.

    Args:
        before: ``[3, H, W]`` in 0..1.
        after: ``[3, H, W]``.
        alpha: ``[H, W]`` in 0..1.
        linear: the layer will be laid over in linear light, as ComfyUI's compositor does, not in sRGB.

    Returns:
        RGBA ``[H, W, 4]``, straight alpha; colour 0 where alpha is, and ``after`` to the bit where it is 1.
    """
    back, front = (srgb_to_linear(before), srgb_to_linear(after)) if linear else (before, after)
    colour = ((front - (1 - alpha) * back) / alpha.clamp_min(1e-6)).clamp(0, 1)
    if linear:
        colour = linear_to_srgb(colour)
    colour = torch.where(alpha > 0, torch.where(alpha < 1, colour, after), 0.0)
    return torch.cat([colour, alpha[None]]).permute(1, 2, 0)


def stage_alpha(before: Tensor, after: Tensor, mask: Tensor, alpha: str) -> Tensor:
    """The alpha of what a stage added, ``[H, W]``: its soft mask, or the :func:`difference_matte` inside
    it."""
    if alpha not in MATTES:
        raise invalid("alpha", alpha, ", ".join(MATTES))
    return mask if alpha == "mask" else difference_matte(before, after) * (mask > 0)
