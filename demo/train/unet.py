"""Train the storybook UNet: v-prediction on Stable Diffusion's schedule, captions through the frozen text encoder.

Two things make it learn in CPU-hours. The loss per timestep is weighted by min(snr, 5) / snr (Hang et al. 2023, arXiv 2303.09556,
on the v-error), so that the steps that decide what is where are not drowned by the last ones. And because every mask is known, an
auxiliary loss (1 - share)^2 asks that the cross-attention of a noun lies inside its object, weight 0.3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextModel

from demo.storybook import Scene, Thing, random_scene
from demo.train.loop import Trainer, device, start_from
from demo.train.ship import MODEL
from demo.train.vae import HELD_OUT
from demo.train.words import pad, training_caption, word_ids

MOST = 4
"""Greatest number of objects in a scene."""

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing",
}  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    """The UNet's architecture: SD1.5's blocks at small width, attention at the two upper resolutions."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128, 128),
        cross_attention_dim=64,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


class FloatGroupNorm(nn.GroupNorm):
    """Group norm in single precision: in half precision its channels-last kernel is ten times slower on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """As :class:`torch.nn.GroupNorm`."""
        return nn.functional.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)


class RecordingAttention:
    """Plain attention that keeps the probabilities of cross-attention, averaged over heads, ``[B, N, 77]``."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(self, attention: Attention, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:  # noqa: ANN401
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


class Replay:
    """A growing store of encoded scenes: a share of every batch is fresh, the rest is drawn from what was seen."""

    def __init__(self, vae: AutoencoderTiny, rng: np.random.Generator, capacity: int = 60_000) -> None:
        self.vae, self.rng, self.capacity = vae, rng, capacity
        self.latents = torch.zeros(capacity, 4, 16, 16, dtype=torch.float16)
        self.masks = torch.zeros(capacity, MOST, 16, 16, dtype=torch.uint8)
        self.words: list[tuple[str, list[Thing]]] = [("", [])] * capacity
        self.filled = self.next = 0
        self.chosen = np.zeros(0, dtype=np.int64)

    @torch.no_grad()
    def add(self, count: int) -> None:
        """Draw, encode and store ``count`` fresh scenes."""
        scenes = [random_scene(int(self.rng.integers(HELD_OUT))) for _ in range(count)]
        pictures = torch.from_numpy(np.stack([s.picture() for s in scenes])).to(device()).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(device().type, torch.bfloat16):
            latents = self.vae.encoder(pictures.contiguous(memory_format=torch.channels_last)).float()
        for scene, picture, latent in zip(scenes, pictures, latents, strict=True):
            self.store(self.next, scene, picture, latent)
            self.next = (self.next + 1) % self.capacity
            self.filled = min(self.filled + 1, self.capacity)

    def store(self, slot: int, scene: Scene, picture: Tensor, latent: Tensor) -> None:
        """Keep one scene; ``picture`` is ``[3, H, W]`` in -1..1."""
        owner = scene.object_map().reshape(16, 8, 16, 8)
        self.latents[slot] = latent.half()
        for i in range(MOST):
            self.masks[slot, i] = torch.from_numpy(((owner == i + 1).mean((1, 3)) * 255).astype(np.uint8))
        self.words[slot] = (scene.background, [o.thing for o in scene.objects])

    def batch(self, count: int, ids: dict[str, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents [B, 4, 16, 16], token ids [B, 77], masks [B, 4, 16, 16] and noun positions [B, 4] (0: no such object)."""
        self.chosen = self.rng.integers(self.filled, size=count)
        rows, nouns = [], []
        for index in self.chosen:
            background, things = self.words[index]
            tokens, where = training_caption(self.rng, background, things, ids)
            if self.rng.random() < 0.1:
                tokens, where = pad([]), [0] * len(things)
            rows.append(tokens)
            nouns.append(where + [0] * (MOST - len(where)))
        pick = torch.from_numpy(self.chosen)
        tensors = (self.latents[pick].float(), torch.tensor(rows), self.masks[pick].float() / 255, torch.tensor(nouns))
        a, b, c, d = (t.to(device()) for t in tensors)
        return a, b, c, d


def attention_loss(maps: list[Tensor], masks: Tensor, nouns: Tensor, weight: Tensor) -> Tensor:
    """Mean over objects of ``weight * (1 - share of the noun's attention inside its mask)^2``; ``weight`` [B]."""
    valid = (nouns > 0).float()
    total = masks.new_zeros(())
    for probabilities in maps:
        side = int(probabilities.shape[1] ** 0.5)
        inside = nn.functional.adaptive_avg_pool2d(masks, side).flatten(2)
        attended = probabilities.gather(2, nouns[:, None].expand(-1, side * side, -1)).transpose(1, 2)
        share = (attended * inside).sum(-1) / attended.sum(-1).clamp_min(1e-8)
        total = total + (valid * weight[:, None] * (1 - share).square()).sum() / valid.sum().clamp_min(1)
    return total / len(maps)


def timesteps(count: int) -> Tensor:
    """Half of them anywhere in 0..999, half in 400..999, where it is decided how many objects there are and where."""
    first = 400 * torch.randint(0, 2, (count,), device=device())
    return first + (torch.rand(count, device=device()) * (1000 - first)).long()


def train(rank: int, processes: int, options: Any) -> None:  # noqa: ANN401
    """One process of the UNet's training."""
    torch.manual_seed(options.seed + rank)
    export = Path(options.folder) / "export"
    ids = word_ids(export / "tokenizer")
    vae = AutoencoderTiny.from_pretrained(export / "vae").float().to(device(), memory_format=torch.channels_last).requires_grad_(False)
    text = CLIPTextModel.from_pretrained(export / "text_encoder").float().to(device()).requires_grad_(False)
    model = new_unet()
    start_from(model, MODEL / "unet" / "diffusion_pytorch_model.safetensors", options.fresh)
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = FloatGroupNorm
    record = RecordingAttention()
    model.set_attn_processor(record)
    model.to(device(), memory_format=torch.channels_last)
    trainer = Trainer(
        model, Path(options.folder) / "unet", rank, processes, minutes=options.minutes, rate=options.rate or 1e-3, average=0.999, warmup=300
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    replay = Replay(vae, rng)
    replay.add(256)
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(device())
    weights = (alphas / (1 - alphas)).pow(-1).mul(5).clamp(max=1)
    going = True
    while going:
        count = options.scale * (16 if trainer.progress < 0.5 else 32)
        replay.add(count // 8 if replay.filled < 4000 else max(count // 16, 1))
        latents, tokens, masks, nouns = replay.batch(count, ids)
        t = timesteps(count)
        alpha = alphas[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        record.maps = []
        with torch.autocast(device().type, torch.bfloat16):
            context = text(tokens)[0]
            v = model(noisy, t, context).sample.float()
        error = (weights[t] * (v - target).square().mean((1, 2, 3))).mean()
        attention = attention_loss(record.maps, masks, nouns, alphas[t].sqrt())
        going = trainer.update(error + 0.3 * attention, count, v=error.detach(), attention=attention.detach())
        if trainer.due(4.0) or not going:
            if rank == 0:
                plain = new_unet()
                plain.load_state_dict({k: v.cpu() for k, v in trainer.averaged().items()})
                plain.half().save_pretrained(export / "unet")
                DDIMScheduler(**SCHEDULE).save_pretrained(export / "scheduler")
            trainer.save()
