"""Train the storybook UNet to predict v, with captions encoded by the frozen text encoder.

Two things let it learn within CPU-hours: the weights of the objective (see ``diffusion.py``), and an
auxiliary loss (1 - share)^2 of weight 0.3, where share is the part of a noun's cross-attention that lies
inside the object's known mask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from demo.train.diffusion import (
    SCHEDULE,
    Objective,
    RecordingAttention,
    frozen_text_encoder,
    frozen_vae,
    prepare,
)
from demo.train.loop import Trainer, device, half_precision, start_from
from demo.train.replay import ReplayStore
from demo.train.words import pad, training_caption, word_ids
from demo.world.places import MODEL
from demo.world.scenes import HELD_OUT, Scene, random_scene
from demo.world.vocabulary import Thing

MOST = 4
"""Greatest number of objects in a scene."""


def new_unet() -> UNet2DConditionModel:
    """Return an untrained UNet: SD1.5's blocks at small width, with attention at the two upper
    resolutions."""
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


class Replay(ReplayStore):
    """A growing store of encoded scenes, from which batches are drawn at random while new scenes are
    added."""

    def __init__(self, vae: AutoencoderTiny, rng: np.random.Generator, capacity: int = 60_000) -> None:
        super().__init__(rng, capacity)
        self.vae = vae
        self.latents = torch.zeros(capacity, 4, 16, 16, dtype=torch.float16)
        self.masks = torch.zeros(capacity, MOST, 16, 16, dtype=torch.uint8)
        self.words: list[tuple[str, list[Thing]]] = [("", [])] * capacity
        self.chosen = np.zeros(0, dtype=np.int64)

    @torch.no_grad()
    def add(self, count: int) -> None:
        """Draw, encode and store ``count`` new scenes."""
        scenes = [self.draw_scene(int(self.rng.integers(HELD_OUT))) for _ in range(count)]
        pictures = (
            torch.from_numpy(np.stack([s.picture() for s in scenes])).to(device()).permute(0, 3, 1, 2).float()
            / 127.5
            - 1
        )
        with half_precision():
            latents = self.vae.encoder(pictures.contiguous(memory_format=torch.channels_last)).float()
        for scene, picture, latent in zip(scenes, pictures, latents, strict=True):
            self.store(self.take_slot(), scene, picture, latent)

    def draw_scene(self, seed: int) -> Scene:
        """Draw the scene of a seed."""
        return random_scene(seed)

    def store(self, slot: int, scene: Scene, picture: Tensor, latent: Tensor) -> None:
        """Store one scene; ``picture`` is ``[3, H, W]`` in -1..1."""
        owner = scene.object_map().reshape(16, 8, 16, 8)
        self.latents[slot] = latent.half()
        for i in range(MOST):
            self.masks[slot, i] = torch.from_numpy(((owner == i + 1).mean((1, 3)) * 255).astype(np.uint8))
        self.words[slot] = (scene.background, [o.thing for o in scene.objects])

    def batch(self, count: int, ids: dict[str, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return latents [B, 4, 16, 16], token ids [B, 77], masks [B, 4, 16, 16] and positions of the nouns
        [B, 4] (0: no such object)."""
        self.chosen = self.draw(count)
        rows, nouns = [], []
        for index in self.chosen:
            background, things = self.words[index]
            tokens, where = training_caption(self.rng, background, things, ids)
            if self.rng.random() < 0.1:
                tokens, where = pad([]), [0] * len(things)
            rows.append(tokens)
            nouns.append(where + [0] * (MOST - len(where)))
        pick = torch.from_numpy(self.chosen)
        tensors = (
            self.latents[pick].float(),
            torch.tensor(rows),
            self.masks[pick].float() / 255,
            torch.tensor(nouns),
        )
        a, b, c, d = (t.to(device()) for t in tensors)
        return a, b, c, d


def attention_loss(maps: list[Tensor], masks: Tensor, nouns: Tensor, weight: Tensor) -> Tensor:
    """Return the mean over objects of ``weight * (1 - share of the noun's attention inside its mask)^2``;
    ``weight`` [B]."""
    valid = (nouns > 0).float()
    total = masks.new_zeros(())
    for probabilities in maps:
        side = int(probabilities.shape[1] ** 0.5)
        inside = nn.functional.adaptive_avg_pool2d(masks, side).flatten(2)
        attended = probabilities.gather(2, nouns[:, None].expand(-1, side * side, -1)).transpose(1, 2)
        share = (attended * inside).sum(-1) / attended.sum(-1).clamp_min(1e-8)
        total = total + (valid * weight[:, None] * (1 - share).square()).sum() / valid.sum().clamp_min(1)
    return total / len(maps)


def train(rank: int, processes: int, options: Any) -> None:
    """Train the UNet in one process."""
    torch.manual_seed(options.seed + rank)
    export = Path(options.folder) / "export"
    ids = word_ids(export / "tokenizer")
    vae, text = frozen_vae(export), frozen_text_encoder(export)
    model = new_unet()
    start_from(model, MODEL / "unet" / "diffusion_pytorch_model.safetensors", options.fresh)
    record = RecordingAttention()
    model.set_attn_processor(record)
    prepare(model)
    trainer = Trainer(
        model,
        Path(options.folder) / "unet",
        rank,
        processes,
        minutes=options.minutes,
        rate=options.rate or 1e-3,
        average=0.999,
        warmup=300,
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    replay = Replay(vae, rng)
    replay.add(256)
    objective, going = Objective(), True
    while going:
        count = options.scale * (16 if trainer.progress < 0.5 else 32)
        replay.add(count // 8 if replay.filled < 4000 else max(count // 16, 1))
        latents, tokens, masks, nouns = replay.batch(count, ids)
        batch = objective.noised(latents)
        record.maps = []
        with half_precision():
            v = model(batch.noisy, batch.t, text(tokens)[0]).sample
        error = objective.error(v, batch)
        attention = attention_loss(record.maps, masks, nouns, batch.clear)
        going = trainer.update(error + 0.3 * attention, count, v=error.detach(), attention=attention.detach())
        if trainer.due(4.0) or not going:
            if rank == 0:
                plain = new_unet()
                plain.load_state_dict({k: v.cpu() for k, v in trainer.averaged().items()})
                plain.half().save_pretrained(export / "unet")
                DDIMScheduler(**SCHEDULE).save_pretrained(export / "scheduler")
            trainer.save()
