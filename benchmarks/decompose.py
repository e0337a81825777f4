"""Measure how well drawn storybook scenes are taken apart into layers:
``python -m benchmarks.decompose [--json] [-n N] [--rows ROW ...] [--pictures FOLDER]``.

The n scenes have two, three and four different solid objects in turn, and captions that training did not use. Rows:

* ``masks``: the words, the masks of what is seen, and the order are the scene's own; the storybook paints what is
  behind.
* ``judge``: the storybook's judge names and finds the objects, the larger counts as farther, the storybook paints.
* ``joint``: the network that makes several layers at once takes the picture apart, given the words, back to front.

Figures of a scene:

* ``layer_right``: of the scene's objects, or of the layers if there are more, those that a layer shows: laid on a drawn
  landscape, the judge finds that object and nothing else.
* ``all_right``: every object has such a layer, and there is no other.
* ``alpha_iou``: soft IoU of a layer's alpha with the object as drawn, with its hidden part; 0 where it is missing.
* ``rgb_l1``, ``soft_iou``: both stacks with their backgrounds, matched in order
  (``layered_core.metrics.decomposition_metrics``); ``rgb_l1_merged`` and ``soft_iou_merged`` after at most one merge.
* ``behind_psnr``: PSNR of the background to the drawn landscape where objects are in front of it, dB.
* ``exact``: the composite of the layers is the picture, every bit of it.
* ``composite_psnr``: PSNR of the composite to the picture, dB.
* ``kept``: the scene passes the data set's own checks (``layered_diffusers.dataset``).
* ``seconds``: time for a scene.

Figures of single layers are means over a scene's objects; intervals are bootstrap intervals over scenes.
``judge - masks`` and so on are differences paired by scene.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.bench.intervals import Interval, paired_interval
from benchmarks.bench.judging import Examiner, laid_on, layer_figures
from benchmarks.bench.scenes import Case, layout_cases
from benchmarks.joint_layers import printed, summary
from benchmarks.joint_ways import words_of
from benchmarks.transparency import SAMPLER, checkerboard
from demo.world.places import MODEL
from layered_core.canvas.compositing import composite
from layered_core.document import Layer, LayerDocument
from layered_core.formats.pictures import to_image
from layered_core.metrics.decomposition_metrics import compare_stacks
from layered_core.metrics.layout_metrics import mask_iou
from layered_core.metrics.picture_metrics import psnr
from layered_diffusers.dataset.filtering import Thresholds
from layered_diffusers.dataset.protocols import Caption, Found, Picture
from layered_diffusers.dataset.providers import STORYBOOK, Parts, Setting, load_parts
from layered_diffusers.dataset.taking_apart import take_apart
from layered_diffusers.pipeline import LayeredDiffusionPipeline

LIMITS = Thresholds(layers=4)
"""Scenes have up to four objects."""


class Made(NamedTuple):
    """A scene taken apart."""

    document: LayerDocument | None
    """The background and the layers; None if nothing was found."""
    kept: float
    """Whether the data set's checks keep it; NaN if they were not made."""


class Known:
    """Words, masks of what is seen, and order of one scene."""

    looks = False

    def __init__(self, case: Case) -> None:
        self.case = case

    def describe(self, picture: Picture) -> Caption:
        """Return the scene's words."""
        case = self.case
        return Caption(case.words, tuple(t.words for t in case.things), case.background_words)

    def find(self, picture: Picture, phrases: Sequence[str]) -> list[Found]:
        """Return the masks of what is seen of the objects; the scene has none of them twice."""
        masks = zip(self.case.things, self.case.masks, strict=True)
        return [Found(t.words, mask, 1.0) for t, mask in masks if t.words in phrases]

    def order(self, picture: Picture, masks: Tensor) -> list[int]:
        """Return the masks in the order in which the objects were drawn."""
        drawn = [int(mask_iou(mask, self.case.masks).argmax()) for mask in masks]
        return sorted(range(len(drawn)), key=drawn.__getitem__)


def by_masks(parts: Parts, pipeline: LayeredDiffusionPipeline, case: Case, steps: int, seed: int) -> Made:
    """Take a scene apart by its own masks."""
    known = Known(case)
    return by_judge(
        replace(parts, captioner=known, segmenter=known, depth=known), pipeline, case, steps, seed
    )


def by_judge(parts: Parts, pipeline: LayeredDiffusionPipeline, case: Case, steps: int, seed: int) -> Made:
    """Take a scene apart by what the parts find."""
    apart = take_apart(case.picture.permute(1, 2, 0), parts, LIMITS)
    return Made(apart.document, float(apart.document is not None and not apart.rejected))


def joint(parts: Parts, pipeline: LayeredDiffusionPipeline, case: Case, steps: int, seed: int) -> Made:
    """Take a scene apart by making its layers at once."""
    scene = words_of(case)
    document = pipeline.decompose(
        to_image(case.picture.permute(1, 2, 0)), scene.layers, background=scene.background, prompt=scene.prompt,
        seed=seed, steps=steps, guidance=2.0,
    )  # fmt: skip
    shown = tuple(x for x in document if x.visible)
    return Made(replace(document, layers=shown), math.nan)


ROWS: dict[str, Callable[[Parts, LayeredDiffusionPipeline, Case, int, int], Made]] = {
    "masks": by_masks, "judge": by_judge, "joint": joint,
}  # fmt: skip


