"""Parts that the training of all noise predictors shares: the frozen models, the schedule, the objective.

The models predict v on Stable Diffusion's schedule. The loss per timestep is weighted by min(snr, 5) / snr
(Hang et al. 2023, arXiv 2303.09556, on the v-error), so that the last steps do not outweigh those which
decide the layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderTiny, DDIMScheduler
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextModel

from demo.train.loop import device

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    "timestep_spacing": "trailing",
}  # fmt: skip


class FloatGroupNorm(nn.GroupNorm):
    """Group norm in single precision; in half precision its channels-last kernel is ten times slower on
    CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the norm in single precision and return it in the dtype of ``x``."""
        return nn.functional.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(
            x.dtype
        )


def prepare(model: nn.Module) -> None:
    """Move ``model`` to the device of the training, in the memory layout and with the norms that are fast
    there."""
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = FloatGroupNorm
    model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs


def frozen_vae(export: Path) -> AutoencoderTiny:
    """Load the trained VAE, frozen."""
    return (
        AutoencoderTiny.from_pretrained(export / "vae")
        .float()
        .to(device(), memory_format=torch.channels_last)
        .requires_grad_(False)
    )


def frozen_text_encoder(export: Path) -> CLIPTextModel:
    """Load the trained text encoder, frozen."""
    return CLIPTextModel.from_pretrained(export / "text_encoder").float().to(device()).requires_grad_(False)


class RecordingAttention:
    """Plain attention that records the probabilities of cross-attention, averaged over heads,
    ``[B, N, 77]``."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(
        self, attention: Attention, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Attend as diffusers' ``AttnProcessor`` does on three-dimensional input."""
        context = hidden if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attention.to_q(hidden), attention.to_k(context), attention.to_v(context)
        heads = attention.heads
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-1, -2)) * attention.scale
        probabilities = scores.float().softmax(-1)
        if encoder_hidden_states is not None and q.shape[2] >= 64:
            self.maps.append(probabilities.mean(1))
        out = (probabilities.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return attention.to_out[0](out)


def timesteps(count: int) -> Tensor:
    """Draw ``count`` timesteps: half of them from 0..999, half from 400..999, where the number and the places
    of the objects are decided."""
    first = 400 * torch.randint(0, 2, (count,), device=device())
    return first + (torch.rand(count, device=device()) * (1000 - first)).long()


class Noised(NamedTuple):
    """A batch of latents at random noise levels."""

    t: Tensor
    """Timesteps [B]."""
    noisy: Tensor
    """The model's input."""
    target: Tensor
    """The v that the model should predict."""
    clear: Tensor
    """Factor of the clean latents in ``noisy``, 0..1, [B]."""


class Objective:
    """The noise schedule and the weighted loss of the training."""

    def __init__(self) -> None:
        self.alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(device())
        self.weights = (self.alphas / (1 - self.alphas)).pow(-1).mul(5).clamp(max=1)

    def noised(self, latents: Tensor, frames: int = 1) -> Noised:
        """Add noise to ``latents`` [B, C, h, w], at a random level for each group of ``frames`` successive
        ones."""
        t = timesteps(len(latents) // frames).repeat_interleave(frames)
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        return Noised(t, noisy, alpha.sqrt() * noise - (1 - alpha).sqrt() * latents, self.alphas[t].sqrt())

    def errors(self, v: Tensor, batch: Noised) -> Tensor:
        """Return the weighted mean square errors [B] of a predicted ``v``."""
        return self.weights[batch.t] * (v.float() - batch.target).square().mean((1, 2, 3))

    def error(self, v: Tensor, batch: Noised) -> Tensor:
        """Return the mean of :meth:`errors`."""
        return self.errors(v, batch).mean()
