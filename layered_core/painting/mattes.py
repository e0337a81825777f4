"""Mattes: the alpha of a new layer in a changed picture, and its colours without those that show through."""

from __future__ import annotations

import torch
from torch import Tensor

from ..canvas.colour import linear_to_srgb, srgb_to_linear
from ..canvas.soft_masks import grow
from ..errors import invalid
from ..progress import row_bands, steps

MATTES = ("difference", "mask")
"""Sources of a new layer's alpha: ``difference``, where the picture changed; ``mask``, where it was allowed
to."""


def difference_matte(
    before: Tensor, after: Tensor, low: float = 0.06, high: float = 0.18, close: int = 2
) -> Tensor:
    """Compute how much of each pixel a new layer covers, from how far the picture has changed there.

    ``alpha = clamp((d - low) / (high - low), 0, 1)`` with d the greatest difference of a channel. Holes up to
    ``2 * close`` wide are closed, and an alpha above 0 is at least :func:`least_alpha`. So the layer that
    :func:`uncovered` returns, laid over ``before``, gives ``after`` wherever alpha is above 0; elsewhere it
    differs by at most ``low``. This is difference keying as in Smith and Blinn, *Blue Screen Matting*,
    SIGGRAPH 1996, with each pixel's own backing colour.

    Args:
        before: ``[3, H, W]`` in 0..1, without the new layer.
        after: ``[3, H, W]``, with it.
        low: differences up to this give alpha 0, 0..1.
        high: differences from this on give alpha 1, ``low``..1.
        close: half the width of the holes that are closed, pixels.

    Returns:
        ``[H, W]`` in 0..1.
    """
    height, width = before.shape[-2:]
    out = before.new_empty(height, width)
    for rows in steps(row_bands(height, width, 3)):
        # As many rows more as reach a pixel when holes are closed.
        around = slice(max(0, rows.start - 2 * close), rows.stop + 2 * close)
        alpha = _closed_matte(before[:, around], after[:, around], low, high, close)
        alpha = alpha[rows.start - around.start :][: rows.stop - rows.start]
        least = least_alpha(before[:, rows], after[:, rows])
        out[rows] = torch.where(alpha > 0, torch.maximum(alpha, least), 0.0)
    return out


def _closed_matte(before: Tensor, after: Tensor, low: float, high: float, close: int) -> Tensor:
    difference = (after - before).abs().amax(0)
    alpha = ((difference - low) / max(high - low, 1e-6)).clamp(0, 1)
    return torch.maximum(alpha, grow(grow(alpha, close), -close))


def least_alpha(before: Tensor, after: Tensor) -> Tensor:
    """Compute the least alpha with which some colour in 0..1 laid over ``before`` gives ``after``; both are
    ``[3, H, W]``, the result is ``[H, W]``."""
    up = (after - before) / (1 - before).clamp_min(1e-6)
    down = (before - after) / before.clamp_min(1e-6)
    return torch.maximum(up, down).amax(0).clamp(0, 1)


def uncovered(before: Tensor, after: Tensor, alpha: Tensor, linear: bool = False) -> Tensor:
    """Compute the layer that, laid over ``before`` with ``alpha``, gives ``after``:
    ``F = (after - (1 - alpha) * before) / alpha``, clamped to 0..1.

    Args:
        before: ``[3, H, W]`` in 0..1.
        after: ``[3, H, W]``.
        alpha: ``[H, W]`` in 0..1.
        linear: whether the layer will be composited in linear light, as by ComfyUI's compositor, instead of
            in sRGB.

    Returns:
        RGBA ``[H, W, 4]``, straight alpha; colour 0 where alpha is 0, and exactly ``after`` where it is 1.
    """
    height, width = alpha.shape
    out = alpha.new_empty(height, width, 4)
    for rows in steps(row_bands(height, width, 4)):
        out[rows, :, :3] = _uncovered(before[:, rows], after[:, rows], alpha[rows], linear).movedim(0, -1)
        out[rows, :, 3] = alpha[rows]
    return out


def _uncovered(before: Tensor, after: Tensor, alpha: Tensor, linear: bool) -> Tensor:
    """Return the colours of :func:`uncovered`, ``[3, H, W]``."""
    back, front = (srgb_to_linear(before), srgb_to_linear(after)) if linear else (before, after)
    colour = ((front - (1 - alpha) * back) / alpha.clamp_min(1e-6)).clamp(0, 1)
    if linear:
        colour = linear_to_srgb(colour)
    return torch.where(alpha > 0, torch.where(alpha < 1, colour, after), 0.0)


def stage_alpha(before: Tensor, after: Tensor, mask: Tensor, alpha: str) -> Tensor:
    """Return the alpha of the layer that a stage added, ``[H, W]``: its soft mask, or the
    :func:`difference_matte` inside it.

    Args:
        before: ``[3, H, W]`` in 0..1, the picture before the stage.
        after: ``[3, H, W]``, the picture after it.
        mask: ``[H, W]`` in 0..1, where the stage could paint.
        alpha: one of ``MATTES``.
    """
    if alpha not in MATTES:
        raise invalid("alpha", alpha, ", ".join(MATTES))
    return mask if alpha == "mask" else difference_matte(before, after) * (mask > 0)
