"""Measure how well the storybook makes several layers, their background and their blend at once:
``python -m benchmarks.joint_layers [--json] [-n N] [--layers K ...] [--rows ROW ...] [--model transformer]
[--pictures FOLDER]``.

For each number of layers K, n scenes are made from new noise, each layer from its own words. Scenes of one layer are
the 144 objects in turn on the six landscapes; those of more have different solid objects, and captions that training
did not use. The judge examines every layer on a drawn landscape, and background, composite and blend as they are.

* ``layer_right``: the judge finds exactly the layer's object.
* ``alpha_iou``, ``background_alpha``: as in ``benchmarks.transparency``.
* ``background_right``: the judge finds the wanted landscape and no object.
* ``all_right``: it finds the landscape and all objects and nothing else in the composite of the layers.
* ``blend_right``: the same of the blend.
* ``overlap``: the greatest IoU of two layers' alphas (at least 0.4); layers on top of each other hide each other.
* ``order_right``: of the pairs of layers that cover each other, those of which the blend shows more of the upper one
  there; scenes without such a pair do not count.
* ``same_object``: IoU of what is seen of a layer's alpha (at least 0.4) with the judge's mask of its object in the
  blend, 0 where that is missing.
* ``same_background``: PSNR of the background to the blend, dB, more than 8 pixels away from any object in the blend.
* ``native``, ``native_blend``: probability that nothing is pasted in the composite, and in the blend.
* ``frechet``, ``frechet_blend``: Fréchet distance of all composites, and all blends, to other drawn scenes of as many
  objects, in the judge's features.
* ``colour_right``: ``layer_right`` of the layers whose kind no other layer of the scene has.
* ``seconds``: time for a scene.

Figures of single layers are means over a scene's layers; intervals are bootstrap intervals over scenes. Rows:

* ``together``: all pictures of a scene at once.
* ``alone``: each made separately from the same words: transparent layers, the landscape, the whole prompt.
* ``stages``: the landscape, then a transparent layer after the other, at places that a draft finds. It has no blend.
* ``transplant``, ``transplant_0.75``: each layer made alone and moved away from the others, then held in the blend up
  to this share of the steps (0.5 if none is named); the background from it (:mod:`layered_core.joint.transplant`).
* ``transplant_0``: the same layers, not held: what moving them apart does by itself.
* ``drafts``, ``drafts_0``: as ``transplant`` and ``transplant_0``, with layers that are what differs in drafts on the
  background, which needs no LayerDiffuse.

* ``sag_0.5``, ``sag_1``, ``self_mask_0.5``, ``self_mask_1``: as ``together``, with self-attention guidance (all places
  of all pictures are blurred), or self-mask guidance of these amounts.
* ``weak``, ``weak_not_enhanced``: as ``together``, but the words of layers that count for ``colour_right`` do not name
  their colour; the scene's do. The second has no prompt enhancer. ``weak_alone``: as ``alone``, from these words.
* ``edit``: the scene is made with another object in front, which is then edited to the wanted one. ``kept`` is the
  share of scenes whose other layers and background come back bit for bit.
* ``decompose``: the scene as drawn, taken apart. The blend is the drawing.

The storybook's transformer (``--model transformer``) has no transparent layers: its ``transplant`` is with drafts,
and ``alone`` has the same layers and background and a blend made separately.

``front_right`` and ``front_same_object`` are ``layer_right`` and ``same_object`` of the layer in front alone, and
``composite_psnr`` is the PSNR of the layers' composite to the blend, dB. ``together - alone`` and so on are differences
paired by scene, to the first row where ``together`` is not measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.bench.intervals import Interval, mean_interval, paired_interval, set_interval
from benchmarks.bench.judging import (
    PRESENT,
    Examiner,
    around,
    full_size,
    laid_on,
    layer_figures,
    reference_features,
    seen_mask,
)  # fmt: skip
from benchmarks.bench.scenes import Case, layer_cases, layout_cases
from benchmarks.joint_ways import OF_TRANSFORMER, ROWS, USUAL, How, Made, of_single_kind
from benchmarks.transparency import SAMPLER, checkerboard
from demo.world.judge import Verdict
from demo.world.places import MODEL
from layered_core.canvas.masks import visible_masks
from layered_core.formats.pictures import to_image
from layered_core.joint.frames import MOST_LAYERS
from layered_core.metrics.layout_metrics import mask_iou
from layered_core.metrics.picture_metrics import frechet_distance, outside_mse, psnr
from layered_diffusers.pipeline import LayeredDiffusionPipeline

COVERED = 64
"""Least area on which two layers must both be present to count as covering each other, pixels."""


FEWEST = 8
"""Least number of scenes of which Fréchet distances are measured."""


class Seen(NamedTuple):
    """What is measured of one scene."""

    figures: dict[str, float]
    """NaN for those that it does not have."""
    features: dict[str, Tensor]
    """Features of pictures of which a Fréchet distance is measured, by its name, each ``[16, C]``."""


def examined(examiner: Examiner, case: Case, made: Made) -> Seen:
    """Examine the pictures of one scene."""
    flat = made.background
    for layer in made.layers:
        flat = laid_on(layer, flat)
    alone = torch.stack([laid_on(x, case.backdrop) for x in made.layers])
    sights = examiner.look(torch.cat([made.background[None], flat[None], alone]))
    behind, whole, *each = (s.verdict for s in sights)
    features = {"frechet": sights[1].features}
    found = single_figures(case, made.layers, each)
    found["background_right"] = float(behind.background == case.scene.background and not behind.objects)
    found["all_right"] = float(whole.background == case.scene.background and whole.shows(case.things))
    present = made.layers[:, 3] >= PRESENT
    pairs = list(itertools.combinations(range(len(present)), 2))
    found["overlap"] = max((float(mask_iou(present[i], present[j])) for i, j in pairs), default=math.nan)
    found["native"] = float(examiner.harmony.native(flat[None]))
    found["kept"] = made.kept
    if made.blend is not None:
        (sight,) = examiner.look(made.blend[None])
        both, features["frechet_blend"] = sight.verdict, sight.features
        seen = visible_masks(made.layers[:, 3])[0] >= PRESENT
        ious = [same_object(both, t, x) for t, x in zip(case.things, seen, strict=True)]
        found["blend_right"] = float(both.background == case.scene.background and both.shows(case.things))
        found["order_right"] = order_right(both, case, present)
        found["same_object"] = sum(ious) / len(ious)
        found["front_same_object"] = ious[-1]
        found["composite_psnr"] = psnr(float((flat - made.blend).square().mean()))
        found["same_background"] = same_background(made.background, made.blend, both)
        found["native_blend"] = float(examiner.harmony.native(made.blend[None]))
    return Seen(found, features)


def single_figures(case: Case, layers: Tensor, verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return the figures of single layers ``[K, 4, H, W]``, means over those that have them; ``verdicts`` are the
    judge's on a landscape."""
    each = [
        layer_figures(Case(replace(case.scene, objects=(item,))), layer, verdict)
        for item, layer, verdict in zip(case.scene.objects, layers, verdicts, strict=True)
    ]
    named = {"layer_right": "object_right", "alpha_iou": "alpha_iou", "background_alpha": "background_alpha"}
    found = {}
    for name, own in named.items():
        values = [f[own] for f in each if not math.isnan(f[own])]
        found[name] = sum(values) / len(values) if values else math.nan
    found["front_right"] = each[-1]["object_right"]
    single = [f["object_right"] for f, x in zip(each, of_single_kind(case), strict=True) if x]
    found["colour_right"] = sum(single) / len(single) if single else math.nan
    return found


