"""Print how much a LoRA changes one prediction in its layer, as a share of what it changes when it is loaded for the
whole picture: ``python -m benchmarks.look_prediction [-n N] [--json]``.

Drawn scenes are noised to a level, and the storybook model predicts them once: without a LoRA, with it in its layer,
and with it everywhere. With the differences d (in its layer) and e (everywhere) to the prediction without it, in the
latent cells inside the layer, over all scenes:

    along = sum(d e) / sum(e e)        length = sqrt(sum(d d) / sum(e e))

``outside`` is the length in the cells outside the layer. A whole sampling run makes other pictures of small
differences in its first steps, so its shares (:mod:`benchmarks.look_effect`) scatter much more.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.bench.intervals import Interval, resamples
from benchmarks.bench.looks import OWNERS, acting
from benchmarks.bench.scenes import Case, few_cases
from layered_diffusers.models.loading import find_model
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Method, Run

STRENGTHS = (1.0, 0.8, 0.6, 0.4)
"""Noise levels, as the share of the sampling that is still to come."""


class _SeenError(Exception):
    """The prediction was made."""


class _Peek(Method):
    """Keeps the first guided prediction and ends the run."""

    def guided(self, run: Run, prediction: Tensor, cond: Tensor, model_input: Tensor, index: int) -> Tensor:
        self.prediction = prediction.clone()
        raise _SeenError


def predict(
    pipeline: LayeredDiffusionPipeline, cases: Sequence[Case], strength: float, *looks: str, everywhere: bool
) -> Tensor:
    """Return one guided prediction of every noised scene, ``[B, C, h, w]``."""
    peek = _Peek()
    prompts, methods = acting(pipeline, cases, looks, everywhere, {"guidance": 6, "growth": 0.03})
    start = torch.stack([case.picture for case in cases])
    with suppress(_SeenError):
        pipeline.generate(
            prompts, seeds=range(len(cases)), start=start, strength=strength, methods=[*methods, peek]
        )
    return peek.prediction


def shares(here: Tensor, everywhere: Tensor, inside: Tensor) -> dict[str, Interval]:
    """Return ``along``, ``length`` and ``outside`` of differences ``[B, C, h, w]``, with bootstrap 95 % intervals over
    scenes; ``inside``: the layers' masks ``[B, 1, h, w]``, 0..1."""
    parts = {
        name: (
            (a * b * cells).sum((1, 2, 3)).numpy(),
            (everywhere * everywhere * cells).sum((1, 2, 3)).numpy(),
        )
        for name, a, b, cells in (
            ("along", here, everywhere, inside > 0.95),
            ("length", here, here, inside > 0.95),
            ("outside", here, here, inside < 0.02),
        )
    }
    drawn = resamples(len(here), 2000)
    out = {}
    for name, (above, below) in parts.items():
        power = 1.0 if name == "along" else 0.5
        means = (above[drawn].sum(1) / below[drawn].sum(1)) ** power
        low, high = np.quantile(means, (0.025, 0.975))
        out[name] = Interval(float((above.sum() / below.sum()) ** power), float(low), float(high), len(here))
    return out


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=32, help="number of scenes (default: 32)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    pipeline = LayeredDiffusionPipeline.from_pretrained(find_model(None), sampler="euler_ancestral")
    cases, found = few_cases(options.n), {}
    print("| LoRA | noise | measure | share of the whole-picture LoRA's | 95 % |")
    print("| --- | --- | --- | --- | --- |")
    for look, own in OWNERS.items():
        masks = torch.stack([case.masks[own] for case in cases])[:, None]
        for strength in STRENGTHS:
            without = predict(pipeline, cases, strength, everywhere=False)
            here = predict(pipeline, cases, strength, look, everywhere=False) - without
            everywhere = predict(pipeline, cases, strength, look, everywhere=True) - without
            inside = functional.interpolate(masks, size=here.shape[-2:], mode="area")
            for name, x in shares(here, everywhere, inside).items():
                found[f"{look} {strength:g} {name}"] = x
                print(
                    f"| {look} | {strength:g} | {name} | {x.mean:.2f} | {x.low:.2f} – {x.high:.2f} |",
                    flush=True,
                )
    if options.json:
        print(json.dumps({name: x._asdict() for name, x in found.items()}))


if __name__ == "__main__":
    main()