def figures(examiner: Examiner, case: Case, made: Made) -> dict[str, float]:
    """Return the figures of one scene; NaN for those that it does not have."""
    document = made.document or LayerDocument(case.scene.size, case.scene.size, (_whole(case),))
    stack = torch.stack([_alone(document, i) for i in range(len(document))])
    drawn = case.scene.document()
    wanted = torch.stack([_alone(drawn, i) for i in range(len(drawn))])
    found = _layer_figures(examiner, case, document, stack, wanted)
    plain, merged = (compare_stacks(stack, wanted, merges) for merges in (0, 1))
    found |= {"rgb_l1": plain.rgb_l1, "soft_iou": plain.soft_iou}
    found |= {"rgb_l1_merged": merged.rgb_l1, "soft_iou_merged": merged.soft_iou}
    covered = case.masks.amax(0) > 0
    found["behind_psnr"] = psnr(float((stack[0, :3] - case.backdrop).square()[:, covered].mean()))
    whole = composite(document).permute(2, 0, 1)
    found["exact"] = float(torch.equal(whole[:3], case.picture) and bool((whole[3] == 1).all()))
    found["composite_psnr"] = psnr(float((whole[:3] - case.picture).square().mean()))
    found["kept"] = made.kept
    return found


def _layer_figures(
    examiner: Examiner, case: Case, document: LayerDocument, stack: Tensor, wanted: Tensor
) -> dict[str, float]:
    """Return the figures of single layers. Layers and objects belong together by their words; of several layers with
    the same words, the first."""
    right, ious = [], []
    words = [x.prompt for x in document]
    for i, item in enumerate(case.scene.objects):
        # The judge's words have no material, nor have those of solid objects.
        at = next((k for k in range(1, len(words)) if words[k] == item.thing.words), None)
        if at is None:
            right.append(0.0)
            ious.append(0.0)
            continue
        (verdict,) = examiner.judge.look(laid_on(stack[at], case.backdrop)[None])
        single = layer_figures(Case(replace(case.scene, objects=(item,))), stack[at], verdict)
        right.append(single["object_right"])
        ious.append(float(mask_iou(stack[at, 3], wanted[i + 1, 3])))
    most = max(len(words) - 1, len(right))
    return {
        "layer_right": sum(right) / most, "all_right": float(sum(right) == most), "alpha_iou": sum(ious) / len(ious),
    }  # fmt: skip


def _alone(document: LayerDocument, index: int) -> Tensor:
    """Return one layer on the canvas, ``[4, H, W]``."""
    return composite(replace(document, layers=(document.layers[index],), background=None)).permute(2, 0, 1)


def _whole(case: Case) -> Layer:
    """Return the picture as the one layer of a scene in which nothing was found."""
    return Layer("background", torch.cat([case.picture, torch.ones_like(case.picture[:1])]).permute(1, 2, 0))


def sheet(cases: Sequence[Case], scenes: Sequence[Made]) -> Tensor:
    """Join pictures into a grid ``[H, W, 3]`` with a row for each scene: the picture, the background, the layers over a
    checkerboard."""
    rows = []
    for case, made in zip(cases, scenes, strict=True):
        stack = [] if made.document is None else [_alone(made.document, i) for i in range(len(made.document))]
        shown = [case.picture, *(laid_on(x, checkerboard()) for x in stack)]
        shown += [torch.ones_like(case.picture)] * (LIMITS.layers + 2 - len(shown))
        rows.append(torch.cat(shown[: LIMITS.layers + 2], 2))
    return torch.cat(rows, 1).permute(1, 2, 0)


def measure(
    count: int, rows: Sequence[str], steps: int, pictures: Path | None
) -> dict[str, dict[str, Interval]]:
    """Return the figures of each row, and the differences to the first."""
    pipeline, examiner = LayeredDiffusionPipeline.from_pretrained(sampler=SAMPLER), Examiner(MODEL)
    parts = load_parts(STORYBOOK, Setting(lambda: pipeline, sampling={"steps": steps}))
    cases = layout_cases(count)
    found: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    for row in rows:
        scenes = []
        for seed, case in enumerate(tqdm(cases, desc=row, file=sys.stderr)):
            begun = time.perf_counter()
            made = ROWS[row](parts, pipeline, case, steps, seed)
            seconds = time.perf_counter() - begun
            found[row].append(figures(examiner, case, made) | {"seconds": seconds})
            scenes.append(made)
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            to_image(sheet(cases[:8], scenes[:8])).save(pictures / f"decompose_{row}.png")
    result = summary(found)
    column = partial(_column, found)
    for row in rows[1:]:
        result[f"{row} - {rows[0]}"] = {
            name: paired_interval(column(row, name), column(rows[0], name))
            for name in found[row][0]
            if name != "seconds"
        }
    return result


def _column(found: dict[str, list[dict[str, float]]], row: str, name: str) -> list[float]:
    return [scene[name] for scene in found[row]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=96, help="number of scenes (default: %(default)s)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, help="(default: all)")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps (default: %(default)s)")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="also write the first scenes, as grids"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args(arguments)
    if options.n < 1:
        parser.error("-n must be at least 1")
    result = measure(options.n, options.rows, options.steps, options.pictures)
    if options.json:
        named = {row: {name: x._asdict() for name, x in each.items()} for row, each in result.items()}
        settings = {"n": options.n, "steps": options.steps, "thresholds": LIMITS.entries()}
        sys.stdout.write(json.dumps({"settings": settings, "rows": named}) + "\n")
        return
    sys.stdout.write(f"{options.n} scenes\n{printed(result)}\n")


if __name__ == "__main__":
    main()
