"""Figures of a layout: whether the wanted objects are where they were wanted.

The functions take what a detector found and what was wanted; they know no particular detector. Soft masks are
used as they are, not thresholded, unless a function says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import invalid

COCO_THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))
"""IoU thresholds of AP .5:.95; the first one alone gives AP .5."""


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute intersection over union, ``sum min(a, b) / sum max(a, b)``: for hard masks the usual IoU, for
    soft masks the Ruzicka similarity.

    Args:
        a, b: ``[..., H, W]`` in 0..1 or bool, of shapes that broadcast.

    Returns:
        ``[...]`` in 0..1; 1 where both masks are empty.
    """
    a, b = a.float(), b.float()
    union = torch.maximum(a, b).sum((-2, -1))
    return torch.where(union > 0, torch.minimum(a, b).sum((-2, -1)) / union.clamp_min(1e-12), 1.0)


def mask_boxes(masks: Tensor) -> Tensor:
    """Compute the bounding boxes of the pixels above one half, ``[L, H, W]`` to ``[L, 4]``: left, top, right
    and bottom pixel edges; zeros for empty masks."""
    hard = masks.float() > 0.5
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    for box, mask in zip(boxes, hard, strict=True):
        if bool(mask.any()):
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            box[:] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return boxes


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute intersection over union of boxes ``[N, 4]`` and ``[M, 4]`` (left, top, right, bottom),
    ``[N, M]`` in 0..1; 0 for an empty box."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    areas = ((x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b))
    union = next(areas)[:, None] + next(areas)[None, :] - shared
    return torch.where(shared > 0, shared / union.clamp_min(1e-12), 0.0)


def best_matches(ious: Tensor) -> Tensor:
    """Pair detections with wanted objects one to one, the greatest IoU first.

    Args:
        ious: detections by wanted objects, ``[D, L]``.

    Returns:
        index of the detection for each wanted object, int64 ``[L]``; -1 where no free detection overlaps it.
    """
    left = ious.clone()
    matches = torch.full((ious.shape[1],), -1, dtype=torch.int64)
    while left.numel() and float(left.max()) > 0:
        found, wanted = divmod(int(left.argmax()), left.shape[1])
        matches[wanted] = found
        left[found], left[:, wanted] = 0, 0
    return matches


class Matches(NamedTuple):
    """The detections of one picture compared with its objects; average precision is computed from these."""

    scores: Tensor
    """Confidence of each detection, ``[D]``, in falling order."""
    labels: Tensor
    """Class of each detection, int ``[D]``."""
    hits: Tensor
    """Whether each detection is true at each threshold, bool ``[T, D]``."""
    wanted: Tensor
    """Class of each object, int ``[G]``."""


def match_detections(
    scores: Tensor,
    labels: Tensor,
    wanted: Tensor,
    ious: Tensor,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    most: int = 100,
) -> Matches:
    """Decide for one picture which detections are true, as COCO does.

    In order of confidence, each detection takes the free object of its class that it overlaps most, if that
    overlap is at least the threshold (Lin et al., arXiv 1405.0312; github cocodataset/cocoapi,
    ``cocoeval.py``; no crowds, any area).

    Args:
        scores: confidence of each detection, ``[D]``.
        labels: class of each detection, int ``[D]``.
        wanted: class of each object in the picture, int ``[G]``.
        ious: overlaps of masks or of boxes, ``[D, G]``.
        thresholds: least overlaps, T of them.
        most: greatest number of detections that count for each class.

    Raises:
        LayeredError: ``ious`` has the wrong shape.
    """
    if ious.shape != (len(scores), len(wanted)):
        raise invalid(
            "ious: shape", list(ious.shape), f"[{len(scores)}, {len(wanted)}]: detections by objects"
        )
    order = scores.argsort(descending=True, stable=True)
    rank = torch.zeros(len(order), dtype=torch.int64)
    for label in torch.unique(labels):
        mine = labels[order] == label
        rank[mine] = torch.arange(int(mine.sum()))
    order = order[rank < most]
    scores, labels, ious = scores[order], labels[order], ious[order]
    hits = torch.zeros(len(thresholds), len(scores), dtype=torch.bool)
    for row, threshold in enumerate(thresholds):
        free = torch.ones(len(wanted), dtype=torch.bool)
        for i in range(len(scores)):
            open_to = torch.where(free & (wanted == labels[i]), ious[i], -1.0)
            if len(wanted) and float(open_to.max()) >= min(threshold, 1 - 1e-10):
                # Of equal overlaps the last is taken, as COCO does.
                free[int(len(wanted) - 1 - open_to.flip(0).argmax())] = False
                hits[row, i] = True
    return Matches(scores, labels, hits, wanted)


