"""Compute the figures of pictures: the judge finds the objects, ``layered_core.metrics`` compares them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.bench.learnt import learnt_figures
from benchmarks.bench.looks import look_figures
from benchmarks.bench.scenes import REFERENCE, Case, layout_cases
from demo.world.harmony import Harmony
from demo.world.judge import Judge, Verdict
from demo.world.vocabulary import BACKGROUNDS, COLOURS, KINDS, Thing
from layered_core.control.hints import canny
from layered_core.errors import LayeredError, invalid
from layered_core.metrics.layout_metrics import (
    Matches,
    best_matches,
    box_iou,
    leakage,
    mask_boxes,
    mask_iou,
    match_detections,
    region_accuracy,
)
from layered_core.metrics.picture_metrics import (
    differing_pixels,
    edge_f1,
    gradient,
    outside_mse,
    psnr,
    seam_gradient_ratio,
    text_similarity,
)

_COLOURS, _KINDS, _PLACES = list(COLOURS), list(KINDS), list(BACKGROUNDS)

FIGURES: dict[str, tuple[str, bool | None]] = {
    "iou": ("mask IoU of the right object, 0 where it is missing", True),
    "any_iou": ("mask IoU of whatever object lies there", True),
    "box_iou": ("box IoU of the right object", True),
    "object": ("regions that show the right kind", True),
    "colour": ("regions that show the right colour", True),
    "both": ("regions that show both", True),
    "leak_object": ("share of a layer's object found in other layers' regions", False),
    "leak_colour": ("share of a layer's colour found in other layers' regions", False),
    "background": ("landscape as asked", True),
    "exact": ("all objects there, right, nothing else, and the landscape", True),
    "t2i_sim": ("cosine of what the words name and what the judge sees, times 100; no CLIP", True),
    "t2i_sim_labels": (
        "cosine of the objects asked for and found, counted by name, times 100; no CLIP",
        True,
    ),
    "t2i_sim_clip": ("BoxDiff's T2I-Sim: cosine of CLIP's vectors of picture and caption, -1 to 1", True),
    "clip_score": ("CLIP score: the same cosine, times 100 and not below 0", True),
    "native": ("probability that nothing is pasted", True),
    "fidelity": ("PSNR to the scene drawn as one, inside the objects, dB", True),
    "edges": ("F1 of edges with the scene drawn as one, inside and around the objects", True),
    "canny": ("F1 of Canny edges with the scene drawn as one, within 2 pixels", True),
    "canny_inside": ("the same, inside and 3 pixels around the first object", True),
    "canny_outside": ("the same everywhere else", None),
    "outside_psnr": ("PSNR to the old picture outside the mask, dB", True),
    "differing_pixels": ("pixels outside the mask that changed", False),
    "seam": ("steepness along the mask's border over that around it", False),
    "changed_right": ("the changed region shows the new object", True),
    "kept_right": ("the other regions still show theirs", True),
    "object_right": ("layers that show what was asked for, and nothing else", True),
    "alpha_iou": ("IoU of alpha with the object, 0 where it is missing", True),
    "background_alpha": ("mean alpha away from the object", False),
    "material": ("difference of mean alpha inside the object from the same thing's as drawn", False),
    "pink_inside": ("share of the first object's pixels that are pink", None),
    "pink_outside": ("the same of the other objects", None),
    "striped_inside": ("how much darker the second object is in the rows of stripes than between them", None),
    "striped_outside": ("the same of the other objects", None),
    "colour_inside": ("first objects in the colour that their words name, by the judge", None),
    "colour_outside": ("the same of the other objects", None),
    "ap50": ("average precision at mask IoU .5", True),
    "ap": ("average precision at mask IoU .5:.95", True),
    "box_ap50": ("average precision at box IoU .5", True),
    "box_ap": ("average precision at box IoU .5:.95", True),
    "delta_e": ("distance of the mean colour to the thing's that was learnt from, in L*a*b*", False),
    "energy": ("energy distance of the colours to the thing's that was learnt from, in L*a*b*", False),
    "neighbour": ("a thing beside it, which words name, has its kind and colour", True),
    "frechet": ("Fréchet distance to drawn scenes in the judge's features", False),
    "time": ("seconds a picture over the baseline's", False),
}
"""Every figure: its meaning, and whether more is better (None: neither)."""


PRESENT = 0.4
"""Least alpha that counts as part of the object: glass has 0.5 inside, a halo less than 0.4."""

AWAY = 8
"""Width of the margin around the object that does not count as background, pixels."""


class Sight(NamedTuple):
    """The judge's results for one picture."""

    verdict: Verdict
    scores: Tensor
    """Confidence in each object of the verdict: the mean probability of its class over its mask, ``[D]``."""
    features: Tensor
    """Features of the judge's last stage, averaged over each of 16 cells, ``[16, C]``."""


