"""Measure the shipped model with the judge: ``python -m benchmarks.storybook [--json]``.

No training caption has the wording of these prompts (:func:`demo.world.scenes.is_held_out`), and training
never used the seeds of the scenes for the VAE and the judge. The judge was trained on drawn scenes only and
took no part in training the model.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from tqdm import tqdm

from demo.train.judge import exact as judge_exact
from demo.train.vae import psnr
from demo.world.judge import Judge, Verdict
from demo.world.places import MODEL
from demo.world.scenes import caption, is_held_out, random_things
from demo.world.vocabulary import BACKGROUNDS, Thing
from layered_core.formats.pictures import to_image
from layered_diffusers.pipeline import LayeredDiffusionPipeline

_PARTS = {"background": 0.90, "vae_psnr": 30.0, "judge_exact": 0.97}

GOALS = {
    "unet": {"one_object_exact": 0.90, "two_object_exact": 0.60, **_PARTS},
    "transformer": {"one_object_exact": 0.85, "two_object_exact": 0.50, **_PARTS},
}
"""By network: the least value of figures."""

NETWORKS = ("unet", "transformer")
"""The networks of the shipped model."""

SAMPLERS = ("euler_ancestral", "ddim")
"""The first adds fresh noise at each step, which corrects early mistakes: it draws fewer objects that the
prompt does not name than the second, the UNet's own. The transformer has Euler's alone."""


class Prompt(NamedTuple):
    """A prompt with the background and the objects that it names."""

    background: str
    things: list[Thing]
    words: str


def held_out_prompts(count: int, objects: int, seed: int = 0) -> list[Prompt]:
    """Return ``count`` prompts of held-out wording with ``objects`` different objects each; the backgrounds
    take turns."""
    rng = np.random.default_rng([seed, objects])
    names = list(BACKGROUNDS)
    prompts: list[Prompt] = []
    while len(prompts) < count:
        background, things = random_things(rng, objects, names[len(prompts) % len(names)])
        words = caption([t.words for t in things], BACKGROUNDS[background][0])
        if is_held_out(words) and len({(t.colour, t.kind) for t in things}) == objects:
            prompts.append(Prompt(background, things, words))
    return prompts


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927)."""
    z, p = 1.96, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


class Tally:
    """Counts right answers, by the names of the figures."""

    def __init__(self) -> None:
        self.counts: dict[str, list[bool]] = {}

    def add(self, name: str, right: bool) -> None:
        """Count one answer."""
        self.counts.setdefault(name, []).append(right)

    def judge(self, condition: str, prompt: Prompt, verdict: Verdict) -> None:
        """Count every figure of one picture."""
        background = verdict.background == prompt.background
        kinds, colours = [f.kind for f in verdict.objects], [f.colour for f in verdict.objects]
        self.add("background", background)
        # Exact means: all objects are there with the right kind and colour, there are no others, and with two
        # objects the background is right too.
        right = verdict.shows(prompt.things)
        self.add(f"{condition}_exact", right and (background or len(prompt.things) == 1))
        self.add(f"{condition}_each", not verdict.missing(prompt.things[:1]))
        self.add(f"{condition}_kind", prompt.things[0].kind in kinds)
        self.add(f"{condition}_colour", prompt.things[0].colour in colours)
        self.add(f"{condition}_extra", len(verdict.objects) > len(prompt.things))
        self.add(f"{condition}_fewer", len(verdict.objects) < len(prompt.things))


def sample(
    pipeline: LayeredDiffusionPipeline,
    prompts: list[Prompt],
    steps: int,
    guidance: float,
    batch: int,
    title: str,
) -> Tensor:
    """Sample a picture for every prompt, with seed i for the i-th; ``[n, 3, 128, 128]``."""
    pictures = []
    for start in tqdm(range(0, len(prompts), batch), desc=title, unit="batch", file=sys.stderr):
        part = prompts[start : start + batch]
        seeds = list(range(start, start + len(part)))
        pictures.append(
            pipeline.generate([p.words for p in part], seeds=seeds, steps=steps, guidance=guidance)
        )
    return torch.cat(pictures)


