"""How good the storybook's transparent layers are: ``python -m benchmarks.transparency [--json] [-n N] [--pictures FOLDER]``.

Reconstruction: objects that the autoencoder never saw in training (15 of 144 kinds, colours and materials), at new places, and smoke; through
encoder, VAE and decoder. Generation: all 144 objects in turn from new noise, with the shipped LoRA; the judge reads each layer on a landscape.

* ``alpha_psnr`` (one pass), ``alpha_psnr_8`` (the median of eight), ``smoke_alpha_psnr``: of alpha over the whole 128 x 128 canvas, dB.
* ``object_right``: the judge sees the kind and colour asked for, and no other object.
* ``alpha_iou``: alpha of at least 0.4 against the judge's mask of the right object (0 where it is not there); ``alpha_iou_drawn`` is the same
  of drawn sprites, the most that can be hoped for.
* ``background_alpha``: mean alpha more than 8 pixels away from the judge's mask.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, EulerAncestralDiscreteScheduler
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.intervals import mean_interval
from demo.drawing import draw_background
from demo.judge import Judge
from demo.train.ship import MODEL
from demo.train.sprites import KNOWN, THINGS, draw_smoke, draw_sprite, padded
from demo.train.transparent import Autoencoder, decode_pixels, encode, psnr
from demo.train.vae import HELD_OUT
from demo.vocabulary import BACKGROUNDS, Thing
from layered_core.pictures import to_image
from layered_core.transparent_decode import decode
from layered_diffusers.layer_diffuse import LayerDiffuse
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Method, Run

FOLDER = MODEL / "transparent"

GOALS = {"alpha_psnr": "≥ 30", "alpha_psnr_8": "≥ 30", "object_right": "≥ 0.85", "alpha_iou": "≥ 0.85", "background_alpha": "≤ 0.02"}

PRESENT = 0.4
"""Least alpha that counts as the object: glass has 0.5 inside, a halo less than 0.4."""


class Keep(Method):
    """Keeps a run's last latents."""

    def __init__(self) -> None:
        self.latents = torch.zeros(0)

    def after_step(self, run: Run, index: int) -> None:
        """See the class."""
        self.latents = run.latents.clone()


@torch.no_grad()
def reconstruction(model: Autoencoder, vae: AutoencoderTiny, rounds: int) -> dict[str, list[float]]:
    """``alpha_psnr`` and more, one value a sprite."""
    rng = np.random.default_rng(HELD_OUT)
    figures: dict[str, list[float]] = {k: [] for k in ("alpha_psnr", "alpha_psnr_8", "colour_psnr", "smoke_alpha_psnr")}
    for _ in tqdm(range(rounds), desc="reconstruction", file=sys.stderr):
        drawn = [(False, draw_sprite(t, rng)) for t in THINGS if t not in KNOWN] + [(True, draw_smoke(rng)) for _ in range(4)]
        for smoke, sprite in drawn:
            rgba = padded(sprite)[None]
            latents = encode(vae, rgba).cpu() + model.offset(rgba)
            pixels = decode_pixels(vae, latents)
            one = decode(model.decoder, pixels, latents, augmentations=1)
            if smoke:
                figures["smoke_alpha_psnr"].append(psnr(one[:, 3], rgba[:, 3]))
                continue
            eight = decode(model.decoder, pixels, latents, augmentations=8)
            shown = (rgba[:, 3:] > 0.1).expand(-1, 3, -1, -1)
            figures["alpha_psnr"].append(psnr(one[:, 3], rgba[:, 3]))
            figures["alpha_psnr_8"].append(psnr(eight[:, 3], rgba[:, 3]))
            figures["colour_psnr"].append(psnr(eight[:, :3][shown], rgba[:, :3][shown]))
    return figures


def judged(judge: Judge, layers: Tensor, things: list[Thing]) -> dict[str, list[float]]:
    """What the judge says of layers ``[n, 4, 128, 128]``, each on a landscape."""
    figures: dict[str, list[float]] = {"object_right": [], "alpha_iou": [], "background_alpha": []}
    rng = np.random.default_rng(0)
    names = list(BACKGROUNDS)
    for i, (layer, thing) in enumerate(zip(layers, things, strict=True)):
        back = torch.from_numpy(draw_background(names[i % len(names)], rng).copy()).permute(2, 0, 1).float() / 255
        (verdict,) = judge.look((layer[:3] * layer[3:] + back * (1 - layer[3:]))[None])
        figures["object_right"].append(float(verdict.shows([thing])))
        mask = next((f.mask for f in verdict.objects if f.thing == (thing.colour, thing.kind)), None)
        if mask is None:
            figures["alpha_iou"].append(0.0)
            continue
        seen = mask.repeat_interleave(2, 0).repeat_interleave(2, 1)
        present = layer[3] >= PRESENT
        figures["alpha_iou"].append(float((seen & present).sum() / (seen | present).sum()))
        away = nn.functional.max_pool2d(seen[None, None].float(), 17, 1, 8)[0, 0] == 0
        figures["background_alpha"].append(float(layer[3][away].mean()))
    return figures


