"""How well a picture keeps to its layers: layout, leakage, what changed outside a mask, edges, alpha,
harmony, words.

Every function takes what some detector found and what was wanted; none knows the detector. Soft masks are
taken as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import invalid

BEST_PSNR = 100.0
"""What :func:`psnr` gives where nothing differs, dB: means stay finite."""


# --- layout ---


# --- what is where ---


# --- what changed ---


def outside_mse(picture: Tensor, original: Tensor, mask: Tensor) -> float:
    """Mean squared difference of ``[C, H, W]`` pictures in 0..1 where ``mask`` [H, W] is 0; NaN where it is 0
    nowhere."""
    return float((picture - original).square()[:, mask == 0].mean())


def differing_pixels(picture: Tensor, original: Tensor, mask: Tensor) -> int:
    """Number of pixels outside ``mask`` [H, W] (0 there) whose 8-bit values differ in any channel; pictures
    ``[C, H, W]`` in 0..1."""
    a, b = ((x.clamp(0, 1) * 255).round() for x in (picture, original))
    return int(((a != b).any(0) & (mask == 0)).sum())


def psnr(mse: float) -> float:
    """Peak signal to noise ratio ``-10 log10(mse)`` of values in 0..1, dB; at most ``BEST_PSNR``."""
    return min(-10 * float(torch.log10(torch.tensor(max(mse, 1e-12)))), BEST_PSNR)


def seam_gradient_ratio(picture: Tensor, mask: Tensor, reach: int = 5) -> float:
    """How much steeper a picture is along a mask's border than around it; 1 is no seam, more is one.

    Mean length of the gradient of brightness within one pixel of the border of ``mask > 0.5``, over that
    within ``reach`` pixels but not in the first band; both plus 1/255, so that a flat picture gives 1.

    Args:
        picture: ``[3, H, W]`` in 0..1.
        mask: ``[H, W]``.
        reach: of the surroundings, pixels.

    Returns:
        NaN for a mask without border.
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
    """Length of the Sobel gradient of brightness, ``[3, H, W]`` or ``[H, W]`` in 0..1 to ``[H, W]``; a step
    of 1 gives 1. Edges repeat outside."""
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
    """F1 of edges: harmonic mean of the share of found edges near a wanted one and of wanted edges near a
    found one.

    After the boundary benchmark of Martin et al. (2004), with dilation in place of one-to-one matching.

    Args:
        found, wanted: edge maps, bool ``[H, W]``, e.g. ``gradient(picture) > 0.1``.
        tolerance: pixels, in the maximum norm.

    Returns:
        0..1; 1 where neither has an edge.
    """
    if not bool(found.any()) and not bool(wanted.any()):
        return 1.0

    def near(edges: Tensor) -> Tensor:
        return functional.max_pool2d(edges.float()[None, None], 2 * tolerance + 1, 1, tolerance)[0, 0] > 0

    precision = float((found & near(wanted)).sum() / found.sum().clamp_min(1))
    recall = float((wanted & near(found)).sum() / wanted.sum().clamp_min(1))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def alpha_psnr(alpha: Tensor, wanted: Tensor) -> float:
    """PSNR of an alpha matte ``[H, W]`` in 0..1, dB; at most ``BEST_PSNR``. Its IoU is :func:`mask_iou`."""
    return psnr(float((alpha - wanted).square().mean()))


def alpha_sad(alpha: Tensor, wanted: Tensor) -> float:
    """Sum of absolute differences of an alpha matte ``[H, W]`` in 0..1, in thousands, as matting papers give
    it (Rhemann et al. 2009)."""
    return float((alpha - wanted).abs().sum()) / 1000


# --- distributions, words ---


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of features as Gaussians:
    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``.

    Heusel et al., arXiv 1706.08500 section 3, where the features are Inception's. It is biased upwards in
    small sets: compare sets of one size only.

    Args:
        a, b: ``[N, D]`` and ``[M, D]``, at least two each.

    Returns:
        0 or more.
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
    """Square root of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return root


def text_similarity(image: Tensor, text: Tensor) -> Tensor:
    """Cosine of image and text vectors, at least 0, times 100: the CLIP score (Hessel et al., arXiv
    2104.08718, there times 250).

    Args:
        image, text: ``[B, D]`` of one encoder pair, CLIP's or any other.

    Returns:
        ``[B]`` in 0..100; 0 where a vector is zero.
    """
    return 100 * functional.cosine_similarity(image.float(), text.float(), dim=-1).clamp_min(0)