def sheet(pictures: Tensor, columns: int = 12, rows: int = 6) -> Tensor:
    """Join the first pictures into a grid, ``[H, W, 3]``."""
    shown = pictures[: columns * rows]
    columns = min(columns, len(shown))
    shown = shown[: len(shown) // columns * columns]
    grid = shown.reshape(-1, columns, *shown.shape[1:]).permute(0, 3, 1, 4, 2)
    return grid.reshape(-1, columns * shown.shape[-1], 3)


def measure(
    model: Path,
    network: str,
    count: int,
    sampler: str | None,
    steps: int,
    guidance: float,
    batch: int,
    scenes: int,
    pictures_out: Path | None,
) -> dict[str, object]:
    """Measure everything that the command prints."""
    name = "demo-transformer" if network == "transformer" else model
    pipeline = LayeredDiffusionPipeline.from_pretrained(name, sampler=sampler)
    judge = Judge.load(model / "judge" / "judge.safetensors")
    tally = Tally()
    began = time.perf_counter()
    for condition, objects in (("one_object", 1), ("two_object", 2)):
        prompts = held_out_prompts(count, objects)
        pictures = sample(pipeline, prompts, steps, guidance, batch, condition)
        if pictures_out is not None:
            pictures_out.mkdir(parents=True, exist_ok=True)
            to_image(sheet(pictures)).save(pictures_out / f"{condition}.png")
        for prompt, verdict in zip(prompts, judge.look(pictures), strict=True):
            tally.judge(condition, prompt, verdict)
    seconds = (time.perf_counter() - began) / (2 * count)
    vae = AutoencoderTiny.from_pretrained(model / "vae").float()
    result: dict[str, object] = {name: round(sum(a) / len(a), 4) for name, a in tally.counts.items()}
    result["vae_psnr"] = round(psnr(vae, scenes), 2)
    seen = judge_exact(judge, 2 * scenes)
    result["judge_exact"] = round(seen, 4)
    result["seconds_per_picture"] = round(seconds, 3)
    result["intervals"] = {
        name: [round(x, 3) for x in wilson(sum(a), len(a))] for name, a in tally.counts.items()
    } | {"judge_exact": [round(x, 3) for x in wilson(round(seen * 2 * scenes), 2 * scenes)]}
    result["n"] = {"prompts a condition": count, "vae scenes": scenes, "judge scenes": 2 * scenes}
    result["settings"] = {
        "network": network,
        "sampler": sampler or "euler",
        "steps": steps,
        "guidance": guidance,
        "batch": batch,
        "device": str(pipeline.model.device),
    }
    return result


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storybook", description="Measure the storybook model on held-out prompts."
    )
    parser.add_argument(
        "-n", type=int, default=240, help="number of prompts of each condition (default: %(default)s)"
    )
    parser.add_argument(
        "--scenes",
        type=int,
        default=200,
        help="number of drawn scenes for the VAE; the judge gets twice as many (default: %(default)s)",
    )
    parser.add_argument("--network", choices=NETWORKS, default=NETWORKS[0], help="(default: %(default)s)")
    parser.add_argument("--sampler", choices=SAMPLERS, help=f"of the UNet (default: {SAMPLERS[0]})")
    parser.add_argument("--steps", type=int, default=30, help="sampling steps (default: %(default)s)")
    parser.add_argument(
        "--guidance", type=float, default=3.0, help="classifier-free guidance (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=24, help="pictures in a batch (default: %(default)s)")
    parser.add_argument(
        "--model", type=Path, default=MODEL, help="folder of the UNet's model (default: the shipped one)"
    )
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also write the pictures, as grids")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    if options.n < 1 or options.scenes < 1:
        parser.error("-n and --scenes must be at least 1")
    if options.network == "transformer" and (options.sampler or options.model != MODEL):
        parser.error("--network transformer is the shipped one with Euler: leave --model and --sampler out")
    sampler = None if options.network == "transformer" else options.sampler or SAMPLERS[0]
    result = measure(
        options.model,
        options.network,
        options.n,
        sampler,
        options.steps,
        options.guidance,
        options.batch,
        options.scenes,
        options.pictures,
    )
    if options.json:
        print(json.dumps(result))
        return
    intervals, goals = result["intervals"], GOALS[options.network]
    assert isinstance(intervals, dict)
    print("| figure | value | 95 % interval | goal |\n| --- | --- | --- | --- |")
    for name, value in result.items():
        if isinstance(value, float):
            low_high = " – ".join(f"{x:.3f}" for x in intervals[name]) if name in intervals else ""
            print(f"| {name} | {value} | {low_high} | {f'≥ {goals[name]}' if name in goals else ''} |")
    print(f"\n{result['n']}, {result['settings']}")


if __name__ == "__main__":
    main()