def average_precision(pictures: Sequence[Matches]) -> Tensor:
    """Compute COCO's average precision over many pictures: precision interpolated at 101 recalls, averaged
    over the classes that occur.

    Returns:
        ``[T]``, one for each threshold, in 0..1; NaN if no object is wanted at all. With ``COCO_THRESHOLDS``
        the first is AP .5 and the mean is AP .5:.95.
    """
    if not pictures:
        return torch.full((len(COCO_THRESHOLDS),), torch.nan)
    scores = torch.cat([p.scores for p in pictures])
    labels = torch.cat([p.labels for p in pictures])
    hits = torch.cat([p.hits for p in pictures], 1).double()
    wanted = torch.cat([p.wanted for p in pictures])
    recalls = torch.linspace(0, 1, 101, dtype=torch.float64)
    order = scores.argsort(descending=True, stable=True)
    labels, hits = labels[order], hits[:, order]
    classes, counts = torch.unique(wanted, return_counts=True)
    precisions = []
    for label, count in zip(classes, counts, strict=True):
        true = hits[:, labels == label].cumsum(1)
        recall = true / count
        precision = true / torch.arange(1, true.shape[1] + 1)
        best_after = precision.flip(1).cummax(1).values.flip(1) if true.shape[1] else precision
        at = torch.searchsorted(recall.contiguous(), recalls.expand(len(recall), -1).contiguous())
        padded = torch.cat([best_after, best_after.new_zeros(len(best_after), 1)], 1)
        precisions.append(padded.gather(1, at).mean(1))
    return torch.stack(precisions).mean(0) if precisions else torch.full((hits.shape[0],), torch.nan)


def region_labels(labels: Tensor, masks: Tensor) -> Tensor:
    """Return the label of each region: the one that covers the most of its mask.

    Args:
        labels: label of each pixel, int ``[H, W]``; 0 is nothing.
        masks: ``[L, H, W]`` in 0..1.

    Returns:
        int64 ``[L]``; 0 for an empty mask.
    """
    each = functional.one_hot(labels.long()).flatten(0, 1).float()
    return (masks.flatten(1).float() @ each).argmax(1)


def region_accuracy(
    kinds: Tensor, colours: Tensor, masks: Tensor, wanted_kinds: Tensor, wanted_colours: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return whether each region shows the wanted kind of object, the wanted colour, and both.

    Args:
        kinds, colours: kind and colour found at each pixel, int ``[H, W]``; 0 is nothing.
        masks: visible masks, ``[L, H, W]``.
        wanted_kinds, wanted_colours: of each region, int ``[L]``, from 1.

    Returns:
        three bool tensors ``[L]``.
    """
    object_right = region_labels(kinds, masks) == wanted_kinds
    colour_right = region_labels(colours, masks) == wanted_colours
    return object_right, colour_right, object_right & colour_right


def leakage(found: Tensor, masks: Tensor, alike: Tensor | None = None) -> Tensor:
    """Compute the share of each layer's found object that lies where other layers are:
    ``sum(found_i * sum_{j != i} M_j) / sum(found_i)``.

    Args:
        found: where each layer's object (or its colour) was found, ``[L, H, W]`` in 0..1.
        masks: visible masks M, ``[L, H, W]``; they sum to at most 1.
        alike: bool ``[L, L]``, pairs of layers that should show the same and do not count as leaking into
            each other; None: no pairs.

    Returns:
        ``[L]`` in 0..1; NaN where nothing was found.
    """
    found, masks = found.float(), masks.float()
    own = torch.eye(len(masks), dtype=torch.bool)
    others = (~(own if alike is None else own | alike)).float()
    elsewhere = torch.tensordot(others, masks, 1)
    shared: Tensor = (found * elsewhere).sum((-2, -1)) / found.sum((-2, -1))
    return shared
