"""Figures of pictures: changes outside a mask, seams, edges, alpha, distributions of features, and agreement
with words."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import invalid

BEST_PSNR = 100.0
"""The value of :func:`psnr` for equal pictures, dB. It is finite, so that means are finite too."""


# --- changes outside a mask ---


def outside_mse(picture: Tensor, original: Tensor, mask: Tensor) -> float:
    """Compute the mean squared difference of ``[C, H, W]`` pictures in 0..1 where ``mask`` ``[H, W]`` is 0;
    NaN if it is 0 nowhere."""
    return float((picture - original).square()[:, mask == 0].mean())


def differing_pixels(picture: Tensor, original: Tensor, mask: Tensor) -> int:
    """Count the pixels outside ``mask`` ``[H, W]`` (where it is 0) whose 8-bit values differ in any channel;
    pictures are ``[C, H, W]`` in 0..1."""
    a, b = ((x.clamp(0, 1) * 255).round() for x in (picture, original))
    return int(((a != b).any(0) & (mask == 0)).sum())


def psnr(mse: float) -> float:
    """Compute the peak signal to noise ratio ``-10 log10(mse)`` of values in 0..1, dB; at most
    ``BEST_PSNR``."""
    return min(-10 * float(torch.log10(torch.tensor(max(mse, 1e-12)))), BEST_PSNR)


def seam_gradient_ratio(picture: Tensor, mask: Tensor, reach: int = 5) -> float:
    """Compute how much steeper a picture is along a mask's border than near it: about 1 without a seam, more
    with one.

    It is the mean length of the brightness gradient within one pixel of the border of ``mask > 0.5``, divided
    by that within ``reach`` pixels without the first band. 1/255 is added to both, so that a flat picture
    gives 1.

    Args:
        picture: ``[3, H, W]`` in 0..1.
        mask: ``[H, W]``.
        reach: width of the surroundings, pixels.

    Returns:
        the ratio; NaN for a mask without a border.
    """
    hard = (mask > 0.5).float()[None, None]

    def near(radius: int) -> Tensor:
        grown = functional.max_pool2d(hard, 2 * radius + 1, 1, radius)
        shrunk = -functional.max_pool2d(-hard, 2 * radius + 1, 1, radius)
        return (grown != shrunk)[0, 0]

    steep = gradient(picture)
    seam = near(1)
    around = near(reach) & ~seam
    return float((steep[seam].mean() + 1 / 255) / (steep[around].mean() + 1 / 255))


# --- edges, alpha ---


def gradient(picture: Tensor) -> Tensor:
    """Compute the length of the Sobel gradient of brightness, ``[3, H, W]`` or ``[H, W]`` in 0..1 to
    ``[H, W]``. A step of 1 gives 1; edge pixels are repeated outside."""
    grey = (
        picture.float()
        if picture.ndim == 2
        else torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), picture.float(), 1)
    )
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    padded = functional.pad(grey[None, None], (1, 1, 1, 1), mode="replicate")
    both = functional.conv2d(padded, torch.stack([sobel, sobel.T])[:, None])[0]
    return both.square().sum(0).sqrt()


def edge_f1(found: Tensor, wanted: Tensor, tolerance: int = 1) -> float:
    """Compute F1 of edges: the harmonic mean of precision (found edges near a wanted one) and recall (wanted
    edges near a found one).

    As in the boundary benchmark of Martin et al. (2004), but with dilation instead of one-to-one matching.

    Args:
        found, wanted: edge maps, bool ``[H, W]``, e.g. ``gradient(picture) > 0.1``.
        tolerance: greatest distance of matching edges, pixels, in the maximum norm.

    Returns:
        0..1; 1 if neither map has an edge.
    """
    if not bool(found.any()) and not bool(wanted.any()):
        return 1.0

    def near(edges: Tensor) -> Tensor:
        return functional.max_pool2d(edges.float()[None, None], 2 * tolerance + 1, 1, tolerance)[0, 0] > 0

    precision = float((found & near(wanted)).sum() / found.sum().clamp_min(1))
    recall = float((wanted & near(found)).sum() / wanted.sum().clamp_min(1))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def alpha_psnr(alpha: Tensor, wanted: Tensor) -> float:
    """Compute the PSNR of an alpha matte ``[H, W]`` in 0..1, dB; at most ``BEST_PSNR``. For its IoU use
    :func:`~.layout_metrics.mask_iou`."""
    return psnr(float((alpha - wanted).square().mean()))


def alpha_sad(alpha: Tensor, wanted: Tensor) -> float:
    """Compute the sum of absolute differences of an alpha matte ``[H, W]`` in 0..1, in thousands, as in
    matting papers (Rhemann et al. 2009)."""
    return float((alpha - wanted).abs().sum()) / 1000


# --- distributions, words ---


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Compute the Fréchet distance of two sets of features, taken as Gaussians:
    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``.

    Source: Heusel et al., arXiv 1706.08500 section 3, where the features are Inception's. The distance is
    biased
    upwards for small sets: compare only sets of the same size.

    Args:
        a, b: ``[N, D]`` and ``[M, D]``, at least two rows each.

    Returns:
        0 or more.

    Raises:
        LayeredError: a set has fewer than two rows.
    """
    for name, features in (("a", a), ("b", b)):
        if len(features) < 2:
            raise invalid(f"features {name}: number", len(features), "at least 2")
    a, b = a.double(), b.double()
    between = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(a.shape[1], -1)
    root = _root(cov_a)
    # The eigenvalues of C_a C_b are those of the symmetric C_a^1/2 C_b C_a^1/2.
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return max(float(between + cov_a.trace() + cov_b.trace() - 2 * overlap), 0.0)


def _root(matrix: Tensor) -> Tensor:
    """Return the square root of a symmetric positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return root


def text_similarity(image: Tensor, text: Tensor) -> Tensor:
    """Compute 100 times the cosine of image and text vectors, at least 0: the CLIP score (Hessel et al.,
    arXiv 2104.08718, there with the factor 2.5 on the cosine).

    Args:
        image, text: ``[B, D]`` from one pair of encoders, CLIP's or any other.

    Returns:
        ``[B]`` in 0..100; 0 if a vector is zero.
    """
    return 100 * functional.cosine_similarity(image.float(), text.float(), dim=-1).clamp_min(0)
