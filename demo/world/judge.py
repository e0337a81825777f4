"""The judge: finds the objects and the background in a picture of the storybook world.

A small segmentation network, trained on drawn scenes only (``python -m demo.train judge``) and never used to
train a generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

if TYPE_CHECKING or __package__ == "demo.world":
    from layered_core.canvas.resizing import resized
else:
    # As part of the ComfyUI pack, whose folder is a package under a name that ComfyUI chooses.
    from ...layered_core.canvas.resizing import resized

from .places import JUDGE
from .vocabulary import BACKGROUNDS, COLOURS, KINDS, Thing

WEIGHTS = JUDGE / "judge.safetensors"

LEAST_AREA = 24
"""Least area of an object in pixels of the 64 x 64 label map; smaller patches are ignored."""

_CLASSES = [(c, k) for c in COLOURS for k in KINDS]


@dataclass(frozen=True)
class Found:
    """An object that the judge found."""

    colour: str
    kind: str
    mask: Tensor
    """The object's pixels, bool ``[64, 64]`` over the whole picture."""

    @property
    def thing(self) -> tuple[str, str]:
        """Colour and kind."""
        return self.colour, self.kind


@dataclass(frozen=True)
class Verdict:
    """The objects and the background that the judge found in one picture."""

    background: str
    objects: tuple[Found, ...]
    """Largest first."""

    def shows(self, things: list[Thing]) -> bool:
        """Whether the objects are exactly ``things``: each once, with the right kind and colour, and no
        others."""
        return sorted(f.thing for f in self.objects) == sorted((t.colour, t.kind) for t in things)

    def missing(self, things: list[Thing]) -> list[Thing]:
        """Return those of ``things`` that were not found in kind and colour; each found object counts
        once."""
        left = [f.thing for f in self.objects]
        absent = []
        for thing in things:
            if (thing.colour, thing.kind) in left:
                left.remove((thing.colour, thing.kind))
            else:
                absent.append(thing)
        return absent


class Judge(nn.Module):
    """Segmentation network for pictures ``[B, 3, 128, 128]`` in 0..1.

    It gives class logits ``[B, 37, 64, 64]`` (0: no object), background logits ``[B, 6]``, and logits
    ``[B, 64, 64]`` that two objects meet at a pixel, which separate two touching objects of the same class.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.stem = _stage(3, w, stride=2)
        self.down = nn.ModuleList(
            [_stage(w, 2 * w, stride=2), _stage(2 * w, 3 * w, stride=2), _stage(3 * w, 4 * w, stride=2)]
        )
        self.up = nn.ModuleList([_stage(7 * w, 3 * w), _stage(5 * w, 2 * w), _stage(3 * w, w)])
        self.classes = nn.Conv2d(w, 1 + len(_CLASSES), 1)
        self.meeting = nn.Conv2d(w, 1, 3, padding=1)
        # The background is classified by broad colours alone, so that fine detail of a generated picture does
        # not mislead.
        self.place = nn.Sequential(
            nn.AdaptiveAvgPool2d(16), nn.Conv2d(3, w, 3, 2, 1), nn.ReLU(), nn.Conv2d(w, 2 * w, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * w * 16, len(BACKGROUNDS)),
        )  # fmt: skip

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three kinds of logits, see the class."""
        x = self.stem(picture * 2 - 1)
        skips = []
        for stage in self.down:
            skips.append(x)
            x = stage(x)
        for stage, skip in zip(self.up, reversed(skips), strict=True):
            x = stage(torch.cat([nn.functional.interpolate(x, scale_factor=2.0), skip], 1))
        return self.classes(x), self.place(picture * 2 - 1), self.meeting(x)[:, 0]

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Judge:
        """Load the judge (by default the shipped one), in evaluation mode."""
        judge = cls()
        judge.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
        )
        return judge.eval()

    @torch.no_grad()
    def look(self, pictures: Tensor) -> list[Verdict]:
        """Judge ``pictures`` [B, 3, H, W] in 0..1; any square size."""
        pictures = resized(pictures, 128, 128)
        logits, places, meeting = self(pictures.float())
        labels = logits.softmax(1)
        labels = nn.functional.avg_pool2d(labels, 3, 1, 1, count_include_pad=False).argmax(1)
        names = list(BACKGROUNDS)
        return [
            Verdict(names[int(p)], tuple(_objects(m, b)))
            for m, p, b in zip(labels, places.argmax(1), meeting > 0, strict=True)
        ]


def _objects(labels: Tensor, meeting: Tensor) -> list[Found]:
    """Return the connected patches of one class of at least ``LEAST_AREA`` pixels, largest first. Patches are
    cut apart at ``meeting`` [H, W].

    A patch that touches another of the same colour and more than twice its size is a misread part of it, and
    is joined to it.
    """
    inner = torch.where(meeting, 0, labels)
    patches = connected_components(inner)
    numbers, areas = patches[inner > 0].unique(return_counts=True)
    found: list[Found] = []
    for patch in numbers[areas.argsort(descending=True)].tolist():
        mask = patches == patch
        colour, kind = _CLASSES[int(labels[mask][0]) - 1]
        around = _grown(mask)
        whole = next(
            (
                i
                for i, f in enumerate(found)
                if f.colour == colour and bool((f.mask & around).any()) and f.mask.sum() > 2 * mask.sum()
            ),
            None,
        )
        if whole is not None:
            found[whole] = Found(colour, found[whole].kind, found[whole].mask | mask)
        else:
            found.append(Found(colour, kind, mask))
    return sorted(
        (f for f in _regrown(found, labels, meeting) if int(f.mask.sum()) >= LEAST_AREA),
        key=lambda f: -int(f.mask.sum()),
    )


def _regrown(found: list[Found], labels: Tensor, meeting: Tensor) -> list[Found]:
    """Return the objects with the pixels where objects meet given back to neighbours of their class."""
    free = meeting & (labels > 0)
    masks = [f.mask for f in found]
    for _ in range(4):
        for i, f in enumerate(found):
            more = _grown(masks[i]) & free & (labels == 1 + _CLASSES.index(f.thing))
            masks[i], free = masks[i] | more, free & ~more
    return [Found(f.colour, f.kind, m) for f, m in zip(found, masks, strict=True)]


def _grown(mask: Tensor) -> Tensor:
    """Return ``mask`` [H, W] with its eight-connected neighbours."""
    return nn.functional.max_pool2d(mask[None, None].float(), 3, 1, 1)[0, 0] > 0


def connected_components(labels: Tensor) -> Tensor:
    """Number the eight-connected patches of equal label in ``labels`` [H, W]: pixels of one patch get the
    same number."""
    height, width = labels.shape
    patches = torch.arange(1, height * width + 1, dtype=torch.float32).view(height, width)
    present = [labels == v for v in labels.unique()]
    while True:
        spread = torch.zeros_like(patches)
        for mask in present:
            inside = torch.where(mask, patches, 0.0)
            spread = spread + nn.functional.max_pool2d(inside[None, None], 3, 1, 1)[0, 0] * mask
        if torch.equal(spread, patches):
            return patches.long()
        # A number names a pixel of its patch, which may know a greater one by now.
        patches = spread.flatten()[spread.long() - 1]


def _stage(inside: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
        nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
    )  # fmt: skip