def same_object(blend: Verdict, thing: object, seen: Tensor) -> float:
    """Return the IoU of the seen part of a layer, bool ``[H, W]``, and the judge's mask of its object in the blend."""
    mask = seen_mask(blend, thing, seen)
    return 0.0 if mask is None else float(mask_iou(seen, mask))


def order_right(blend: Verdict, case: Case, present: Tensor) -> float:
    """Return the share of covering pairs of layers, whose pixels are ``present`` ``[K, H, W]``, of which the blend
    shows the upper one; NaN if no pair covers each other."""
    right = []
    for lower, upper in itertools.combinations(range(len(present)), 2):
        both = present[lower] & present[upper]
        if int(both.sum()) < COVERED:
            continue
        masks = [seen_mask(blend, case.things[i], both) for i in (lower, upper)]
        below, above = (0 if m is None else int((m & both).sum()) for m in masks)
        right.append(float(above > below))
    return sum(right) / len(right) if right else math.nan


def same_background(background: Tensor, blend: Tensor, verdict: Verdict) -> float:
    """Return the PSNR of background and blend away from objects, dB; NaN if objects leave no background."""
    near = torch.zeros_like(blend[0], dtype=torch.bool)
    for found in verdict.objects:
        near |= around(full_size(found.mask, near))
    return math.nan if bool(near.all()) else psnr(outside_mse(background, blend, near))


def sheet(scenes: Sequence[Made]) -> Tensor:
    """Join pictures into a grid ``[H, W, 3]`` with a column for each scene: the layers over a checkerboard, the
    background, the composite, the blend."""
    columns = []
    for made in scenes:
        flat = made.background
        for layer in made.layers:
            flat = laid_on(layer, flat)
        shown = [*(laid_on(x, checkerboard()) for x in made.layers), made.background, flat]
        columns.append(torch.cat([*shown, *([] if made.blend is None else [made.blend])], 1))
    return torch.cat(columns, 2).permute(1, 2, 0)


def cases_of(layers: int, count: int) -> list[Case]:
    """Return the scenes of ``layers`` objects."""
    return layer_cases(count) if layers == 1 else layout_cases(count, (layers,))


def model_of(name: str) -> LayeredDiffusionPipeline:
    """Return the pipeline of a model, a key of ``USUAL``."""
    if name == "transformer":
        return LayeredDiffusionPipeline.from_pretrained("demo-transformer")
    return LayeredDiffusionPipeline.from_pretrained(sampler=SAMPLER)


