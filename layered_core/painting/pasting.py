"""Change a part of something and keep the rest to the bit: soft masks, and pastes without a seam."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.soft_masks import gaussian_blur, keep_outside

BLENDS = ("gradient", "multi-band", "feather")
"""How :func:`paste` joins a changed part to what surrounds it."""


# --- soft masks ---


# --- pastes ---


def paste(changed: Tensor, kept: Tensor, mask: Tensor, blend: str = "gradient") -> Tensor:
    """Put the changed part of a picture back; what lies where the mask is 0 stays equal to the bit.

    ``feather`` mixes by the mask. ``multi-band`` mixes broad differences over a wide border and fine ones
    over a narrow one (Burt and Adelson, *A Multiresolution Spline*, ACM TOG 1983), then by the mask.
    ``gradient`` shifts the changed part, at its border, to what it meets there, before it mixes (see
    :func:`meet_border`).

    Args:
        changed: ``[..., C, H, W]`` in 0..1.
        kept: of the same shape.
        mask: ``[H, W]`` in 0..1, 1 where the change shows whole.
        blend: one of ``BLENDS``.
    """
    if blend == "gradient":
        changed = meet_border(changed, kept, mask > 0)
    elif blend == "multi-band":
        changed = multi_band(changed, kept, mask)
    return keep_outside(changed, kept, mask).clamp(0, 1)


def match_colours(changed: Tensor, kept: Tensor, weight: Tensor) -> Tensor:
    """Bring ``changed`` to the colours of ``kept``: per channel the gain (0.8..1.25) and offset that fit
    best, least squares, where ``weight`` is.

    What a VAE or a low step count shifts is shifted back, as measured on the pixels that should be equal in
    both. Those that differ by more than 0.15 show something else and do not count.

    Args:
        changed: ``[C, H, W]`` in 0..1.
        kept: ``[C, H, W]``.
        weight: ``[H, W]``, how much each pixel counts, 0..1. With less than a quarter of the picture, which
            says little about the rest, nothing is changed.
    """
    weight = weight * ((changed - kept).abs().amax(0) <= 0.15)
    total = weight.sum()
    if total < weight.numel() / 4:
        return changed
    share = weight / total
    x, y = ((picture * share).sum((-1, -2), keepdim=True) for picture in (changed, kept))
    variance, covariance = (
        ((changed - x) * (picture - centre) * share).sum((-1, -2), keepdim=True)
        for picture, centre in ((changed, x), (kept, y))
    )
    # 1e-4, a deviation of 0.01, keeps flat surroundings from deciding about contrast.
    gain = ((covariance + 1e-4) / (variance + 1e-4)).clamp(0.8, 1.25)
    return (changed - x) * gain + y


def meet_border(
    changed: Tensor,
    kept: Tensor,
    inside: Tensor,
    reach: float = 8.0,
    limit: float = 0.15,
    tolerance: float = 1e-3,
) -> Tensor:
    """Shift ``changed`` so that it meets ``kept`` at the border of a region, and less and less further in.

    Seamless cloning by gradients (Pérez et al., *Poisson Image Editing*, SIGGRAPH 2003, equations 2-3) with a
    screening term that keeps colours deep inside: the shift u solves ``laplace(u) = u / reach^2`` inside,
    ``u = kept - changed`` on the pixels around. Conjugate gradients; about ten steps a pixel of ``reach`` at
    most.

    Args:
        changed: ``[..., C, H, W]``.
        kept: of the same shape.
        inside: bool ``[H, W]``.
        reach: after how many pixels the shift has fallen to 1/e. Infinite: never, as in the paper.
        limit: a greater difference at the border is not a shift of colour but another thing, which must not
            bleed: from here on it counts less, from twice this on not at all. Infinite: all count, as in the
            paper.
        tolerance: greatest residue that is left, in units of the values.
    """
    if not bool(inside.any()) or bool(inside.all()):
        return changed
    shape = changed.shape
    domain = inside.to(changed.dtype)
    shift = kept - changed
    if limit < math.inf:
        shift = shift * (2 - shift.abs().amax(-3, keepdim=True) / limit).clamp(0, 1)
    around = shift.reshape(-1, *shape[-2:]) * (1 - domain)
    screen = 1 / reach**2
    edge = functional.pad(torch.ones_like(domain)[None], (1, 1, 1, 1))
    neighbours = _four(edge)[0]

    def system(u: Tensor) -> Tensor:
        return domain * ((neighbours + screen) * u - _four(functional.pad(u, (1, 1, 1, 1))))

    u = torch.zeros_like(around)
    residue = domain * _four(functional.pad(around, (1, 1, 1, 1)))
    step, power = residue, residue.square().sum((-1, -2), keepdim=True)
    for _ in range(20 * max(shape[-2:])):
        if float(residue.abs().max()) < tolerance:
            break
        image = system(step)
        length = power / (step * image).sum((-1, -2), keepdim=True).clamp_min(1e-20)
        u, residue = u + length * step, residue - length * image
        before, power = power, residue.square().sum((-1, -2), keepdim=True)
        step = residue + step * power / before.clamp_min(1e-20)
    return changed + u.reshape(shape)


def _four(padded: Tensor) -> Tensor:
    """Sum of the four neighbours of every pixel of ``[C, H + 2, W + 2]``."""
    return padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]


def multi_band(changed: Tensor, kept: Tensor, mask: Tensor, levels: int = 4) -> Tensor:
    """Mix two pictures ``[..., H, W]`` band by band, each over a border as wide as its own detail (Burt and
    Adelson 1983); ``levels`` halvings."""
    flat, other = (x.reshape(1, -1, *x.shape[-2:]) for x in (changed, kept))
    share = mask.to(changed.dtype)[None, None]
    bands = []
    for _ in range(levels):
        if min(flat.shape[-2:]) < 4:
            break
        small = [
            functional.avg_pool2d(gaussian_blur(x, 1.0), 2, ceil_mode=True, count_include_pad=False)
            for x in (flat, other, share)
        ]
        size = flat.shape[-2:]
        fine = [x - _up(s, size) for x, s in zip((flat, other), small, strict=False)]
        bands.append((torch.lerp(fine[1], fine[0], share.expand_as(flat)), size))
        flat, other, share = small
    out = torch.lerp(other, flat, share.expand_as(flat))
    for band, size in reversed(bands):
        out = _up(out, size) + band
    return out.reshape(changed.shape)


def _up(pictures: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(pictures, tuple(size), mode="bilinear")
