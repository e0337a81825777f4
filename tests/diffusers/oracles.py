"""Parts that know a storybook scene, and ones that are spoilt in one way each."""

from dataclasses import replace

import numpy as np
import torch

from demo.world.vocabulary import BACKGROUNDS
from layered_core.canvas.soft_masks import grow
from layered_core.metrics.layout_metrics import mask_iou
from layered_diffusers.dataset.protocols import Caption, Found
from layered_diffusers.dataset.providers import Parts
from layered_diffusers.dataset.storybook import JudgeCaptions


def drawn(scene):
    """Return the scene's picture, ``[3, H, W]``."""
    return torch.from_numpy(scene.picture().astype(np.float32) / 255).permute(2, 0, 1).contiguous()


def silhouettes(scene):
    """Return the objects' areas, with what others cover of them, 0 or 1, ``[L, H, W]``."""
    out = torch.zeros(len(scene.objects), scene.size, scene.size)
    for mask, item in zip(out, scene.objects, strict=True):
        height, width = item.silhouette.shape
        whole = torch.zeros(scene.size + 2 * height, scene.size + 2 * width)
        top, left = item.y + height, item.x + width
        whole[top : top + height, left : left + width] = torch.from_numpy(
            (item.silhouette > 127).astype(np.float32)
        )
        mask[:] = whole[height : height + scene.size, width : width + scene.size]
    return out


class Oracle:
    """All four parts for one scene: its words, its masks shrunk by a pixel, its order, and what it would look like
    without some objects."""

    def __init__(self, scene):
        self.scene, self.masks = scene, silhouettes(scene)
        self.words = [x.thing.words for x in scene.objects]
        self.place = BACKGROUNDS[scene.background][0]
        self.judge = JudgeCaptions()

    def is_source(self, picture):
        return picture.pixels.shape == (3, self.scene.size, self.scene.size) and torch.equal(
            picture.pixels, drawn(self.scene)
        )

    def describe(self, picture):
        if self.is_source(picture):
            return Caption(self.scene.caption, tuple(self.words), self.place)
        return self.judge.describe(picture)

    def find(self, picture, phrases):
        found = []
        owner = torch.from_numpy(self.scene.object_map().astype(np.int64))
        for i, (words, mask) in enumerate(zip(self.words, self.masks, strict=True)):
            there = (picture.pixels - drawn(self.scene)).abs().amax(0)[owner == i + 1].mean() < 0.05
            if words in phrases and (self.is_source(picture) or bool(there)):
                found.append(Found(words, grow(mask, -1), 0.9))
        return found

    def order(self, picture, masks):
        mine = [int(mask_iou(m, self.masks).argmax()) for m in masks]
        return sorted(range(len(mine)), key=mine.__getitem__)

    def fill(self, picture, hole, words):
        nearest = [i for i, x in enumerate(self.words) if words.startswith(x)]
        shown = self.scene.objects[: nearest[0] + 1] if nearest else ()
        return torch.where(hole > 0, drawn(replace(self.scene, objects=shown)), picture.pixels)


def parts_of(oracle, **other):
    """Return an oracle as all four parts, except those that are given."""
    parts = {role: oracle for role in ("captioner", "segmenter", "depth", "inpainter")} | other
    return Parts(**parts, about={role: {"name": "oracle"} for role in parts})


class Misses(Oracle):
    """Does not find the last object."""

    def find(self, picture, phrases):
        return super().find(picture, phrases)[:-1]


class Twice(Oracle):
    """Names every object twice, and finds it twice."""

    def describe(self, picture):
        caption = super().describe(picture)
        return replace(caption, phrases=caption.phrases * 2)

    def find(self, picture, phrases):
        found = super().find(picture, phrases)
        return [*found, *(replace(x, score=0.8, mask=grow(x.mask, 1)) for x in found)]


class TooLarge(Oracle):
    """Finds one mask, of nine tenths of the picture."""

    def find(self, picture, phrases):
        mask = torch.ones(picture.size)
        mask[: picture.size[0] // 10] = 0
        return [Found(phrases[0], mask, 0.9)]


class Leaves(Oracle):
    """Paints nothing: the objects stay where they are."""

    def fill(self, picture, hole, words):
        return picture.pixels
