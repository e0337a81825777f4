"""Train the pasted-or-native classifier on drawn scenes: ``python -m demo.train.harmony``; a few minutes on
one CPU core."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.train.loop import Trainer, device, half_precision, launch, start_from
from demo.world.harmony import WEIGHTS, Harmony, pasted
from demo.world.scenes import HELD_OUT, random_scene
from layered_core.canvas.compositing import composite

KEPT = 3072
"""Number of crops kept to train on again."""


def pairs(seeds: list[int]) -> tuple[Tensor, Tensor]:
    """Make every scene drawn as one, then every scene pasted.

    Returns:
        pictures ``[2 B, 3, 128, 128]`` in 0..1, and the share of each cell that objects cover,
        ``[2 B, 32, 32]`` in 0..1.
    """
    scenes = [random_scene(seed, count=1 + seed % 4) for seed in seeds]
    native = [torch.from_numpy(s.picture().astype(np.float32) / 255) for s in scenes]
    collages = [composite(pasted(s, s.seed))[..., :3] for s in scenes]
    shares = nn.functional.avg_pool2d(
        torch.stack([torch.from_numpy((s.object_map() > 0).astype(np.float32)) for s in scenes]), 4
    )
    return torch.stack(native + collages).permute(0, 3, 1, 2), shares.repeat(2, 1, 1)


def crops(rng: np.random.Generator, pictures: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Cut two crops of half the width out of each picture, each around a random point of an object: pictures
    ``[2 B, 3, 64, 64]`` and shares ``[2 B, 16, 16]``."""
    cut, covered = [], []
    for picture, share in zip(pictures, shares, strict=True):
        for row, column in rng.permutation((share > 0.5).nonzero().numpy())[:2]:
            y, x = int(np.clip(row, 8, 24)) - 8, int(np.clip(column, 8, 24)) - 8
            cut.append(picture[:, 4 * y : 4 * y + 64, 4 * x : 4 * x + 64])
            covered.append(share[y : y + 16, x : x + 16])
    return torch.stack(cut), torch.stack(covered)


def calibrate(harmony: Harmony, vae: AutoencoderTiny, seeds: list[int]) -> None:
    """Fit the layer that turns the logit of a picture's worst cells into its probability."""
    harmony.eval()
    drawn, _ = pairs(seeds)
    truth = torch.cat([torch.ones(len(seeds)), torch.zeros(len(seeds))]).repeat(2)
    with torch.no_grad():
        worst = torch.cat([harmony.worst(x) for x in (drawn, through(vae, drawn))])
    optimiser = torch.optim.LBFGS(harmony.head.parameters(), max_iter=100)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(harmony.head(worst)[:, 0], truth)
        value.backward()
        return value

    optimiser.step(loss)


@torch.no_grad()
def through(vae: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """Encode and decode the pictures, so that both classes have the decoder's traces."""
    with half_precision():
        latents = vae.encode(pictures.contiguous(memory_format=torch.channels_last) * 2 - 1).latents
        return (vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)


def _vae() -> AutoencoderTiny:
    vae: AutoencoderTiny = AutoencoderTiny.from_pretrained(WEIGHTS.parent.parent / "vae").float()
    return vae.to(memory_format=torch.channels_last)


def accuracy(
    harmony: Harmony, scenes: int, vae: AutoencoderTiny | None = None, seed: int = HELD_OUT
) -> float:
    """Return the share of held-out pictures, half of them pasted, that are classified right."""
    right = 0
    for start in range(0, scenes, 32):
        seeds = list(range(seed + start, seed + min(start + 32, scenes)))
        pictures, _ = pairs(seeds)
        native = harmony.native(pictures if vae is None else through(vae, pictures)) > 0.5
        right += int(native[: len(seeds)].sum()) + int((~native[len(seeds) :]).sum())
    return right / (2 * scenes)


def train(rank: int, processes: int, options: Any) -> None:
    """Train the classifier in one process."""
    torch.manual_seed(options.seed)
    model = Harmony()
    start_from(model, WEIGHTS, options.fresh)
    model.to(device())
    vae = _vae()
    trainer = Trainer(
        model,
        Path(options.folder) / "harmony",
        rank,
        processes,
        minutes=options.minutes,
        rate=3e-3,
        average=0.98,
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    seen, shares, truth = torch.empty(0, 3, 64, 64), torch.empty(0, 16, 16), torch.empty(0)
    going = True
    while going:
        # Drawing takes longer than a step, so every crop is used several times.
        for _ in range(1 if len(seen) else 12):
            drawn, share = pairs([int(s) for s in rng.integers(HELD_OUT, size=2)])
            new, covered = crops(rng, torch.cat([drawn, through(vae, drawn)]), share.repeat(2, 1, 1))
            seen, shares = torch.cat([seen, new])[-KEPT:], torch.cat([shares, covered])[-KEPT:]
            truth = torch.cat([truth, torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1] * 2)])[-KEPT:]
        for _ in range(4):
            chosen = torch.from_numpy(rng.integers(len(seen), size=32))
            share = shares[chosen].to(device())
            wrong = truth[chosen].to(device())[:, None, None].expand_as(share)
            # The same for both classes, so that differences which all generated pictures have do not count.
            gain, shift = torch.empty(2, len(chosen), 3, 1, 1)
            pictures = (seen[chosen] * gain.uniform_(0.97, 1.03) + shift.uniform_(-0.02, 0.02)).clamp(0, 1)
            cells = model(pictures.to(device()))[0]
            objects, empty = share > 0.5, share == 0
            loss = nn.functional.binary_cross_entropy_with_logits(cells[objects], wrong[objects])
            loss = loss + 0.2 * nn.functional.softplus(cells[empty]).mean()
            going = trainer.update(
                loss, len(chosen), right=((cells > 0).float() == wrong)[objects].float().mean()
            )
        if trainer.due(2.0) or not going:
            if rank == 0:
                judged = Harmony()
                judged.load_state_dict({k: v.cpu() for k, v in trainer.averaged().items()})
                calibrate(judged, vae, [int(s) for s in rng.integers(HELD_OUT, size=96)])
                trainer.record(accuracy=accuracy(judged, 96), accuracy_through_vae=accuracy(judged, 96, vae))
                folder = Path(options.folder) / "export" / "judge"
                folder.mkdir(parents=True, exist_ok=True)
                save_file(
                    {k: v.half() if v.is_floating_point() else v for k, v in judged.state_dict().items()},
                    folder / "harmony.safetensors",
                )
            trainer.save()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.train.harmony",
        description="Train the pasted-or-native classifier. Resumes when interrupted.",
    )
    parser.add_argument(
        "--folder",
        default="output/train",
        help="checkpoints, logs and exported weights (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes", type=float, default=10, help="length of the whole run (default: %(default)s)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="number of processes, of one thread each (default: %(default)s)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start from random weights where there is no checkpoint (default: from the shipped weights)",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--measure",
        type=int,
        metavar="N",
        help="train nothing, but measure how often the shipped weights are right on N new scenes",
    )
    options = parser.parse_args()
    if options.measure:
        shipped = Harmony.load()
        for name, vae in (("drawn", None), ("through the VAE", _vae())):
            sys.stdout.write(
                f"{name}: {accuracy(shipped, options.measure, vae, HELD_OUT + 50_000):.3f} right of "
                f"{2 * options.measure}\n"
            )
        return
    launch(train, options.processes, options)


if __name__ == "__main__":
    main()
