"""Continue a run that an earlier sampler has begun, as one uncut run would go on.

A run may be cut in two: KSampler (Advanced) that leaves noise, or split sigmas. The second sampler gets noisy
latents and no noise. Places that are pinned to a picture need what the whole run began with: the clean
latents, and the noise.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from typing import Any, NamedTuple

import comfy.samplers
import torch
from torch import Tensor

from ...layered_core.errors import LayeredError, invalid

MOST = 2**28
"""Bytes of latents that are remembered beside those of the last run; the oldest are forgotten first."""


class Origin(NamedTuple):
    """Where the run of one picture began."""

    clean: Tensor
    """Its latents without noise, ``[C, ...]``."""
    noise: Tensor
    """The noise of unit variance that pinned places have, ``[C, ...]``."""


class SplitRuns:
    """The origins of the pictures in which runs of one model, and of its clones, have left noise."""

    def __init__(self, clean: Tensor | None = None) -> None:
        """Take the latents ``[B, C, ...]`` that are known to be without noise."""
        self._origins: dict[bytes, Origin] = {}
        self._clean: set[bytes] = set()
        if clean is not None:
            self.remember_clean(clean)

    def remember(self, left: Tensor, clean: Tensor, noise: Tensor) -> None:
        """Remember with which ``clean`` latents and ``noise`` the run began that has left ``left``, each
        ``[B, C, ...]``."""
        room = MOST
        for key, origin in reversed(list(self._origins.items())):
            room -= origin.clean.nbytes + origin.noise.nbytes
            if room < 0:
                del self._origins[key]
        for picture, *begun in zip(left, clean, noise, strict=True):
            key = _fingerprint(picture)
            self._origins.pop(key, None)
            self._origins[key] = Origin(*begun)

    def remember_clean(self, latents: Tensor) -> None:
        """Remember latents ``[B, C, ...]`` that hold no noise."""
        self._clean |= {_fingerprint(x) for x in latents}

    def origins(self, latents: Tensor) -> list[Origin | None]:
        """Return for each of the ``latents`` ``[B, C, ...]`` where its run began; None if none was begun."""
        return [self._origins.get(_fingerprint(x)) for x in latents]

    def are_clean(self, latents: Tensor) -> bool:
        """Return whether all latents are those that are known to be without noise."""
        return all(_fingerprint(x) in self._clean for x in latents)


class Run(NamedTuple):
    """What the wrapper of a sampling run gets that depends on where the run began."""

    noise: Tensor
    latents: Tensor
    sampler: Any


def uncut(runs: SplitRuns, run: Run, sigmas: Tensor, least: float, pins: bool) -> Run:
    """Return what the sampler would have if the run had not been cut, but starting where it was cut.

    Args:
        runs: what earlier runs of the model have left.
        run: the noise and the latents ``[B, C, ...]`` that came, and the sampler.
        sigmas: of this run, ``[T]``.
        least: the model's least sigma; a run that begins at or below it has no noise to begin with.
        pins: whether some places are pinned for some time.

    Raises:
        LayeredError: places are pinned, and the latents hold noise of an origin that is not known, or the
            sampler is of a kind that cannot be continued.
    """
    origins = runs.origins(run.latents)
    begins = float(sigmas[0]) <= least
    for origin, noise, latents in zip(origins, run.noise, run.latents, strict=True):
        if pins and not (begins or origin or bool(noise.any()) or runs.are_clean(latents[None])):
            raise LayeredError(
                "latent: the sampler adds no noise to it, so it should hold noise already; but it is not what "
                "a sampler with this model has left, and so its clean picture is unknown. Connect the model "
                "of one and the same node (Per-Layer Freedom (SDEdit), Regenerate Layers) to both samplers of a "
                "run that is cut in two, and change nothing of the latent between them, its size included; or let this "
                "sampler add noise. If the first sampler did not run again in this prompt, change its seed"
            )
    if not any(origins):
        return run
    known = [
        origin or Origin(clean, torch.zeros_like(noise))
        for origin, clean, noise in zip(origins, run.latents, run.noise, strict=True)
    ]
    noise = torch.stack([x.noise for x in known])
    return Run(noise + run.noise.to(noise), torch.stack([x.clean for x in known]), _starting_at(run))


def goes_on(noise: Tensor, sampler: Any) -> bool:
    """Return whether a run with this noise ``[B, C, ...]`` and sampler goes on with noise that an earlier one has
    left."""
    return not bool(noise.any()) or getattr(sampler, "goes_on", False)


def pin_noise(sampler: Any, noise: Tensor, seed: int) -> Tensor:
    """Return the noise that ComfyUI gives pinned places. With its ddim it is not that of the start."""
    if not getattr(sampler, "inpaint_options", {}).get("random"):
        return noise
    return torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed + 1)).to(noise)


def _starting_at(run: Run) -> Any:
    """Return the sampler with another start: the latents of ``run`` with the noise that is added to them."""
    if getattr(type(run.sampler), "sample", None) is not comfy.samplers.KSAMPLER.sample:
        raise invalid(
            "sampler",
            type(run.sampler).__name__,
            "one of ComfyUI's ordinary kind, as KSampler Select gives",
            "The latent holds noise that an earlier sampler has left; take one such sampler for both",
        )
    sampler, function = copy.copy(run.sampler), run.sampler.sampler_function

    @functools.wraps(function)
    def sample(model: Any, x: Tensor, sigmas: Tensor, *more: Any, **named: Any) -> Tensor:
        base = model.inner_model.inner_model
        latents = base.process_latent_in(run.latents.to(x))
        full = sampler.max_denoise(model.inner_model, sigmas)
        start = base.model_sampling.noise_scaling(sigmas[0], run.noise.to(x), latents, full)
        return function(model, start, sigmas, *more, **named)

    sampler.sampler_function, sampler.goes_on = sample, True
    sampler.inpaint_options = {**sampler.inpaint_options, "random": False}
    return sampler


def _fingerprint(latents: Tensor) -> bytes:
    """Return a key that is the same for latents that differ by the rounding to half precision, in which
    ComfyUI may keep them."""
    return hashlib.sha256(latents.detach().half().cpu().contiguous().numpy().tobytes()).digest()
