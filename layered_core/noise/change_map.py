"""Change maps: how far each pixel may change, and from which noise level on it is denoised.

A change map m says for every pixel how far it may change: 0 stays as it is, 1 is free from the start. While
the noise level of a run falls from 1 to 0, a pixel is pinned to the noised original until the level reaches
its m; then it is denoised freely. With the level taken from the model's whole schedule (``absolute``) this is
Collage Diffusion's per-layer noise (arXiv 2303.00262 section 5); with the level taken from the steps that are
run (``normalised``) it is Differential Diffusion (arXiv 2306.00950) as in ComfyUI.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.backdrop import find_backdrop
from ..canvas.masks import document_masks
from ..canvas.soft_masks import gaussian_blur
from ..document import DEFAULT_NOISE, LayerDocument
from ..errors import check_number

THRESHOLDS = ("absolute", "normalised")
"""The levels that a change map is compared with: the level in the model's whole schedule, or in the steps
that are run."""

NOISES = ("fixed", "fresh")
"""The noise that is added to pinned pixels: always the run's own noise, or new noise at every step."""


def noise_level(t: float, start: float, end: float) -> float:
    """Return the position of a timestep between ``end`` (0) and ``start`` (1), clamped to 0..1.

    Args:
        t: the current timestep, as the model's schedule counts them; any monotone count works.
        start: timestep with level 1: the noisiest of the schedule (``absolute``) or the run's first
            (``normalised``).
        end: timestep with level 0: the cleanest of the schedule, or the run's last.
    """
    if start == end:
        return 1.0 if t >= start else 0.0
    level = (t - end) / (start - end)
    return min(max(level, 0.0), 1.0) if math.isfinite(level) else 0.0


def schedule_place(sigma: float, sigmas: Tensor) -> int:
    """Return the index, 0..T-1, of the model's noise level nearest to ``sigma`` in log space; ``sigmas``
    ``[T]`` rise.

    Hosts count in these indices how much of a picture a run changes (ComfyUI's *denoise*, with its schedulers
    simple and normal). The timesteps of flow models cannot be used for that: they are the noise levels
    themselves, which a shifted schedule does not space evenly.
    """
    return int((sigmas.double().log() - math.log(sigma)).abs().argmin()) if sigma > 0 else 0


def free_places(change: Tensor, level: float, dilation: float = 0.0, softness: float = 0.0) -> Tensor:
    """Return which pixels are free at a noise level: 1 where ``m >= level``, 0 (pinned) elsewhere. ``m = 0``
    is always pinned, ``m = 1`` always free.

    Args:
        change: change map ``[..., h, w]`` in 0..1.
        level: noise level, 0..1, from :func:`noise_level`.
        dilation: how many cells pinned areas grow into free ones at level 1; less at lower levels, in
            proportion, rounded down. Collage Diffusion's code uses 4. Neutral: 0.
        softness: width of the transition from pinned to free, in units of m:
            ``clamp((m - level) / softness + 1/2, 0, 1)``. Neutral: 0.

    Returns:
        ``[..., h, w]`` in 0..1, of ``change``'s dtype.
    """
    # A softness below the dtype's precision counts as 0: dividing by it would give infinity or NaN.
    soft = softness > torch.finfo(change.dtype).eps
    free = ((change - level) / softness + 0.5).clamp(0, 1) if soft else (change >= level).to(change.dtype)
    free = torch.where(change > 0, torch.where(change < 1, free, 1.0), 0.0).to(change.dtype)
    reach = int(dilation * level)
    if reach:
        flat = free.reshape(-1, 1, *free.shape[-2:])
        free = (1 - functional.max_pool2d(1 - flat, 2 * reach + 1, 1, reach)).reshape(free.shape)
    return free


def fresh_noise(noise: Tensor, level: float) -> Tensor:
    """Return white noise of the shape of ``noise``, independent of it and of the noise for other levels.

    The same arguments give the same noise.
    """
    key = noise.detach().float().cpu().contiguous().numpy().tobytes()
    generator = torch.Generator().manual_seed(zlib.crc32(repr(level).encode(), zlib.crc32(key)))
    return torch.randn(noise.shape, generator=generator).to(noise)


def noise_map(document: LayerDocument, background: float = 1.0, blur: float = 0.0) -> Tensor:
    """Compute the change map of a document: the layers' noise, weighted by how much of each pixel shows them.

    ``N = sum_i M_i * noise_i + M_background * background`` (Collage Diffusion section 5 with soft visible
    masks), with the noises of :func:`layer_noises`.

    Args:
        document: the layers.
        background: how far pixels that no layer covers may change, 0..1.
        blur: standard deviation of a Gaussian blur of the map, pixels. Neutral: 0.

    Returns:
        ``[H, W]`` float32 in 0..1; if all noises are equal, exactly that number.

    Raises:
        LayeredError: ``background`` or ``blur`` is out of range.
    """
    check_number("noise map: blur", blur, 0, 1024)
    masks, noises = seen_noises(document, background)
    change = torch.einsum("l,lhw->hw", noises, masks)
    # The weights at soft edges and of the blur sum to 1 only up to rounding.
    return gaussian_blur(change, blur).clamp(float(noises.min()), float(noises.max()))


def seen_noises(document: LayerDocument, background: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the visible masks ``[P, H, W]`` of the layers, then of the background, and the noise of each,
    ``[P]``.

    Masks that are 0 everywhere are left out. Arguments and errors as for :func:`noise_map`.
    """
    check_number("background noise", background, 0, 1)
    shown, rest = document_masks(document)
    masks = torch.cat([shown, rest[None]])
    seen = masks.flatten(1).any(1)
    return masks[seen], torch.tensor([*layer_noises(document), background], dtype=torch.float32)[seen]


def layer_noises(document: LayerDocument) -> list[float]:
    """Return how far each layer may change, 0..1: what its recipe says. Where that says nothing, it is 0 for a
    backdrop (:func:`~layered_core.canvas.backdrop.find_backdrop`) and else 0.8. A layer without a picture has
    nothing to keep and counts as 1."""
    backdrop = find_backdrop(document)
    unsaid = [0.0 if layer is backdrop else DEFAULT_NOISE for layer in document]
    return [
        1.0 if x.image is None else default if x.recipe.noise is None else x.recipe.noise
        for x, default in zip(document, unsaid, strict=True)
    ]
