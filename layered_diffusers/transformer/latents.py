"""Latents of transformers: the VAE's scale, and the rows of patches of some pipelines."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor
from torch.nn import functional

PATCH = 2
"""Side of a patch in the rows of a pipeline, latent cells."""


@torch.no_grad()
def encode(model: Any, pictures: Tensor) -> Tensor:
    """Encode pictures ``[B, 3, H, W]`` in 0..1 to latents ``[B, C, h, w]`` in the transformer's scale, float32
    (the mean of the VAE's distribution)."""
    vae = model.vae
    pixels = VaeImageProcessor.normalize(pictures.to(vae.device, vae.dtype))
    if hasattr(vae.config, "z_dim"):
        encoded: Tensor = vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0].float()
        mean, std = _statistics(model, encoded)
        return (encoded - mean) / std
    out = vae.encode(pixels)
    encoded = (out.latents if hasattr(out, "latents") else out.latent_dist.mode()).float()
    return (encoded - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


@torch.no_grad()
def decode(model: Any, latents: Tensor) -> Tensor:
    """Decode latents ``[B, C, h, w]`` in the transformer's scale to pictures ``[B, 3, H, W]``, float32 in 0..1
    on the CPU."""
    vae = model.vae
    if hasattr(vae.config, "z_dim"):
        mean, std = _statistics(model, latents)
        pictures = vae.decode((latents * std + mean).to(vae.dtype)[:, :, None]).sample[:, :, 0]
    else:
        inside = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        pictures = vae.decode(inside.to(vae.dtype)).sample
    return VaeImageProcessor.denormalize(pictures.float().cpu())


def channels(model: Any) -> int:
    """Return the number of channels of the latents."""
    config = model.vae.config
    return int(config.z_dim if hasattr(config, "z_dim") else config.latent_channels)


def pack(latents: Tensor) -> Tensor:
    """Return latents ``[B, C, h, w]`` as rows of patches ``[B, h/2 w/2, 4 C]``."""
    return functional.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def unpack(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo :func:`pack` for latents of ``size``, h and w."""
    cells = rows.transpose(1, 2).unflatten(2, (size[0] // PATCH, size[1] // PATCH))
    return functional.pixel_shuffle(cells, PATCH)


def _statistics(model: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(x, device=latents.device)[:, None, None]
        for x in (model.vae.config.latents_mean, model.vae.config.latents_std)
    )
    return mean, std