class Examiner:
    """Examines pictures with the judge, the harmony classifier, and a CLIP model if one is given."""

    def __init__(self, model: Path, clip: Path | None = None) -> None:
        self.judge = Judge.load(_weights(model, "judge"))
        self.harmony = Harmony.load(_weights(model, "harmony"))
        self.clip = None if clip is None else Clip(clip)

    def look(self, pictures: Tensor) -> list[Sight]:
        """Judge ``pictures`` [B, 3, H, W] in 0..1."""
        caught: dict[str, Tensor] = {}

        def catch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            caught["features"], caught["probabilities"] = inputs[0], output.softmax(1)

        hook = self.judge.classes.register_forward_hook(catch)
        try:
            verdicts = self.judge.look(pictures)
        finally:
            hook.remove()
        features = nn.functional.adaptive_avg_pool2d(caught["features"], 4).flatten(2).transpose(1, 2)
        sights = []
        for verdict, probabilities, cells in zip(verdicts, caught["probabilities"], features, strict=True):
            scores = [
                float(probabilities[1 + _label(f.colour, f.kind)][f.mask].mean()) for f in verdict.objects
            ]
            sights.append(Sight(verdict, torch.tensor(scores), cells))
        return sights

    def examine(self, cases: Sequence[Case], pictures: Tensor) -> list[dict[str, Any]]:
        """Return a record of each picture: its ``figures``, and the ``matches`` and ``features`` from which
        the figures of a whole set are computed.

        Layers, ``[B, 4, H, W]``, are judged on their cases' landscapes.
        """
        records = []
        layers = pictures if pictures.shape[1] == 4 else None
        if layers is not None:
            pictures = torch.stack(
                [laid_on(layer, case.backdrop) for layer, case in zip(layers, cases, strict=True)]
            )
        native = self.harmony.native(pictures).tolist()
        for index, (case, picture, sight) in enumerate(
            zip(cases, pictures, self.look(pictures), strict=True)
        ):
            if case.source is not None:
                figures = learnt_figures(case, picture, sight.verdict)
            elif layers is not None:
                figures = layer_figures(case, layers[index], sight.verdict)
            else:
                figures = (
                    layout_figures(case, sight)
                    | fidelity_figures(case, picture)
                    | control_figures(case, picture)
                )
                figures |= redo_figures(case, picture, sight) | look_figures(case, picture, sight.verdict)
            figures["native"] = native[index]
            if self.clip is not None:
                figures |= self.clip.figures(picture, case.words)
            # Average precision compares colours that the judge knows.
            matches, box_matches = (None, None) if case.source is not None else detections(case, sight)
            records.append(
                {
                    "figures": rounded(figures),
                    "matches": None if matches is None else [x.tolist() for x in matches],
                    "box_matches": None if box_matches is None else [x.tolist() for x in box_matches],
                    "features": [[round(v, 4) for v in row] for row in sight.features.tolist()],
                }
            )
        return records


