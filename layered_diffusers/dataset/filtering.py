"""Which of the found things become layers: too uncertain, too small or large, twice the same, parts of others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from layered_core.canvas.resizing import resized
from layered_core.document import MAX_LAYERS
from layered_core.errors import check_number, check_whole, invalid
from layered_core.metrics.layout_metrics import mask_iou
from layered_diffusers.dataset.protocols import Found, Picture


@dataclass(frozen=True)
class Thresholds:
    """The numbers by which masks, layers and pictures are kept or left out. All are written into every record."""

    layers: int = 3
    """Greatest number of layers in front of the background, 1..49."""
    phrases: int = 6
    """Greatest number of phrases that are looked for, 1..100."""
    score: float = 0.35
    """Least confidence of a mask, 0..1. Neutral: 0."""
    least_area: float = 0.02
    """Least area of a mask as a share of the picture, 0..1. Neutral: 0."""
    most_area: float = 0.7
    """Greatest area of a mask as a share of the picture, 0..1. Neutral: 1."""
    border: float = 0.6
    """Greatest share of the picture's border that a mask may touch, 0..1. Neutral: 1."""
    duplicate: float = 0.8
    """IoU above which the less certain of two masks is left out, 0..1. Neutral: 1."""
    part: float = 0.9
    """Share of the smaller of two masks inside the larger above which it is left out, 0..1. Neutral: 1."""
    dilation: int = 8
    """By how much holes are widened before they are painted, pixels, 0..64."""
    band: int = 3
    """By how far the edge of a mask may be moved to where the picture differs from what is behind, pixels, 0..32.
    Neutral: 0."""
    matte: int = 1
    """Width of the edge in which a layer's alpha is estimated, pixels on each side, 0..32. Neutral: 0."""
    covered: float = 0.4
    """Greatest share of a layer that others cover up to which its hidden part is painted, 0..1. Neutral: 0."""
    hidden: float = 0.01
    """Least share of a layer that others cover from which its hidden part is painted, 0..1. Neutral: 0."""
    still_there: float = 0.3
    """IoU with a thing's mask from which what the segmenter finds in the painted background counts as the thing itself,
    0..1. Neutral: 1."""
    psnr: float = 32.0
    """Least PSNR of the layers' composite to the picture outside the layers' edges, dB, 0..100. Neutral: 0."""

    def __post_init__(self) -> None:
        check_whole("layers", self.layers, 1, MAX_LAYERS - 1)
        check_whole("phrases", self.phrases, 1, 100)
        check_whole("dilation", self.dilation, 0, 64)
        check_whole("band", self.band, 0, 32)
        check_whole("matte", self.matte, 0, 32)
        check_number("psnr", self.psnr, 0, 100)
        for name in (
            "score",
            "least_area",
            "most_area",
            "border",
            "duplicate",
            "part",
            "covered",
            "hidden",
            "still_there",
        ):
            check_number(name.replace("_", " "), getattr(self, name), 0, 1)
        if self.least_area > self.most_area:
            raise invalid("least area", self.least_area, f"at most the greatest area, {self.most_area:g}")

    def entries(self) -> dict[str, int | float]:
        """Return the numbers by their names."""
        return asdict(self)


@dataclass(frozen=True)
class Dropped:
    """A mask that does not become a layer."""

    phrase: str
    score: float
    area: float
    """Share of the picture."""
    reason: str
    """``score``, ``area``, ``border``, ``duplicate``, ``part`` or ``beyond`` the number of layers."""


def area_of(mask: Tensor) -> float:
    """Return the share of the picture that a mask ``[H, W]`` covers, 0..1."""
    return float(mask.float().mean())


def border_share(mask: Tensor) -> float:
    """Return the share of the pixels on the picture's border that a mask ``[H, W]`` covers, 0..1."""
    height, width = mask.shape
    on_border = torch.ones(height, width, dtype=torch.bool)
    on_border[1:-1, 1:-1] = False
    return float(mask.float()[on_border].mean())


