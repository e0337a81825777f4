"""Compute the figures of pictures made from COCO's captions: a detector finds the objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.coco import CocoCase, choose
from benchmarks.bench.coco_files import read_photos
from benchmarks.bench.detecting import Detections, Detector, JudgeDetector, load_detector
from benchmarks.bench.judging import Clip, best_iou, rounded
from benchmarks.bench.scenes import Case
from benchmarks.bench.suite import Settings, coco_settings
from layered_core.metrics.layout_metrics import box_iou, mask_iou, match_detections
from layered_core.metrics.picture_metrics import text_similarity
from layered_diffusers.models.loading import find_model


class CocoExaminer:
    """Examines pictures with a detector, and a CLIP model if one is given."""

    def __init__(self, detector: Detector, categories: Sequence[str], clip: Path | None = None) -> None:
        """Take a detector and the names of all categories that it looks for."""
        self.detector, self.categories = detector, list(categories)
        self.clip = None if clip is None else Clip(clip)

    def examine(self, cases: Sequence[Case], pictures: Tensor) -> list[dict[str, Any]]:
        """Return a record of each of ``pictures`` ``[B, 3, H, W]``, as :meth:`Examiner.examine` does; ``matches`` is
        None without masks, and there are no ``features``."""
        records = []
        for case, picture, found in zip(
            cases, pictures, self.detector.find(pictures, self.categories), strict=True
        ):
            assert isinstance(case, CocoCase)
            figures, matches = self._compared(case, found)
            if self.clip is not None:
                figures |= self.clip.figures(picture, case.words)
            records.append({"figures": rounded(figures), **matches, "features": []})
        return records

    def _compared(self, case: CocoCase, found: Detections) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the figures of one picture, and its matches by mask and by box.

        Masks are compared where outlines were asked for and the detector gives masks. IoU counts what the detector is
        sure of, average precision everything by its score.
        """
        labels = torch.tensor([self.categories.index(x) for x in found.labels], dtype=torch.int64)
        wanted = torch.tensor([self.categories.index(x.category) for x in case.things])
        sure = found.scores >= self.detector.least_score
        right = (labels[:, None] == wanted) & sure[:, None]
        size = case.masks.shape[1:] if found.masks is None else found.masks.shape[1:]
        masks, boxes = case.wanted(*size)
        by_box = box_iou(found.boxes, boxes)
        figures = {
            "box_iou": best_iou(by_box, right),
            "t2i_sim_labels": self._labels_alike(labels[sure], wanted),
        }
        matches: dict[str, Any] = {"matches": None}
        if found.masks is not None and not case.by_box:
            by_mask = mask_iou(found.masks[:, None], masks[None])
            figures["iou"] = best_iou(by_mask, right)
            matches["matches"] = [x.tolist() for x in match_detections(found.scores, labels, wanted, by_mask)]
        matches["box_matches"] = [x.tolist() for x in match_detections(found.scores, labels, wanted, by_box)]
        return figures, matches

    def _labels_alike(self, found: Tensor, wanted: Tensor) -> float:
        """Return 100 times the cosine of how often each category was found and asked for; 0 if nothing was found."""
        counts = [torch.bincount(x, minlength=len(self.categories)) for x in (found, wanted)]
        return float(text_similarity(*counts)) if len(found) else 0.0


def coco_examiner(settings: Settings) -> CocoExaminer:
    """Return the examiner of the suite ``coco``.

    Raises:
        LayeredError: the annotations cannot be read, too few captions fit, a model is not on disk, or the detector
            does not know a category that the captions name.
    """
    coco = coco_settings(settings)
    named = {x.category for chosen in choose(coco, settings.count) for x in chosen.objects}
    detector: Detector = (
        JudgeDetector(find_model(settings.model))
        if coco.detector is None
        else load_detector(coco.detector, settings.device)
    )
    detector.check(sorted(named))
    categories = {x.category for photo in read_photos(coco.annotations) for x in photo.instances}
    return CocoExaminer(detector, sorted(categories), settings.clip)