def reference_features(examiner: Examiner, count: int = 192, *, objects: Sequence[int] = (2, 3, 4)) -> Tensor:
    """Return the features of drawn scenes that no method has to make, ``[16 count, C]``; ``objects`` are the numbers
    of objects in them."""
    features = []
    cases = layout_cases(count, objects, first=REFERENCE)
    for start in range(0, count, 32):
        pictures = torch.stack([c.picture for c in cases[start : start + 32]])
        features += [s.features for s in examiner.look(pictures)]
    return torch.cat(features)


def layout_figures(case: Case, sight: Sight) -> dict[str, float]:
    """Compute how well the objects' places, kinds and colours agree with the scene; means over the layers."""
    verdict = sight.verdict
    masks = nn.functional.avg_pool2d(case.masks[None], 2)[0]
    hard = masks > 0.5
    found = (
        torch.stack([f.mask for f in verdict.objects])
        if verdict.objects
        else torch.zeros(0, *hard.shape[1:], dtype=torch.bool)
    )
    ious = mask_iou(found[:, None], hard[None])
    boxes = box_iou(mask_boxes(found.float()), mask_boxes(hard.float()))
    right = torch.tensor(
        [[(f.colour, f.kind) == (t.colour, t.kind) for t in case.things] for f in verdict.objects],
        dtype=torch.bool,
    ).view_as(ious)
    any_iou = sum(float(ious[m, i]) for i, m in enumerate(best_matches(ious).tolist()) if m >= 0) / len(
        case.things
    )
    kinds, colours = label_maps(verdict)
    wanted_kinds = torch.tensor([1 + _KINDS.index(t.kind) for t in case.things])
    wanted_colours = torch.tensor([1 + _COLOURS.index(t.colour) for t in case.things])
    accuracy = region_accuracy(kinds, colours, hard, wanted_kinds, wanted_colours)
    vectors = (seen_vector(verdict), words_vector(case.words))
    return {
        "iou": best_iou(ious, right), "any_iou": any_iou, "box_iou": best_iou(boxes, right),
        "object": float(accuracy[0].float().mean()), "colour": float(accuracy[1].float().mean()),
        "both": float(accuracy[2].float().mean()),
        "leak_object": _leak(masks, kinds * 100 + colours, wanted_kinds * 100 + wanted_colours),
        "leak_colour": _leak(masks, colours, wanted_colours),
        "background": float(verdict.background == case.scene.background),
        "exact": float(verdict.shows(case.things) and verdict.background == case.scene.background),
        "t2i_sim": float(text_similarity(*vectors)),
    }  # fmt: skip


def fidelity_figures(case: Case, picture: Tensor) -> dict[str, float]:
    """Compute how much of the objects' look is kept, compared with the scene drawn as one."""
    inside = case.masks.sum(0)
    around = nn.functional.max_pool2d(inside[None, None], 7, 1, 3)[0, 0] > 0
    edges = [(gradient(p) > 0.1) & around for p in (picture, case.picture)]
    return {
        "fidelity": psnr(outside_mse(picture, case.picture, 1 - inside)),
        "edges": edge_f1(edges[0], edges[1]),
    }


def control_figures(case: Case, picture: Tensor) -> dict[str, float]:
    """Compute how well a picture follows a ControlNet's hint: where a layer is under control, and
    elsewhere."""
    found, inside = canny(picture), case.around_first
    wholes = {"canny": torch.ones_like(inside), "canny_inside": inside, "canny_outside": ~inside}
    return {name: edge_f1(found & part, case.edges & part, 2) for name, part in wholes.items()}