def at_size(found: Sequence[Found], picture: Picture) -> list[Found]:
    """Return what was found with masks that are checked, on the CPU, and as large as the picture.

    Raises:
        LayeredError: a mask is not ``[H, W]`` with values in 0..1.
    """
    sized = []
    for item in found:
        mask = torch.as_tensor(item.mask).detach().cpu().float()
        if mask.ndim != 2 or not mask.numel():
            raise invalid(f"mask of {item.phrase!r}: shape", list(mask.shape), "[height, width]")
        least, most = (float(x) for x in mask.aminmax())
        if not 0 <= least <= most <= 1:
            raise invalid(f"mask of {item.phrase!r}: values", f"{least}..{most}", "0..1 and no NaN")
        check_number(f"score of {item.phrase!r}", float(item.score), 0, 1)
        sized.append(replace(item, mask=resized(mask, *picture.size), score=float(item.score)))
    return sized


def chosen(found: Sequence[Found], limits: Thresholds) -> tuple[list[Found], list[Dropped]]:
    """Choose the things that become layers: the ones with the greatest ``area * score``, without those that are too
    uncertain, of a wrong size, along the border, found twice, or a part of a larger one.

    Args:
        found: masks of one size, see :func:`at_size`.
        limits: the thresholds.

    Returns:
        the kept ones in the order in which they were found, and the others with the reason.
    """
    kept, dropped = [], []

    def drop(item: Found, reason: str) -> None:
        dropped.append(Dropped(item.phrase, round(item.score, 4), round(area_of(item.mask), 4), reason))

    for item in found:
        area = area_of(item.mask)
        if item.score < limits.score:
            drop(item, "score")
        elif not limits.least_area <= area <= limits.most_area:
            drop(item, "area")
        elif border_share(item.mask) > limits.border:
            drop(item, "border")
        else:
            kept.append(item)
    for reason, leaves in (("duplicate", _is_duplicate), ("part", _is_part)):
        left = [a for i, a in enumerate(kept) if not any(
            leaves(a, b, i > j, limits) for j, b in enumerate(kept) if i != j
        )]  # fmt: skip
        for item in kept:
            if not any(item is x for x in left):
                drop(item, reason)
        kept = left
    best = sorted(kept, key=lambda x: -area_of(x.mask) * x.score)[: limits.layers]
    for item in kept:
        if not any(item is x for x in best):
            drop(item, "beyond")
    return [x for x in kept if any(x is y for y in best)], dropped


def _is_duplicate(a: Found, b: Found, later: bool, limits: Thresholds) -> bool:
    """Return whether ``a`` is the less certain of two masks of one thing; of equal ones the later is."""
    loses = a.score < b.score or (a.score == b.score and later)
    return loses and float(mask_iou(a.mask, b.mask)) > limits.duplicate


def _is_part(a: Found, b: Found, later: bool, limits: Thresholds) -> bool:
    """Return whether ``a`` is the smaller of two masks and lies in the other."""
    mine, theirs = float(a.mask.sum()), float(b.mask.sum())
    if mine > theirs or (mine == theirs and not later):
        return False
    return float(torch.minimum(a.mask, b.mask).sum()) / max(mine, 1e-6) > limits.part


def noun_of(phrase: str) -> str:
    """Return the noun of a phrase: the last word before the first preposition, ``dog`` of ``a black dog with a
    hat``; empty if it has no word."""
    words = re.findall(r"[^\W\d_]+(?:[-'][^\W\d_]+)*", phrase.lower())
    for index, word in enumerate(words):
        if index and word in _PREPOSITIONS:
            return words[index - 1]
    return words[-1] if words else ""


_PREPOSITIONS = frozenset(
    ("with", "of", "in", "on", "at", "by", "near", "under", "over", "behind", "from", "for", "to", "and", "that",
     "which", "who", "wearing", "holding", "sitting", "standing")
)  # fmt: skip


def names_noun(caption: str, phrase: str) -> bool:
    """Return whether a caption has the noun of a phrase among its words, also as a plural."""
    noun = noun_of(phrase)
    return bool(noun) and re.search(rf"\b{re.escape(noun)}(?:s|es)?\b", caption.lower()) is not None
