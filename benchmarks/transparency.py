"""Measure the storybook's transparent layers:
``python -m benchmarks.transparency [--json] [-n N] [--pictures FOLDER]``.

Reconstruction: objects that the autoencoder was not trained on (15 of 144), at new places, and smoke pass
through encoder, VAE and decoder. Generation: all 144 objects are made in turn from new noise with the shipped
LoRA, and the judge examines each layer on a landscape.

* ``alpha_psnr`` (one pass), ``alpha_psnr_8`` (the median of eight), ``smoke_alpha_psnr``: PSNR of alpha over
  the whole 128 x 128 canvas, dB.
* ``object_right``: the judge finds exactly the wanted object, in kind and colour.
* ``alpha_iou``: IoU of alpha (at least 0.4) with the judge's mask of the right object, 0 where it is missing.
* ``background_alpha``: mean alpha more than 8 pixels away from the judge's mask.
* ``material``: difference of the mean alpha inside that mask from that of the same object as drawn.

``..._drawn`` is the same for drawn objects, which no method can surpass. ``layered bench transparency -n 144
--steps 30`` compares with other ways to make such layers, on the same cases and seeds; ``python -m
benchmarks.joint_layers`` measures layers, background and blend made at once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from tqdm import tqdm

from benchmarks.bench.intervals import mean_interval
from benchmarks.bench.judging import Examiner, laid_on, layer_figures
from benchmarks.bench.methods import transparent_layer
from benchmarks.bench.scenes import Case, layer_cases
from demo.train.sprites import KNOWN, draw_smoke, draw_sprite, padded
from demo.train.transparent import Autoencoder, decode_pixels, encode, psnr
from demo.world.drawing import draw_background
from demo.world.places import MODEL, TRANSPARENT
from demo.world.scenes import HELD_OUT
from demo.world.vocabulary import CANVAS, THINGS
from layered_core.formats.pictures import to_image
from layered_core.transparency.transparent_decode import decode
from layered_diffusers.pipeline import LayeredDiffusionPipeline

SAMPLER = "euler_ancestral"

GOALS = {
    "alpha_psnr": "≥ 30",
    "alpha_psnr_8": "≥ 30",
    "object_right": "≥ 0.85",
    "alpha_iou": "≥ 0.85",
    "background_alpha": "≤ 0.02",
}


@torch.no_grad()
def reconstruction(model: Autoencoder, vae: AutoencoderTiny, rounds: int) -> dict[str, list[float]]:
    """Return the figures of the reconstruction, with one value for each sprite."""
    rng = np.random.default_rng(HELD_OUT)
    figures: dict[str, list[float]] = {
        k: [] for k in ("alpha_psnr", "alpha_psnr_8", "colour_psnr", "smoke_alpha_psnr")
    }
    for _ in tqdm(range(rounds), desc="reconstruction", file=sys.stderr):
        drawn = [(False, draw_sprite(t, rng)) for t in THINGS if t not in KNOWN] + [
            (True, draw_smoke(rng)) for _ in range(4)
        ]
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


def judged(examiner: Examiner, cases: Sequence[Case], layers: Tensor) -> dict[str, list[float]]:
    """Return the figures of layers ``[n, 4, 128, 128]`` that the suite ``transparency`` has too, with one
    value for each layer that has the figure."""
    flat = torch.stack([laid_on(layer, case.backdrop) for layer, case in zip(layers, cases, strict=True)])
    verdicts = examiner.judge.look(flat)
    each = [
        layer_figures(case, layer, verdict)
        for case, layer, verdict in zip(cases, layers, verdicts, strict=True)
    ]
    return {name: [figures[name] for figures in each if not math.isnan(figures[name])] for name in each[0]}


def generate(cases: Sequence[Case], steps: int, guidance: float, batch: int) -> Tensor:
    """Make a layer ``[4, 128, 128]`` of each case as the suite's method does, with seed i for the i-th."""
    pipeline = LayeredDiffusionPipeline.from_pretrained(sampler=SAMPLER)
    layers = []
    for start in tqdm(range(0, len(cases), batch), desc="layers", file=sys.stderr):
        part = cases[start : start + batch]
        seeds = list(range(start, start + len(part)))
        layers.append(transparent_layer(pipeline, part, seeds=seeds, steps=steps, guidance=guidance))
    return torch.cat(layers)


def measure(count: int, steps: int, guidance: float, batch: int, pictures: Path | None) -> dict[str, object]:
    """Measure everything that the command prints."""
    model = Autoencoder()
    model.load(TRANSPARENT)
    model.eval().requires_grad_(False)
    vae = AutoencoderTiny.from_pretrained(MODEL / "vae").float().requires_grad_(False)
    examiner, cases = Examiner(MODEL), layer_cases(count)
    figures = reconstruction(model, vae, rounds=max(count // 36, 1))
    layers = generate(cases, steps, guidance, batch)
    figures |= judged(examiner, cases, layers)
    figures |= {
        f"{k}_drawn": v for k, v in judged(examiner, cases, torch.stack([c.sprite for c in cases])).items()
    }
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        to_image(sheet(layers)).save(pictures / "transparent_layers.png")
    return summary(figures, steps, guidance)


def summary(figures: Mapping[str, Sequence[float]], steps: int, guidance: float) -> dict[str, object]:
    """Return the means of ``figures`` with their intervals, numbers and settings."""
    result: dict[str, object] = {k: round(mean_interval(v).mean, 4) for k, v in figures.items()}
    result["intervals"] = {
        k: [round(mean_interval(v).low, 4), round(mean_interval(v).high, 4)] for k, v in figures.items()
    }
    result["n"] = {k: len(v) for k, v in figures.items()}
    result["settings"] = {"sampler": SAMPLER, "steps": steps, "guidance": guidance}
    return result


def checkerboard() -> Tensor:
    """Return the checkerboard on which transparent layers are shown, ``[3, H, W]``."""
    cells = torch.arange(CANVAS) // 16
    return (0.5 + 0.1 * ((cells[:, None] + cells) % 2 - 0.5)).expand(3, -1, -1)


def sheet(layers: Tensor, columns: int = 8) -> Tensor:
    """Join the first layers, up to 16, into a grid ``[H, W, 3]``: each over a checkerboard and, below it, on
    two landscapes."""
    layers = layers[: min(16, len(layers) // columns * columns)]
    rng = np.random.default_rng(0)
    drawn = [
        torch.from_numpy(draw_background(name, rng).copy()).permute(2, 0, 1).float() / 255
        for name in ("meadow", "night")
    ]
    rows = []
    for start in range(0, len(layers), columns):
        for back in (checkerboard(), *drawn):
            rows.append(torch.cat([laid_on(layer, back) for layer in layers[start : start + columns]], 2))
    return torch.cat(rows, 1).permute(1, 2, 0)


Measure = Callable[[int, int, float, int, Path | None], dict[str, object]]
"""The function ``measure`` of this module."""


def command(description: str | None, measure: Measure, goals: Mapping[str, str]) -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=144, help="number of layers to make (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="sampling steps (default: %(default)s)")
    parser.add_argument(
        "--guidance", type=float, default=2.0, help="classifier-free guidance (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=24, help="layers in a batch (default: %(default)s)")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="also write the first layers, as a grid"
    )
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
        print(f"| {name} | {result[name]} | {low} – {high} | {counts[name]} | {goals.get(name, '')} |")


if __name__ == "__main__":
    command(__doc__, measure, GOALS)