def redo_figures(case: Case, picture: Tensor, sight: Sight) -> dict[str, float]:
    """Compute what changed and what stayed in a picture that was to be changed; empty for other scenes."""
    if case.changed is None:
        return {}
    mask = case.change_mask
    masks = nn.functional.avg_pool2d(case.masks[None], 2)[0] > 0.5
    kinds, colours = label_maps(sight.verdict)
    wanted = [
        torch.tensor([1 + names.index(getattr(t, what)) for t in case.things])
        for names, what in ((_KINDS, "kind"), (_COLOURS, "colour"))
    ]
    right = region_accuracy(kinds, colours, masks, wanted[0], wanted[1])[2].float()
    others = torch.arange(len(right)) != case.changed
    return {
        "outside_psnr": psnr(outside_mse(picture, case.picture_before, mask)),
        "differing_pixels": float(differing_pixels(picture, case.picture_before, mask)),
        "seam": seam_gradient_ratio(picture, mask),
        "changed_right": float(right[case.changed]),
        "kept_right": float(right[others].mean()),
    }


def laid_on(layer: Tensor, backdrop: Tensor) -> Tensor:
    """Composite a straight RGBA layer ``[4, H, W]`` over a picture ``[3, H, W]``."""
    return layer[:3] * layer[3:] + backdrop * (1 - layer[3:])


def layer_figures(case: Case, layer: Tensor, verdict: Verdict) -> dict[str, float]:
    """Compute the figures of a transparent layer ``[4, H, W]``; ``verdict`` is the judge's on a landscape.

    The object is taken to be where the judge finds it, and alpha to cover where it is at least
    :data:`PRESENT`; the background begins more than :data:`AWAY` pixels from the object. Without the right
    object the last two figures are NaN.
    """
    (thing,), alpha = case.things, layer[3]
    seen = seen_mask(verdict, thing, alpha)
    figures = {
        "object_right": float(verdict.shows([thing])),
        "alpha_iou": 0.0,
        "background_alpha": math.nan,
        "material": math.nan,
    }
    if seen is None:
        return figures
    drawn = float(case.sprite[3][case.masks[0] > 0].mean())
    return figures | {
        "alpha_iou": float(mask_iou(alpha >= PRESENT, seen)),
        "background_alpha": float(alpha[~around(seen)].mean()),
        "material": abs(float(alpha[seen].mean()) - drawn),
    }


def seen_mask(verdict: Verdict, thing: Thing, like: Tensor) -> Tensor | None:
    """Return the judge's mask of ``thing``, bool of the size of ``like`` ``[H, W]``; None if it was not
    found."""
    mask = next((f.mask for f in verdict.objects if f.thing == (thing.colour, thing.kind)), None)
    return None if mask is None else full_size(mask, like)


def full_size(mask: Tensor, like: Tensor) -> Tensor:
    """Enlarge a mask of the judge's to the size of ``like`` ``[H, W]``, bool."""
    return nn.functional.interpolate(mask[None, None].float(), like.shape)[0, 0] > 0


def around(mask: Tensor) -> Tensor:
    """Return a bool mask ``[H, W]`` widened by :data:`AWAY` pixels."""
    return nn.functional.max_pool2d(mask[None, None].float(), 2 * AWAY + 1, 1, AWAY)[0, 0] > 0


def detections(case: Case, sight: Sight) -> tuple[Matches, Matches]:
    """Match the judge's objects with the scene's, for average precision by masks and by boxes."""
    hard = nn.functional.avg_pool2d(case.masks[None], 2)[0] > 0.5
    found = sight.verdict.objects
    masks = torch.stack([f.mask for f in found]) if found else torch.zeros(0, *hard.shape[1:])
    labels = torch.tensor([_label(f.colour, f.kind) for f in found], dtype=torch.int64)
    wanted = torch.tensor([_label(t.colour, t.kind) for t in case.things])
    by_mask = mask_iou(masks[:, None], hard[None])
    by_box = box_iou(mask_boxes(masks.float()), mask_boxes(hard.float()))
    return (
        match_detections(sight.scores, labels, wanted, by_mask),
        match_detections(sight.scores, labels, wanted, by_box),
    )