def measure(
    pipeline: LayeredDiffusionPipeline, layers: int, count: int, rows: Sequence[str], how: How, batch: int,
    pictures: Path | None,
) -> dict:  # fmt: skip
    """Return, for each row, the figures of every scene with that many layers."""
    examiner = Examiner(MODEL)
    cases = cases_of(layers, count)
    found: dict[str, list[Seen]] = {row: [] for row in rows}
    for row in rows:
        for start in tqdm(range(0, count, batch), desc=f"{layers} layers, {row}", file=sys.stderr):
            part = cases[start : start + batch]
            begun = time.perf_counter()
            made = ROWS[row](pipeline, part, range(start, start + len(part)), how)
            seconds = (time.perf_counter() - begun) / len(part)
            for case, pictures_of_it in zip(part, made, strict=True):
                seen = examined(examiner, case, pictures_of_it)
                seen.figures["seconds"] = seconds
                found[row].append(seen)
            if pictures is not None and start == 0:
                pictures.mkdir(parents=True, exist_ok=True)
                to_image(sheet(made[:8])).save(pictures / f"{row}_{layers}.png")
    result = summary({row: [seen.figures for seen in scenes] for row, scenes in found.items()})
    if count < FEWEST:
        return result
    drawn = reference_features(examiner, objects=(layers,))
    for row, scenes in found.items():
        for name in scenes[0].features:
            features = [seen.features[name] for seen in scenes]
            result[row][name], _ = set_interval(partial(_distance, features, drawn), count)
    return result


def _distance(features: Sequence[Tensor], drawn: Tensor, scenes: Sequence[int]) -> float:
    return frechet_distance(torch.cat([features[i] for i in scenes]), drawn)


def summary(found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Interval]]:
    """Return mean and interval of every figure of every row, and of the paired differences to ``together``, or to the
    first row."""
    columns = {
        row: {name: [scene.get(name, math.nan) for scene in scenes] for name in scenes[0]}
        for row, scenes in found.items()
    }
    result = {row: {k: mean_interval(v) for k, v in figures.items()} for row, figures in columns.items()}
    base = "together" if "together" in columns else next(iter(columns))
    for row in columns:
        if row == base:
            continue
        mine, theirs = columns[base], columns[row]
        result[f"{base} - {row}"] = {
            k: paired_interval(mine[k], theirs[k]) for k in mine if k in theirs and k != "seconds"
        }
    return result


def printed(result: Mapping[str, Mapping[str, Interval]]) -> str:
    """Return a table of the figures of one number of layers."""
    names = list(dict.fromkeys(name for row in result.values() for name in row))
    lines = ["| figure | " + " | ".join(result) + " |", "| --- " * (len(result) + 1) + "|"]
    for name in names:
        cells = []
        for row in result.values():
            found = row.get(name)
            there = found is not None and found.n > 0
            cells.append(_cell(found) if there else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: Interval) -> str:
    return f"{found.mean:.3f} ({found.low:.3f} – {found.high:.3f}), {found.n}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=96, help="scenes for each number (default: %(default)s)")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[1, 2, 3], choices=range(1, MOST_LAYERS + 1), metavar="K",
        help="numbers of layers, 1 to 4 (default: 1 2 3)",
    )  # fmt: skip
    parser.add_argument("--rows", nargs="+", choices=ROWS, help=f"(default: {' '.join(USUAL['storybook'])})")
    parser.add_argument(
        "--model", choices=USUAL, default="storybook",
        help=f"(default: %(default)s); rows of the transformer: {' '.join(OF_TRANSFORMER)}",
    )  # fmt: skip
    parser.add_argument("--file", type=Path, help="weights of the network (default: the shipped ones)")
    parser.add_argument("--steps", type=int, default=30, help="sampling steps (default: %(default)s)")
    parser.add_argument(
        "--guidance", type=float, default=2.0, help="classifier-free guidance (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=12, help="scenes in a batch (default: %(default)s)")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="also write the first scenes, as grids"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args(arguments)
    if options.n < 1:
        parser.error("-n must be at least 1")
    rows = options.rows or USUAL[options.model]
    if options.model == "transformer" and (wrong := set(rows) - set(OF_TRANSFORMER)):
        parser.error(f"--rows: the transformer has no {' '.join(sorted(wrong))}")
    how = How(options.steps, options.guidance, options.file)
    pipeline = model_of(options.model)
    results = {
        k: measure(pipeline, k, options.n, rows, how, options.batch, options.pictures) for k in options.layers
    }
    if options.json:
        named = {
            k: {r: {f: v._asdict() for f, v in x.items()} for r, x in rows.items()}
            for k, rows in results.items()
        }
        sampler = SAMPLER if options.model == "storybook" else "the model's own"
        settings = {
            "model": options.model, "sampler": sampler, "steps": how.steps, "guidance": how.guidance, "n": options.n,
        }  # fmt: skip
        print(json.dumps({"layers": named, "settings": settings}))
        return
    for layers, result in results.items():
        print(f"\n{layers} layer{'s' * (layers > 1)}\n\n{printed(result)}")


if __name__ == "__main__":
    main()
