"""Train the storybook's transparent autoencoder: the networks of
:mod:`layered_core.transparency.transparent_networks` at small width.

As in the paper (arXiv 2402.17113 §3.1) the encoder hides alpha in an offset of the frozen VAE's latents, so
that the VAE still decodes the picture on grey, and the decoder reads colours and alpha back from that picture
and the latents. There is no discriminator here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.train.diffusion import frozen_vae, prepare
from demo.train.loop import Trainer, device, half_precision, start_from
from demo.train.replay import ReplayStore
from demo.train.sprites import KNOWN, SMOKE_SHARE, draw_smoke, draw_sprite, padded
from demo.world.places import MODEL
from demo.world.scenes import HELD_OUT
from demo.world.vocabulary import CANVAS, THINGS, Thing
from layered_core.transparency.transparent_networks import (
    CELL,
    TransparentDecoder,
    TransparentEncoder,
    from_file_order,
    over_mid_grey,
    to_file_order,
)

ENCODER_WIDTHS = (16, 32, 48, 64)
DECODER_WIDTHS = (16, 24, 32, 48, 64, 64, 64)


NOISE = 0.05
"""Greatest deviation of the noise on training latents. A sampler's latents are not exact as those of an
encoded picture are."""

ALPHA_SQUARE = 40
"""Weight of alpha's squared error beside the absolute error. The absolute error alone would leave soft edges
at their median."""

IDENTITY = 20
"""Weight of the offset's change of the VAE's picture. A smaller weight allows a larger offset beside
:data:`NOISE`."""


class Autoencoder(nn.Module):
    """The transparent encoder and decoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TransparentEncoder(ENCODER_WIDTHS)
        self.decoder = TransparentDecoder(DECODER_WIDTHS)

    def load(self, folder: Path, fresh: bool = False) -> None:
        """Load the weights in ``folder``, if there are any."""
        for part in ("encoder", "decoder"):
            start_from(getattr(self, part), folder / f"{part}.safetensors", fresh)

    def save(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Write ``state`` of this module as two files in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("encoder", "decoder"):
            own = {
                k.removeprefix(f"{part}."): v.detach().cpu().half().contiguous()
                for k, v in state.items()
                if k.startswith(f"{part}.")
            }
            save_file(own, folder / f"{part}.safetensors")

    def offset(self, rgba: Tensor) -> Tensor:
        """Return the offset of the latents for ``rgba`` ``[B, 4, H, W]`` (colours continued, 0..1)."""
        return self.encoder(to_file_order(rgba, 4))

    def decode(self, pixels: Tensor, latents: Tensor) -> Tensor:
        """Return RGBA for a decoded picture in 0..1 and its latents."""
        return from_file_order(self.decoder(pixels, latents), 4)


def frozen_autoencoder(export: Path) -> Autoencoder:
    """Load the trained autoencoder, frozen."""
    model = Autoencoder()
    model.load(export / "transparent")
    return model.to(device()).requires_grad_(False)


class Sprites(ReplayStore):
    """A growing store of sprites with their latents; a share of every batch is new."""

    def __init__(
        self,
        vae: AutoencoderTiny,
        rng: np.random.Generator,
        things: list[Thing],
        smoke: float,
        capacity: int = 4000,
    ) -> None:
        super().__init__(rng, capacity)
        self.vae, self.things, self.smoke = vae, things, smoke
        self.pictures = torch.zeros(capacity, 4, CANVAS, CANVAS, dtype=torch.uint8)
        self.latents = torch.zeros(capacity, 4, CANVAS // CELL, CANVAS // CELL)

    def add(self, count: int) -> None:
        """Draw ``count`` sprites, turn half of them, and store them with their latents."""
        for _ in range(count):
            rng = self.rng
            sprite = (
                draw_smoke(rng)
                if rng.random() < self.smoke
                else draw_sprite(self.things[rng.integers(len(self.things))], rng)
            )
            if rng.random() < 0.5:
                sprite = np.rot90(sprite, int(rng.integers(4)))
            rgba = padded(sprite)[None]
            slot = self.take_slot()
            self.pictures[slot] = (rgba[0] * 255).round().to(torch.uint8)
            self.latents[slot] = encode(self.vae, rgba)[0].cpu()

    def batch(self, count: int, side: int) -> tuple[Tensor, Tensor]:
        """Return random crops ``[B, 4, side, side]`` in 0..1 and their latents."""
        cells, last = side // CELL, (CANVAS - side) // CELL
        pictures, latents = [], []
        for index in self.draw(count):
            y, x = self.rng.integers(0, last + 1, 2)
            pictures.append(self.pictures[index, :, y * CELL :, x * CELL :][:, :side, :side])
            latents.append(self.latents[index, :, y:, x:][:, :cells, :cells])
        rgba = (torch.stack(pictures).float() / 255).to(device(), memory_format=torch.channels_last)
        return rgba, torch.stack(latents).to(device())


@torch.no_grad()
def encode(vae: AutoencoderTiny, rgba: Tensor) -> Tensor:
    """Return the latents, without offset, of RGBA in 0..1 on grey."""
    grey = over_mid_grey(rgba).to(device(), memory_format=torch.channels_last)
    with half_precision():
        return vae.encoder(grey * 2 - 1).float()


def decode_pixels(vae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Decode latents to pictures in 0..1 with the VAE."""
    return ((vae.decoder(latents).float() + 1) / 2).clamp(0, 1)


@torch.no_grad()
def judge(model: Autoencoder, vae: AutoencoderTiny, seed: int = HELD_OUT) -> dict[str, float]:
    """Measure encoder, VAE and decoder (one pass) on sprites that were never trained on. The figures are
    PSNRs in
    dB: of alpha; of the colours where alpha is above 0.1; of the VAE's picture to the one on grey.
    """
    rng = np.random.default_rng(seed)
    sprites = [draw_sprite(t, rng) for t in THINGS if t not in KNOWN]
    figures = {}
    for name, drawn in (("", sprites), ("smoke_", [draw_smoke(rng) for _ in range(8)])):
        sums = np.zeros(3)
        for sprite in drawn:
            rgba = padded(sprite)[None]
            latents = encode(vae, rgba).cpu() + model.offset(rgba)
            pixels = decode_pixels(vae, latents.to(vae.device)).cpu()
            result = model.decode(pixels, latents).clamp(0, 1)
            shown = (rgba[:, 3:] > 0.1).expand(-1, 3, -1, -1)
            sums += [
                psnr(result[:, 3:], rgba[:, 3:]),
                psnr(result[:, :3][shown], rgba[:, :3][shown]),
                psnr(pixels, over_mid_grey(rgba)),
            ]
        for key, value in zip(("alpha_psnr", "colour_psnr", "identity_psnr"), sums / len(drawn), strict=True):
            figures[name + key] = round(float(value), 2)
    return figures


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio of values in 0..1, dB."""
    return float(-10 * torch.log10((a - b).square().mean().clamp_min(1e-10)))


def train(rank: int, processes: int, options: Any) -> None:
    """Train the transparent autoencoder in one process."""
    torch.manual_seed(options.seed + rank)
    export = Path(options.folder) / "export"
    vae = frozen_vae(export)
    model = Autoencoder()
    model.load(MODEL / "transparent", options.fresh)
    prepare(model)
    trainer = Trainer(
        model,
        Path(options.folder) / "transparent",
        rank,
        processes,
        minutes=options.minutes,
        rate=options.rate or 1e-3,
        average=0.998,
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    sprites = Sprites(vae, rng, KNOWN, SMOKE_SHARE)
    sprites.add(64)
    going = True
    while going:
        # Norms depend on the whole picture, so the end of the run trains on whole pictures.
        side, count = (64, 8 * options.scale) if trainer.progress < 0.6 else (CANVAS, 3 * options.scale)
        sprites.add(max(count // 8, 1))
        rgba, latents = sprites.batch(count, side)
        known = torch.rand(count, 1, 1, 1, device=device()) > 0.1
        with half_precision():
            offset = model.offset(rgba).float()
            z = latents + offset + NOISE * torch.rand_like(latents[:, :1, :1, :1]) * torch.randn_like(latents)
            pixels = decode_pixels(vae, z)
            result = model.decode(pixels, torch.where(known, z, 0)).float()
        error = result - rgba
        colours, alpha = error[:, :3], error[:, 3]
        shown = 0.1 + 0.9 * rgba[:, 3:]
        # The squared error of alpha is what its PSNR measures.
        recon = (shown * (colours.abs() + 10 * colours.square())).mean() + (
            alpha.abs() + ALPHA_SQUARE * alpha.square()
        ).mean()
        identity = (pixels - over_mid_grey(rgba)).square().mean()
        alpha_error = alpha.detach().square().mean()
        going = trainer.update(
            recon + IDENTITY * identity,
            count,
            alpha=-10 * alpha_error.log10(),
            identity=-10 * identity.detach().log10(),
        )
        if trainer.due(4.0) or not going:
            if rank == 0:
                judged = Autoencoder()
                judged.load_state_dict({k: v.cpu() for k, v in trainer.averaged().items()})
                trainer.record(**judge(judged, vae))
                judged.save(export / "transparent", judged.state_dict())
            trainer.save()
