"""Train the storybook ControlNet: Canny edges to pictures, the UNet frozen.

This is diffusers' ControlNet (Zhang et al. 2023, arXiv 2302.05543) with the UNet's own blocks. Two hints in
three show all edges of the scene, the others only those of some objects, so that the net learns to leave free
what no edge shows.

Two things save time. Encoding a hint of 128 x 128 takes a third of a step on CPUs, so each hint is encoded
once for ``LEVELS`` noise levels. And the last layer of the hint's encoder starts with random weights instead
of
zeros: the zero convolutions already make the untrained net change nothing, and of two zero layers in a row
neither gets a gradient at first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import Tensor, nn

from demo.train.diffusion import Objective, RecordingAttention, frozen_text_encoder, frozen_vae, prepare
from demo.train.loop import Trainer, device, half_precision, start_from
from demo.train.unet import MOST, Replay
from demo.train.words import word_ids
from demo.world.places import CONTROL
from demo.world.scenes import Scene
from demo.world.vocabulary import CANVAS
from layered_core.control.hints import canny

LEVELS = 2
"""Number of noise levels at which each scene of a batch is used."""


class SharedHint(ControlNetConditioningEmbedding):
    """The encoder of hints; its output is repeated for ``LEVELS`` noise levels."""

    def forward(self, conditioning: Tensor) -> Tensor:
        """Encode hints ``[B, 3, 128, 128]`` to ``[LEVELS B, C, 16, 16]``: the batch, repeated."""
        return super().forward(conditioning).repeat(LEVELS, 1, 1, 1)


class EdgeReplay(Replay):
    """A store of scenes with their edges and the object of each edge pixel."""

    def __init__(self, vae: AutoencoderTiny, rng: np.random.Generator, capacity: int = 20_000) -> None:
        super().__init__(vae, rng, capacity)
        self.edges = torch.zeros(capacity, CANVAS, CANVAS, dtype=torch.uint8)
        """0: no edge; 1: the background's; from 2: on an object; from 2 + MOST: just outside of it."""

    def store(self, slot: int, scene: Scene, picture: Tensor, latent: Tensor) -> None:
        """Store a scene as the parent does, and its edges."""
        super().store(slot, scene, picture, latent)
        inside = torch.from_numpy(scene.object_map().astype(np.float32))
        around = nn.functional.max_pool2d(inside[None, None], 5, 1, 2)[0, 0]
        owner = torch.where((inside == 0) & (around > 0), around + MOST, inside)
        self.edges[slot] = (canny(picture.cpu() / 2 + 0.5) * (owner + 1)).to(torch.uint8)

    def hints(self) -> Tensor:
        """Return the hints ``[B, 3, 128, 128]`` in 0..1 of the last batch.

        One in three shows each object, and the background, with probability one half; half of these objects
        lack the outer edge of the outline, as layers drawn without an outline do.
        """
        edges = self.edges[torch.from_numpy(self.chosen)]
        count = len(edges)

        def chance(share: float, *size: int) -> Tensor:
            return torch.from_numpy(self.rng.random((count, *size)) < share)

        some, objects = chance(1 / 3, 1), chance(0.5, MOST)
        kept = torch.cat([chance(0, 1), chance(0.5, 1), objects, objects & chance(0.5, 1)], 1)
        kept[:, 1:] |= ~some
        shown = kept.gather(1, edges.flatten(1).long()).view_as(edges)
        return shown[:, None].float().expand(-1, 3, -1, -1).to(device(), memory_format=torch.channels_last)


def train(rank: int, processes: int, options: Any) -> None:
    """Train the ControlNet in one process."""
    torch.manual_seed(options.seed + rank)
    export = Path(options.folder) / "export"
    ids = word_ids(export / "tokenizer")
    vae, text = frozen_vae(export), frozen_text_encoder(export)
    unet = UNet2DConditionModel.from_pretrained(export / "unet").float().requires_grad_(False)
    model = ControlNetModel.from_unet(unet)
    model.controlnet_cond_embedding.conv_out.reset_parameters()
    start_from(model, CONTROL / "diffusion_pytorch_model.safetensors", options.fresh)
    for net in (unet, model):
        net.set_attn_processor(RecordingAttention())
        prepare(net)
    model.controlnet_cond_embedding.__class__ = SharedHint
    trainer = Trainer(
        model,
        Path(options.folder) / "control",
        rank,
        processes,
        minutes=options.minutes,
        rate=options.rate or 1e-3,
        average=0.998,
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    replay = EdgeReplay(vae, rng)
    replay.add(256)
    objective, plain, going = Objective(), torch.zeros(()), True
    while going:
        scenes = options.scale * 16 // LEVELS
        replay.add(max(scenes // 8, 1))
        latents, tokens, _, _ = replay.batch(scenes, ids)
        hints = replay.hints()
        batch = objective.noised(latents.repeat(LEVELS, 1, 1, 1))
        with half_precision():
            context = text(tokens)[0].repeat(LEVELS, 1, 1)
            if trainer.step % 16 == 0:
                with torch.no_grad():
                    plain = objective.error(unet(batch.noisy, batch.t, context).sample, batch)
            down, middle = model(batch.noisy, batch.t, context, controlnet_cond=hints, return_dict=False)
            v = unet(
                batch.noisy,
                batch.t,
                context,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
        for net in (unet, model):
            for processor in net.attn_processors.values():
                processor.maps.clear()
        loss = objective.error(v, batch)
        going = trainer.update(loss, len(batch.t), v=loss.detach(), v_without=plain)
        if trainer.due(4.0) or not going:
            if rank == 0:
                exported = ControlNetModel.from_unet(unet)
                exported.load_state_dict({k: v.cpu() for k, v in trainer.averaged().items()})
                exported.half().save_pretrained(export / "controlnet")
            trainer.save()