def rounded(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Return figures as a record holds them: five digits, None for NaN."""
    return {k: None if v != v else round(float(v), 5) for k, v in figures.items()}


def best_iou(ious: Tensor, right: Tensor) -> float:
    """Return the mean over the wanted objects of their best IoU with what was found right; 0 for a missing one.

    Args:
        ious: of detections by wanted objects, ``[D, L]``.
        right: whether a detection shows what a wanted object is, bool ``[D, L]``.
    """
    return float((ious * right).amax(0).mean()) if len(ious) else 0.0


def label_maps(verdict: Verdict) -> tuple[Tensor, Tensor]:
    """Return the kinds and the colours that the judge found per pixel, int ``[64, 64]`` each, counted from 1;
    0 for no object."""
    kinds, colours = torch.zeros(2, 64, 64, dtype=torch.int64)
    for found in verdict.objects:
        kinds[found.mask], colours[found.mask] = (
            1 + _KINDS.index(found.kind),
            1 + _COLOURS.index(found.colour),
        )
    return kinds, colours


def words_vector(words: str) -> Tensor:
    """Count how often a caption names each coloured object and each landscape, ``[42]``."""
    vector = torch.zeros(len(_COLOURS) * len(_KINDS) + len(_PLACES))
    colour = ""
    for word in words.replace(",", " ").split():
        colour = word if word in COLOURS else colour
        if word in KINDS and colour:
            vector[_label(colour, word)] += 1
    for index, phrases in enumerate(BACKGROUNDS.values()):
        if any(p in words for p in phrases):
            vector[len(_COLOURS) * len(_KINDS) + index] = 1
    return vector


def seen_vector(verdict: Verdict) -> Tensor:
    """Count how often the judge found each coloured object and each landscape, ``[42]``."""
    vector = torch.zeros(len(_COLOURS) * len(_KINDS) + len(_PLACES))
    for found in verdict.objects:
        vector[_label(found.colour, found.kind)] += 1
    vector[len(_COLOURS) * len(_KINDS) + _PLACES.index(verdict.background)] = 1
    return vector


class Clip:
    """Any CLIP model in the transformers layout."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPModel, CLIPProcessor

        if not folder.is_dir():
            raise invalid("--clip", str(folder), "the folder of a CLIPModel in the transformers layout")
        try:
            self.model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
            self.processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise LayeredError(
                f"--clip {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}. Give a folder with "
                f"a CLIPModel"
            ) from None

    @torch.no_grad()
    def figures(self, picture: Tensor, words: str) -> dict[str, float]:
        """Compute ``clip_score`` and ``t2i_sim_clip`` of a picture ``[3, H, W]`` in 0..1 and its caption."""
        image = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        inputs = self.processor(
            text=[words], images=[image], return_tensors="pt", padding=True, truncation=True
        )
        out = self.model(**inputs)
        cosine = nn.functional.cosine_similarity(out.image_embeds.float(), out.text_embeds.float())
        return {
            "clip_score": float(text_similarity(out.image_embeds, out.text_embeds)),
            "t2i_sim_clip": float(cosine),
        }


def _weights(model: Path, name: str) -> Path:
    """Return the weights of a judging network: the model's own if it has them, else the shipped ones."""
    from demo.world.places import MODEL

    for folder in (model, MODEL):
        if (folder / "judge" / f"{name}.safetensors").is_file():
            return folder / "judge" / f"{name}.safetensors"
    raise LayeredError(
        f"the judge's weights '{MODEL}/judge/{name}.safetensors' are missing. Restore them with 'git "
        f"checkout -- demo/model'"
    )


def _label(colour: str, kind: str) -> int:
    return _COLOURS.index(colour) * len(_KINDS) + _KINDS.index(kind)


def _leak(masks: Tensor, found: Tensor, wanted: Tensor) -> float:
    """Return the mean leakage of the layers of which something was found; NaN if there are none."""
    return float(leakage(found == wanted[:, None, None], masks, wanted[:, None] == wanted).nanmean())
