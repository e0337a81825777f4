"""Where denoising starts, pixel by pixel: change maps, the thresholds that free them step by step, and the
change map of a document.

A change map m holds for every place how far it may change: 0 stays as it is, 1 is free from the start. While
the noise level of a run falls from 1 to 0, a place is pinned to the noised original until the level reaches
its m, then it denoises freely. With the level taken from the model's whole schedule (``absolute``) it is
Collage Diffusion's per-layer noise (arXiv 2303.00262 section 5); with that of the steps actually run
(``normalised``) it is Differential Diffusion (arXiv 2306.00950) as ComfyUI has it.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.masks import document_masks
from ..canvas.soft_masks import gaussian_blur
from ..document import LayerDocument
from ..errors import check_number

THRESHOLDS = ("absolute", "normalised")
"""Against what a change map is held: the model's whole schedule, or the steps that are run."""

NOISES = ("fixed", "fresh")
"""With what pinned places are noised: always the run's own noise, or new noise at every step."""


def noise_level(t: float, start: float, end: float) -> float:
    """Where a timestep lies between ``end`` (0) and ``start`` (1), clamped.

    Args:
        t: the present timestep, as the model's schedule counts them; any monotone count will do.
        start: where the level is 1: the schedule's noisiest timestep (``absolute``) or the run's first
            (``normalised``).
        end: where it is 0: the schedule's cleanest timestep, or the run's last.
    """
    if start == end:
        return 1.0 if t >= start else 0.0
    level = (t - end) / (start - end)
    return min(max(level, 0.0), 1.0) if math.isfinite(level) else 0.0


def schedule_place(sigma: float, sigmas: Tensor) -> int:
    """Which of a model's own noise levels ``[T]``, rising, is nearest to ``sigma`` in its logarithm: 0..T-1.

    As hosts count how much of a picture a run changes (ComfyUI's *denoise*, with its schedulers simple and
    normal). Flow models' timesteps do not tell: those are the noise levels themselves, which a shifted
    schedule does not space evenly.
    """
    return int((sigmas.double().log() - math.log(sigma)).abs().argmin()) if sigma > 0 else 0


def free_places(change: Tensor, level: float, dilation: float = 0.0, softness: float = 0.0) -> Tensor:
    """How free each place is at a noise level: 1 where ``m >= level``, 0 (pinned) elsewhere; ``m = 0`` never,
    ``m = 1`` always.

    Args:
        change: change map ``[..., h, w]`` in 0..1.
        level: noise level, 0..1, from :func:`noise_level`.
        dilation: how far pinned places reach into free ones at level 1, cells; in proportion at lower levels,
            rounded down. Collage Diffusion's code has 4. Neutral: 0.
        softness: width of the passage from pinned to free, in units of m:
            ``clamp((m - level) / softness + 1/2, 0, 1)``. Neutral: 0.

    Returns:
        ``[..., h, w]`` in 0..1, of ``change``'s dtype.
    """
    # A passage narrower than the numbers can tell apart is none, and would be divided by zero.
    soft = softness > torch.finfo(change.dtype).eps
    free = ((change - level) / softness + 0.5).clamp(0, 1) if soft else (change >= level).to(change.dtype)
    free = torch.where(change > 0, torch.where(change < 1, free, 1.0), 0.0).to(change.dtype)
    reach = int(dilation * level)
    if reach:
        flat = free.reshape(-1, 1, *free.shape[-2:])
        free = (1 - functional.max_pool2d(1 - flat, 2 * reach + 1, 1, reach)).reshape(free.shape)
    return free


def fresh_noise(noise: Tensor, level: float) -> Tensor:
    """White noise of the shape of ``noise``, independent of it and of every other ``level``'s; the same for
    the same arguments."""
    key = noise.detach().float().cpu().contiguous().numpy().tobytes()
    generator = torch.Generator().manual_seed(zlib.crc32(repr(level).encode(), zlib.crc32(key)))
    return torch.randn(noise.shape, generator=generator).to(noise)


def noise_map(document: LayerDocument, background: float = 1.0, blur: float = 0.0) -> Tensor:
    """The change map of a document: each pixel's layers' noise, weighted by how much of the pixel shows them.

    ``N = sum_i M_i * noise_i + M_background * background`` (Collage Diffusion section 5 with soft visible
    masks). A layer without a picture has nothing to keep and counts as 1.

    Args:
        document: the layers' ``recipe.noise`` says how far each may change.
        background: how far what no layer covers may change, 0..1.
        blur: standard deviation of a Gaussian blur of the map, pixels. Neutral: 0.

    Returns:
        ``[H, W]`` float32 in 0..1; where all noises are equal, exactly that number.

    Raises:
        LayeredError: ``background`` or ``blur`` is out of range.
    """
    check_number("noise map: blur", blur, 0, 1024)
    masks, noises = seen_noises(document, background)
    change = torch.einsum("l,lhw->hw", noises, masks)
    # Soft edges and blur sum to one only up to rounding.
    return gaussian_blur(change, blur).clamp(float(noises.min()), float(noises.max()))


def seen_noises(document: LayerDocument, background: float = 1.0) -> tuple[Tensor, Tensor]:
    """Visible masks ``[P, H, W]`` of the layers, and then of the background, that are seen anywhere; and the
    noise of each, ``[P]``.

    Arguments and errors as :func:`noise_map`.
    """
    check_number("background noise", background, 0, 1)
    shown, rest = document_masks(document)
    masks = torch.cat([shown, rest[None]])
    seen = masks.flatten(1).any(1)
    return masks[seen], torch.tensor(
        [*(1.0 if x.image is None else x.recipe.noise for x in document), background]
    )[seen]
