"""What training anything that predicts noise shares: the frozen models beside it, the schedule, the
objective.

v-prediction on Stable Diffusion's schedule; the loss per timestep is weighted by min(snr, 5) / snr (Hang et
al. 2023, arXiv 2303.09556, on the v-error), so that the steps that decide what is where are not drowned by
the last ones.
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
    """Group norm in single precision: in half precision its channels-last kernel is ten times slower on
    CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """As :class:`torch.nn.GroupNorm`."""
        return nn.functional.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(
            x.dtype
        )


def prepare(model: nn.Module) -> None:
    """Put ``model`` where it is trained, in the layout and with the norms that are fast there."""
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = FloatGroupNorm
    model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs


def frozen_vae(export: Path) -> AutoencoderTiny:
    """The trained VAE, not to be trained further."""
    return (
        AutoencoderTiny.from_pretrained(export / "vae")
        .float()
        .to(device(), memory_format=torch.channels_last)
        .requires_grad_(False)
    )


def frozen_text_encoder(export: Path) -> CLIPTextModel:
    """The trained text encoder, not to be trained further."""
    return CLIPTextModel.from_pretrained(export / "text_encoder").float().to(device()).requires_grad_(False)


class RecordingAttention:
    """Plain attention that keeps the probabilities of cross-attention, averaged over heads,
    ``[B, N, 77]``."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(
        self, attention: Attention, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """As diffusers' ``AttnProcessor`` on three-dimensional input."""
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
    """Half of them anywhere in 0..999, half in 400..999, where it is decided how many objects there are and
    where."""
    first = 400 * torch.randint(0, 2, (count,), device=device())
    return first + (torch.rand(count, device=device()) * (1000 - first)).long()


class Noised(NamedTuple):
    """A batch of latents at random noise levels."""

    t: Tensor
    """Timesteps [B]."""
    noisy: Tensor
    """What the model sees."""
    target: Tensor
    """The v that it should say."""
    clear: Tensor
    """Share of the latents' deviation in ``noisy``, 0..1, [B]."""


class Objective:
    """The schedule as training uses it."""

    def __init__(self) -> None:
        self.alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(device())
        self.weights = (self.alphas / (1 - self.alphas)).pow(-1).mul(5).clamp(max=1)

    def noised(self, latents: Tensor, frames: int = 1) -> Noised:
        """``latents`` [B, C, h, w], each with noise of a level of its own; ``frames`` that follow each other
        share theirs."""
        t = timesteps(len(latents) // frames).repeat_interleave(frames)
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        return Noised(t, noisy, alpha.sqrt() * noise - (1 - alpha).sqrt() * latents, self.alphas[t].sqrt())

    def errors(self, v: Tensor, batch: Noised) -> Tensor:
        """The weighted mean square errors [B] of a predicted ``v``."""
        return self.weights[batch.t] * (v.float() - batch.target).square().mean((1, 2, 3))

    def error(self, v: Tensor, batch: Noised) -> Tensor:
        """Their mean."""
        return self.errors(v, batch).mean()
