"""Measure how well the storybook makes foreground, background and blend at once:
``python -m benchmarks.together [--json] [-n N] [--pictures FOLDER]``.

All 144 objects are made in turn on the six landscapes from new noise. The judge examines the foreground on a
drawn landscape, and the background and the blend as they are.

* ``foreground_right``, ``alpha_iou``, ``background_alpha``: as ``object_right``, ``alpha_iou`` and
  ``background_alpha`` of ``benchmarks.transparency``.
* ``background_right``: the judge finds the wanted landscape and no object.
* ``blend_right``: the judge finds the wanted landscape and exactly the wanted object.
* ``same_object``: IoU of the foreground's alpha (at least 0.4) with the judge's mask of the right object in
  the blend, 0 where the object is missing.
* ``same_background``: PSNR of the background to the blend, dB, more than 8 pixels away from any object that
  the judge finds in the blend.

``apart_...`` is the same for three pictures made separately from the same words: a transparent layer, the
landscape's words, the whole prompt.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.bench.judging import PRESENT, Examiner, around, full_size, laid_on, layer_figures, seen_mask
from benchmarks.bench.scenes import Case, layer_cases
from benchmarks.transparency import SAMPLER, checkerboard, command, summary
from demo.world.judge import Verdict
from demo.world.places import MODEL
from layered_core.formats.pictures import to_image
from layered_core.metrics.layout_metrics import mask_iou
from layered_core.metrics.picture_metrics import outside_mse, psnr
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.transparent import Together


def generate(
    pipeline: LayeredDiffusionPipeline,
    cases: Sequence[Case],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Together:
    """Make the three pictures of each case at once."""
    return pipeline.generate_together([c.words for c in cases], seeds=seeds, steps=steps, guidance=guidance)


def generate_apart(
    pipeline: LayeredDiffusionPipeline,
    cases: Sequence[Case],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Together:
    """Make the three pictures of each case separately."""
    return Together(
        pipeline.generate_transparent(
            [c.things[0].words for c in cases], seeds=seeds, steps=steps, guidance=guidance
        ),
        pipeline.generate([c.background_words for c in cases], seeds=seeds, steps=steps, guidance=guidance),
        pipeline.generate([c.words for c in cases], seeds=seeds, steps=steps, guidance=guidance),
    )


def figures(examiner: Examiner, cases: Sequence[Case], made: Together) -> dict[str, list[float]]:
    """Return each figure, with one value for each case that has it."""
    look = examiner.judge.look
    on_others = look(
        torch.stack(
            [laid_on(layer, case.backdrop) for layer, case in zip(made.foreground, cases, strict=True)]
        )
    )
    found: dict[str, list[float]] = {}
    for i, (case, front, behind, both) in enumerate(
        zip(cases, on_others, look(made.background), look(made.blend), strict=True)
    ):
        alone = layer_figures(case, made.foreground[i], front)
        each = {
            "foreground_right": alone["object_right"],
            "alpha_iou": alone["alpha_iou"],
            "background_alpha": alone["background_alpha"],
            "background_right": float(behind.background == case.scene.background and not behind.objects),
            "blend_right": float(both.background == case.scene.background and both.shows(case.things)),
            "same_object": same_object(case, made.foreground[i, 3], both),
            "same_background": same_background(made.background[i], made.blend[i], both),
        }
        for name, value in each.items():
            if not math.isnan(value):
                found.setdefault(name, []).append(value)
    return found


def same_object(case: Case, alpha: Tensor, blend: Verdict) -> float:
    """Return the IoU of the foreground's alpha and the judge's mask of its object in the blend, 0..1."""
    seen = seen_mask(blend, case.things[0], alpha)
    return 0.0 if seen is None else float(mask_iou(alpha >= PRESENT, seen))


def same_background(background: Tensor, blend: Tensor, verdict: Verdict) -> float:
    """Return the PSNR of background and blend away from objects, dB; NaN if objects leave no background."""
    near = torch.zeros_like(blend[0], dtype=torch.bool)
    for found in verdict.objects:
        near |= around(full_size(found.mask, near))
    return math.nan if bool(near.all()) else psnr(outside_mse(background, blend, near))


def sheet(made: Together) -> Tensor:
    """Join pictures into a grid ``[H, W, 3]`` with a column for each case: foreground over a checkerboard,
    background, foreground over background, blend."""
    columns = [
        torch.cat([laid_on(front, checkerboard()), behind, laid_on(front, behind), both], 1)
        for front, behind, both in zip(*made, strict=True)
    ]  # fmt: skip
    return torch.cat(columns, 2).permute(1, 2, 0)


def measure(count: int, steps: int, guidance: float, batch: int, pictures: Path | None) -> dict[str, object]:
    """Measure everything that the command prints."""
    pipeline, examiner, cases = (
        LayeredDiffusionPipeline.from_pretrained(sampler=SAMPLER),
        Examiner(MODEL),
        layer_cases(count),
    )
    found: dict[str, list[float]] = {}
    for prefix, way in (("", generate), ("apart_", generate_apart)):
        for start in tqdm(range(0, count, batch), desc=way.__name__, file=sys.stderr):
            part = cases[start : start + batch]
            made = way(pipeline, part, range(start, start + len(part)), steps, guidance)
            for name, values in figures(examiner, part, made).items():
                found.setdefault(prefix + name, []).extend(values)
            if pictures is not None and start == 0:
                pictures.mkdir(parents=True, exist_ok=True)
                to_image(sheet(Together(*(x[:8] for x in made)))).save(pictures / f"{prefix}together.png")
    return summary(found, steps, guidance)


if __name__ == "__main__":
    command(__doc__, measure, {})
