"""Paste a changed part into a picture without a seam; pixels outside the mask stay exactly equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.soft_masks import gaussian_blur, keep_outside
from ..progress import pause

BLENDS = ("gradient", "multi-band", "feather")
"""Ways in which :func:`paste` blends a changed part with its surroundings."""


def paste(changed: Tensor, kept: Tensor, mask: Tensor, blend: str = "gradient") -> Tensor:
    """Paste the changed part of a picture; pixels where the mask is 0 stay exactly equal.

    * ``feather`` mixes by the mask.
    * ``multi-band`` mixes coarse detail over a wide border and fine detail over a narrow one (Burt and
      Adelson, *A Multiresolution Spline*, ACM TOG 1983), then mixes by the mask.
    * ``gradient`` first shifts the colours of the changed part so that they agree with ``kept`` at the border
      (see :func:`meet_border`), then mixes by the mask.

    Args:
        changed: ``[..., C, H, W]`` in 0..1.
        kept: the picture to paste into, of the same shape.
        mask: ``[H, W]`` in 0..1, 1 where only ``changed`` is shown.
        blend: one of ``BLENDS``.
    """
    if blend == "gradient":
        changed = meet_border(changed, kept, mask > 0)
    elif blend == "multi-band":
        changed = multi_band(changed, kept, mask)
    return keep_outside(changed, kept, mask).clamp(0, 1)


def match_colours(changed: Tensor, kept: Tensor, weight: Tensor) -> Tensor:
    """Match the colours of ``changed`` to ``kept``: each channel gets the gain (0.8..1.25) and offset that
    fit best by least squares, weighted by ``weight``.

    This undoes colour shifts of a VAE or of few steps, measured on pixels that should be equal in both
    pictures. Pixels that differ by more than 0.15 show something else and are not counted.

    Args:
        changed: ``[C, H, W]`` in 0..1.
        kept: ``[C, H, W]``.
        weight: ``[H, W]``, how much each pixel counts, 0..1. If the weights sum to less than a quarter of the
            picture, too few to judge the rest by, nothing is changed.
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
    # 1e-4, the variance of a deviation of 0.01, keeps flat surroundings from setting the gain.
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
    """Shift the colours of ``changed`` so that it agrees with ``kept`` at the border of a region; the shift
    fades towards the inside.

    This is seamless cloning (Pérez et al., *Poisson Image Editing*, SIGGRAPH 2003, equations 2-3) with a
    screening term that keeps the colours far from the border: the shift u solves ``laplace(u) = u / reach^2``
    inside, with ``u = kept - changed`` on the surrounding pixels. Solved by conjugate gradients, in at most
    about ten steps per pixel of ``reach``.

    Args:
        changed: ``[..., C, H, W]``.
        kept: of the same shape.
        inside: bool ``[H, W]``, the region.
        reach: distance in pixels over which the shift falls to 1/e. Infinite: it does not fall, as in the
            paper.
        limit: differences at the border above this are taken for another object instead of a colour shift:
            they count less, and from twice this on not at all. Infinite: all count, as in the paper.
        tolerance: greatest residual that is left, in units of the values.
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
    neighbours = _neighbour_sum(edge)[0]

    def system(u: Tensor) -> Tensor:
        return domain * ((neighbours + screen) * u - _neighbour_sum(functional.pad(u, (1, 1, 1, 1))))

    u = torch.zeros_like(around)
    residue = domain * _neighbour_sum(functional.pad(around, (1, 1, 1, 1)))
    step, power = residue, residue.square().sum((-1, -2), keepdim=True)
    for _ in range(20 * max(shape[-2:])):
        pause()
        if float(residue.abs().max()) < tolerance:
            break
        image = system(step)
        length = power / (step * image).sum((-1, -2), keepdim=True).clamp_min(1e-20)
        u, residue = u + length * step, residue - length * image
        before, power = power, residue.square().sum((-1, -2), keepdim=True)
        step = residue + step * power / before.clamp_min(1e-20)
    return changed + u.reshape(shape)


def _neighbour_sum(padded: Tensor) -> Tensor:
    """Return the sum of the four neighbours of every pixel, ``[C, H + 2, W + 2]`` to ``[C, H, W]``."""
    return padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]


def multi_band(changed: Tensor, kept: Tensor, mask: Tensor, levels: int = 4) -> Tensor:
    """Mix two pictures ``[..., H, W]`` band by band, each band over a border as wide as its detail (Burt and
    Adelson 1983). ``levels`` is the number of halvings of the pyramid."""
    flat, other = (x.reshape(1, -1, *x.shape[-2:]) for x in (changed, kept))
    share = mask.to(changed.dtype)[None, None]
    bands = []
    for _ in range(levels):
        pause()
        if min(flat.shape[-2:]) < 4:
            break
        small = [
            functional.avg_pool2d(gaussian_blur(x, 1.0), 2, ceil_mode=True, count_include_pad=False)
            for x in (flat, other, share)
        ]
        size = flat.shape[-2:]
        fine = [x - _enlarged(s, size) for x, s in zip((flat, other), small, strict=False)]
        bands.append((torch.lerp(fine[1], fine[0], share.expand_as(flat)), size))
        flat, other, share = small
    out = torch.lerp(other, flat, share.expand_as(flat))
    for band, size in reversed(bands):
        out = _enlarged(out, size) + band
    return out.reshape(changed.shape)


def _enlarged(pictures: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(pictures, tuple(size), mode="bilinear")
