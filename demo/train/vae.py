"""Train the storybook VAE: AutoencoderTiny (the TAESD layout), which reduces eight-fold, with four latent
channels.

A penalty keeps the latents at zero mean and unit deviation per channel, so that ``scaling_factor`` is 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn

from demo.train.loop import Trainer, device, half_precision, start_from
from demo.world.places import MODEL
from demo.world.scenes import HELD_OUT, random_scene
from demo.world.vocabulary import CANVAS


def crops(rng: np.random.Generator, side: int, count: int) -> Tensor:
    """Return random crops of new scenes, four of each, 70 % around an object, ``[count, 3, side, side]`` in
    -1..1."""
    batch: list[np.ndarray] = []
    while len(batch) < count:
        scene = random_scene(int(rng.integers(HELD_OUT)))
        picture = scene.picture()
        for _ in range(min(4, count - len(batch))):
            x, y = rng.integers(0, CANVAS - side + 1, 2)
            if scene.objects and rng.random() < 0.7:
                item = scene.objects[rng.integers(len(scene.objects))]
                middle = np.array([item.x + item.image.shape[1] / 2, item.y + item.image.shape[0] / 2])
                x, y = np.clip(middle + rng.normal(0, 12, 2) - side / 2, 0, CANVAS - side).astype(int)
            batch.append(picture[y : y + side, x : x + side])
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def psnr(vae: AutoencoderTiny, scenes: int, seed: int = HELD_OUT) -> float:
    """Return the mean peak signal-to-noise ratio of ``scenes`` held-out scenes after the VAE, dB, on 8-bit
    pixels."""
    total = 0.0
    for index in range(scenes):
        picture = random_scene(seed + index).picture()
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        y = vae.decoder(vae.encoder(x.to(vae.device))).float().cpu()
        pixels = ((y + 1) * 127.5).round().clamp(0, 255)
        error = ((pixels - (x + 1) * 127.5) ** 2).mean()
        total += float(10 * torch.log10(255**2 / error))
    return total / scenes


@torch.no_grad()
def start_from_low_pass(model: AutoencoderTiny) -> None:
    """Initialise the VAE as an eight-fold average of the colours and a nearest upsampling.

    Three channels carry brightness and two colour differences through all layers, with unit deviation in the
    latents; the other weights start at random with small residuals. Training then adds detail to a blurred
    picture, which takes minutes less than starting from noise.
    """
    axes = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.0, -0.5], [-0.5, 1.0, -0.5]]) / torch.tensor(
        [[0.24], [0.18], [0.15]]
    )
    centre = torch.tensor([0.6, 0.6, 0.6])
    for half in (model.encoder, model.decoder):
        for block in half.modules():
            if isinstance(block, AutoencoderTinyBlock):
                block.conv[4].weight.mul_(0.1)
                block.conv[4].bias.zero_()
        for layer in half.layers:
            if isinstance(layer, nn.Conv2d):
                channels = min(3, layer.out_channels, layer.in_channels)
                layer.weight[:3] = 0
                for c in range(channels):
                    kernel = layer.weight[c, c]
                    if layer.stride[0] == 2:
                        kernel[:2, :2] = 0.25  # the mean of the pixels at (-1, -1) .. (0, 0)
                    else:
                        kernel[1, 1] = 1.0
    last, first = model.encoder.layers[-1], model.decoder.layers[0]
    last.weight[:3, :3, 1, 1] = axes
    last.bias[:3] = -axes @ centre
    first.weight[:3] = 0
    first.weight[:3, :3, 1, 1] = torch.linalg.inv(axes)
    first.bias[:3] = centre
    model.encoder.layers[0].bias[:3] = 0
    model.decoder.layers[-1].bias[:3] = 0


def train(rank: int, processes: int, options: Any) -> None:
    """Train the VAE in one process."""
    torch.manual_seed(options.seed)
    model = AutoencoderTiny(in_channels=3, out_channels=3, latent_channels=4, scaling_factor=1.0)
    start_from_low_pass(model)
    start_from(model, MODEL / "vae" / "diffusion_pytorch_model.safetensors", options.fresh)
    model.to(device(), memory_format=torch.channels_last)
    trainer = Trainer(
        model,
        Path(options.folder) / "vae",
        rank,
        processes,
        minutes=options.minutes,
        rate=options.rate or 5e-4,
        average=0.998,
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    going = True
    while going:
        side, count = (32, 16) if trainer.progress < 0.3 else (64, 6)
        x = crops(rng, side, count * options.scale).to(device(), memory_format=torch.channels_last)
        with half_precision():
            z = model.encoder(x).float()
            y = model.decoder(z + 0.05 * torch.randn_like(z)).float()
        # The absolute error keeps edges sharp, the squared error raises PSNR; both on pixels in 0..1.
        difference = (y - x) / 2
        error = difference.square().mean()
        deviation, mean = torch.std_mean(z, (0, 2, 3))
        scale = mean.square().mean() + deviation.log().square().mean()
        loss = difference.abs().mean() + 10 * error + 0.02 * scale
        going = trainer.update(
            loss, len(x), crop_psnr=-10 * torch.log10(error.detach()), scale=scale.detach()
        )
        if trainer.due(2.0) or not going:
            if rank == 0:
                judged = AutoencoderTiny.from_config(model.config)
                judged.load_state_dict({k: v.cpu() for k, v in trainer.averaged().items()})
                trainer.record(psnr=round(psnr(judged, 48), 2))
                judged.half().save_pretrained(Path(options.folder) / "export" / "vae")
            trainer.save()