@torch.no_grad()
def generate(model: Autoencoder, count: int, steps: int, guidance: float, batch: int) -> tuple[Tensor, list[Thing]]:
    """``count`` layers ``[n, 4, 128, 128]`` and what they should show."""
    pipeline = LayeredDiffusionPipeline.from_pretrained()
    pipeline.model.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.model.scheduler.config)
    change, keep = LayerDiffuse(pipeline.model, FOLDER / "lora.safetensors"), Keep()
    # 25 shares no factor with 144: the first n are spread over kinds, colours and materials.
    things = [THINGS[i * 25 % len(THINGS)] for i in range(count)]
    layers = []
    for start in tqdm(range(0, count, batch), desc="layers", file=sys.stderr):
        part = things[start : start + batch]
        seeds = list(range(start, start + len(part)))
        pixels = pipeline.generate([t.words for t in part], seeds=seeds, steps=steps, guidance=guidance, methods=[change, keep])
        layers.append(decode(model.decoder, pixels, keep.latents, augmentations=8, batch=batch))
    return torch.cat(layers), things


def measure(count: int, steps: int, guidance: float, batch: int, pictures: Path | None) -> dict[str, object]:
    """Everything the command prints."""
    model = Autoencoder()
    model.load(FOLDER)
    model.eval().requires_grad_(False)
    vae = AutoencoderTiny.from_pretrained(MODEL / "vae").float().requires_grad_(False)
    judge = Judge.load()
    figures = reconstruction(model, vae, rounds=max(count // 36, 1))
    layers, things = generate(model, count, steps, guidance, batch)
    figures |= judged(judge, layers, things)
    rng = np.random.default_rng(HELD_OUT + 1)
    drawn = torch.stack([torch.from_numpy(draw_sprite(t, rng).copy()).permute(2, 0, 1).float() / 255 for t in things])
    figures |= {f"{k}_drawn": v for k, v in judged(judge, drawn, things).items()}
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        to_image(sheet(layers)).save(pictures / "transparent_layers.png")
    result: dict[str, object] = {k: round(mean_interval(v).mean, 4) for k, v in figures.items()}
    result["intervals"] = {k: [round(mean_interval(v).low, 4), round(mean_interval(v).high, 4)] for k, v in figures.items()}
    result["n"] = {k: len(v) for k, v in figures.items()}
    result["settings"] = {"sampler": "euler_ancestral", "steps": steps, "guidance": guidance}
    return result


def sheet(layers: Tensor, columns: int = 8) -> Tensor:
    """The first 32 layers over a checkerboard ``[H, W, 3]``."""
    shown = layers[: min(32, len(layers) // columns * columns)]
    cells = torch.arange(128) // 16
    board = 0.5 + 0.1 * ((cells[:, None] + cells) % 2 - 0.5)
    over = shown[:, :3] * shown[:, 3:] + board * (1 - shown[:, 3:])
    return over.reshape(-1, columns, 3, 128, 128).permute(0, 3, 1, 4, 2).reshape(-1, columns * 128, 3)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=144, help="layers to make (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="sampling steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="classifier-free guidance (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=24, help="layers at once (default: %(default)s)")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also write a sheet of the layers")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    if options.n < 8:
        parser.error("-n must be at least 8")
    result = measure(options.n, options.steps, options.guidance, options.batch, options.pictures)
    if options.json:
        print(json.dumps(result))
        return
    intervals, counts = result["intervals"], result["n"]
    assert isinstance(intervals, dict)
    assert isinstance(counts, dict)
    print("| figure | value | 95 % interval | n | goal |\n| --- | --- | --- | --- | --- |")
    for name, (low, high) in intervals.items():
        print(f"| {name} | {result[name]} | {low} – {high} | {counts[name]} | {GOALS.get(name, '')} |")


if __name__ == "__main__":
    main()
