"""A model's VAE: encodes pictures to latents and decodes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from layered_diffusers.models.loading import StableDiffusion


@torch.no_grad()
def encode(model: StableDiffusion, pictures: Tensor) -> Tensor:
    """Encode pictures ``[B, 3, H, W]`` in 0..1, sides multiples of 8, to latents in the UNet's scale and
    dtype (the mean of the VAE's distribution)."""
    mean, _ = posterior(model, pictures)
    return mean.to(model.unet.dtype) * model.vae.config.scaling_factor


@torch.no_grad()
def posterior(model: StableDiffusion, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of the latents of pictures ``[B, 3, H, W]`` as in :func:`encode`, in
    the VAE's scale and dtype; the deviation is 1 for a VAE without one."""
    with _fitting(model) as vae:
        encoded = vae.encode(VaeImageProcessor.normalize(pictures.to(vae.device, vae.dtype)))
        if hasattr(encoded, "latents"):
            return encoded.latents, torch.ones_like(encoded.latents)
        return encoded.latent_dist.mode(), encoded.latent_dist.std


@torch.no_grad()
def decode(model: StableDiffusion, latents: Tensor) -> Tensor:
    """Decode latents ``[B, C, h, w]`` in the UNet's scale to pictures ``[B, 3, H, W]``, float32 in 0..1 on
    the CPU."""
    with _fitting(model) as vae:
        pictures = vae.decode(in_vae_space(model, latents).to(vae.dtype)).sample
        return VaeImageProcessor.denormalize(pictures.float().cpu())


def in_vae_space(model: StableDiffusion, latents: Tensor) -> Tensor:
    """Convert latents from the UNet's scale to the VAE's."""
    return latents / model.vae.config.scaling_factor


@contextmanager
def _fitting(model: StableDiffusion) -> Iterator[Any]:
    """Yield the VAE; SDXL's own overflows in half precision and is in single precision inside the block."""
    vae, dtype = model.vae, model.vae.dtype
    upcast = dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if upcast:
        vae.to(torch.float32)
    try:
        yield vae
    finally:
        if upcast:
            vae.to(dtype)
