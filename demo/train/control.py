"""Train the storybook ControlNet: Canny edges to pictures, the UNet frozen.

Diffusers' ControlNet (Zhang et al. 2023, arXiv 2302.05543) of the UNet's own blocks. One hint in two shows all edges of the scene, the others
those of some objects only, so that it learns to leave free what no edge shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from demo.storybook import CANVAS, Scene
from demo.train.loop import Trainer, device, start_from
from demo.train.ship import CONTROL
from demo.train.unet import MOST, SCHEDULE, FloatGroupNorm, RecordingAttention, Replay, timesteps
from demo.train.words import word_ids
from layered_core.hints import canny


class EdgeReplay(Replay):
    """Scenes with their edges, and which object each edge pixel belongs to."""

    def __init__(self, vae: AutoencoderTiny, rng: np.random.Generator, capacity: int = 20_000) -> None:
        super().__init__(vae, rng, capacity)
        self.edges = torch.zeros(capacity, CANVAS, CANVAS, dtype=torch.uint8)
        """0 no edge, 1 the background's, 2.. the objects' edges."""

    def store(self, slot: int, scene: Scene, picture: Tensor, latent: Tensor) -> None:
        """As the parent's."""
        super().store(slot, scene, picture, latent)
        owner = nn.functional.max_pool2d(torch.from_numpy(scene.object_map().astype(np.float32))[None, None], 5, 1, 2)[0, 0]
        self.edges[slot] = (canny(picture.cpu() / 2 + 0.5) * (owner + 1)).to(torch.uint8)

    def hints(self) -> Tensor:
        """Hints ``[B, 3, 128, 128]`` in 0..1 of the last batch."""
        edges = self.edges[torch.from_numpy(self.chosen)]
        kept = torch.from_numpy(self.rng.random((len(edges), MOST + 2)) < 0.5)
        kept[torch.from_numpy(self.rng.random(len(edges)) < 0.5)] = True
        kept[:, 0] = False
        shown = kept.gather(1, edges.flatten(1).long()).view_as(edges)
        return shown[:, None].float().expand(-1, 3, -1, -1).to(device())


def train(rank: int, processes: int, options: Any) -> None:  # noqa: ANN401
    """One process of the ControlNet's training."""
    torch.manual_seed(options.seed + rank)
    export = Path(options.folder) / "export"
    ids = word_ids(export / "tokenizer")
    vae = AutoencoderTiny.from_pretrained(export / "vae").float().to(device(), memory_format=torch.channels_last).requires_grad_(False)
    text = CLIPTextModel.from_pretrained(export / "text_encoder").float().to(device()).requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(export / "unet").float().requires_grad_(False)
    model = ControlNetModel.from_unet(unet)
    start_from(model, CONTROL / "diffusion_pytorch_model.safetensors", options.fresh)
    for net in (unet, model):
        for module in net.modules():
            if type(module) is nn.GroupNorm:
                module.__class__ = FloatGroupNorm
        net.set_attn_processor(RecordingAttention())
        net.to(device(), memory_format=torch.channels_last)
    trainer = Trainer(model, Path(options.folder) / "control", rank, processes, minutes=options.minutes, rate=options.rate or 1e-3, average=0.998)
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    replay = EdgeReplay(vae, rng)
    replay.add(256)
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(device())
    weights = (alphas / (1 - alphas)).pow(-1).mul(5).clamp(max=1)
    going = True
    while going:
        count = options.scale * 16
        replay.add(count // 8)
        latents, tokens, _, _ = replay.batch(count, ids)
        hints = replay.hints()
        t = timesteps(count)
        alpha = alphas[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        with torch.autocast(device().type, torch.bfloat16):
            context = text(tokens)[0]
            down, middle = model(noisy, t, context, controlnet_cond=hints, return_dict=False)
            v = unet(noisy, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample.float()
        for net in (unet, model):
            for processor in net.attn_processors.values():
                processor.maps.clear()
        error = (weights[t] * (v - target).square().mean((1, 2, 3))).mean()
        going = trainer.update(error, count, v=error.detach())
        if trainer.due(4.0) or not going:
            if rank == 0:
                plain = ControlNetModel.from_unet(unet)
                plain.load_state_dict({k: v.cpu() for k, v in trainer.averaged().items()})
                plain.half().save_pretrained(export / "controlnet")
            trainer.save()
