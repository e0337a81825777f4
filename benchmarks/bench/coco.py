"""Scenes for the suite ``coco``: captions of photographs, with the places of the objects that they name.

The Layered Rendering Diffusion paper (arXiv 2311.18435) measures on 1,134 captions of COCO and does not say how they
were chosen. This rule is ours:

1. The photographs are put in an order that a seed decides, and the first ones with a caption that fits are taken.
2. Of a photograph's captions, in the order of their ids, the first that fits is taken.
3. The part of the photograph is a square as large as its shorter side, with its middle as near as possible to that of
   the objects whose categories the caption names. A category is named by its whole name or its plural, without regard
   to case; longer names come first, so that "hot dog" names no dog. Crowds are left out.
4. Of these objects those count that cover :data:`LEAST` of the square or more. The caption fits if they are at most
   :data:`MOST`, of two or more categories.
5. The square is scaled to the model's own size. Larger objects lie behind smaller ones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.bench.coco_files import GET, Instance, Photo, Square, read_photos
from benchmarks.bench.scenes import Case
from benchmarks.bench.suite import CocoSettings
from demo.world.scenes import Scene
from layered_core.canvas.masks import visible_masks
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.metrics.layout_metrics import mask_boxes

LEAST = 0.01
"""Least share of the square that an object covers."""

MOST = 8
"""Greatest number of objects."""

_GRID = 64
"""Side of the grid on which the covered share is measured."""

_PLURALS = {"person": "people", "mouse": "mice", "knife": "knives"}


class Named(NamedTuple):
    """An object that a caption names."""

    category: str

    @property
    def words(self) -> str:
        """The category with its article, e.g. ``an apple``."""
        return f"{'an' if self.category[0] in 'aeiou' else 'a'} {self.category}"


@dataclass(frozen=True)
class Chosen:
    """A caption, and the objects that it names in a part of the photograph."""

    number: int
    """COCO's id of the photograph."""
    caption: str
    square: Square
    objects: tuple[Instance, ...]
    """Back to front."""


def choose(settings: CocoSettings, count: int) -> list[Chosen]:
    """Choose ``count`` captions by the rule of this module. The first ones are the same for every ``count``.

    Raises:
        LayeredError: the files cannot be read, or fewer captions fit.
    """
    chosen = list(islice(_fitting(read_photos(settings.annotations), settings.seed), count))
    if len(chosen) < count:
        what = f"{len(chosen)} captions fit" if chosen else "no caption fits"
        raise LayeredError(
            f"--annotations {str(settings.annotations)!r}: {what}, and -n is {count}. A caption fits if it names "
            f"objects of two or more categories of its photograph that cover {LEAST:.0%} of it or more. "
            + (f"Give -n {len(chosen)} or less" if chosen else GET)
        )
    return chosen


def _fitting(photos: Sequence[Photo], seed: int) -> Iterator[Chosen]:
    """Yield the captions that fit, at most one of a photograph."""
    for index in np.random.default_rng(seed).permutation(len(photos)):
        for caption in photos[index].captions:
            found = fit(photos[index], caption)
            if found is not None:
                yield found
                break


def fit(photo: Photo, caption: str) -> Chosen | None:
    """Return what a caption names in its photograph, or None if it does not fit."""
    names = named(caption, {x.category for x in photo.instances})
    if len(names) < 2:
        return None
    mine = [x for x in photo.instances if x.category in names]
    square = _square(photo, mine)
    # Only objects with a box that is large enough are drawn.
    large = [x for x in mine if _area(_frame(x, square)) >= LEAST]
    if len({x.category for x in large}) < 2:
        return None
    areas = [float(x.mask(square, _GRID).float().mean()) for x in large]
    order = sorted((i for i, area in enumerate(areas) if area >= LEAST), key=lambda i: -areas[i])
    if len({large[i].category for i in order}) < 2 or len(order) > MOST:
        return None
    return Chosen(photo.number, caption, square, tuple(large[i] for i in order))


def named(caption: str, categories: set[str]) -> set[str]:
    """Return those of ``categories`` that a caption names by their whole name or its plural."""
    found = set()
    for category in sorted(categories, key=lambda name: (-len(name), name)):
        rest, times = _pattern(category).subn("|", caption)
        if times:
            caption = rest
            found.add(category)
    return found


@functools.cache
def _pattern(category: str) -> re.Pattern[str]:
    ends = rf"{re.escape(category)}(?:s|es)?"
    if category.endswith("y"):
        ends += rf"|{re.escape(category[:-1])}ies"
    first, _, last = category.rpartition(" ")
    if last in _PLURALS:
        ends += f"|{re.escape(' '.join(filter(None, [first, _PLURALS[last]])))}"
    return re.compile(rf"\b(?:{ends})\b", re.IGNORECASE)


def _square(photo: Photo, objects: Sequence[Instance]) -> Square:
    side = min(photo.width, photo.height)
    starts = []
    for axis, length in enumerate((photo.width, photo.height)):
        middle = (min(x.box[axis] for x in objects) + max(x.box[axis] + x.box[axis + 2] for x in objects)) / 2
        starts.append(int(min(max(middle - side / 2 + 0.5, 0), length - side)))
    return Square(starts[0], starts[1], side)


@dataclass(frozen=True, kw_only=True)
class Described(Scene):
    """A scene of which words and places are known, and nothing is drawn."""

    described: LayerDocument
    """The objects as layers of words and masks, with the caption as the prompt of the whole."""

    @property
    def caption(self) -> str:
        """The caption."""
        return self.described.prompt

    def document(self) -> LayerDocument:
        """Return :attr:`described`."""
        return self.described

    def picture(self) -> np.ndarray:
        """Raise :class:`LayeredError`: there is none."""
        raise _no_pictures()


@dataclass(frozen=True, kw_only=True)
class CocoCase(Case):
    """A caption with the places of its objects, as a picture to make.

    There is no such picture and none of its objects, so methods that start from pictures cannot make it.
    """

    chosen: Chosen
    """The caption and its objects."""
    frames: Tensor
    """The boxes around the objects as shares of the picture's sides: left, top, right and bottom, ``[L, 4]``."""
    by_box: bool
    """Whether the places are the boxes around the objects, else their outlines."""

    @property
    def background_words(self) -> str:
        """The caption: COCO says nothing of the background alone."""
        return self.words

    @property
    def things(self) -> list[Named]:  # type: ignore[override]
        """The objects, back to front."""
        return [Named(x.category) for x in self.chosen.objects]

    @functools.cached_property
    def masks(self) -> Tensor:
        """The visible part of each object's place, 0 or 1, float ``[L, H, W]``."""
        return torch.stack([layer.coverage for layer in self.scene.document()])

    @functools.cached_property
    def box_masks(self) -> Tensor:
        """The boxes around the objects, float ``[L, H, W]``."""
        return torch.stack([_drawn(box, self.scene.size) for box in self.frames])

    @functools.cached_property
    def boxes(self) -> LayerDocument:
        """The scene as layers of words alone, each as large as the box around its object."""
        layers = []
        for layer, (left, top, right, bottom) in zip(
            self.scene.document(), mask_boxes(self.box_masks).int().tolist(), strict=True
        ):
            layers.append(
                Layer(layer.name, prompt=layer.prompt, x=left, y=top, width=right - left, height=bottom - top)
            )
        return replace(self.scene.document(), layers=tuple(layers))

    def wanted(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return where the objects are wanted, for a detector whose masks are ``height`` by ``width``: masks, bool
        ``[L, height, width]``, and boxes as shares of the picture's sides, ``[L, 4]``."""
        masks = functional.adaptive_avg_pool2d(self.masks, (height, width)) > 0.5
        if self.by_box:
            return masks, self.frames
        return masks, mask_boxes(masks.float()) / torch.tensor([width, height, width, height])

    @functools.cached_property
    def collage(self) -> LayerDocument:
        """Not known: raises :class:`LayeredError`."""
        raise _no_pictures()


class CocoCases(Sequence[Case]):
    """The scenes of :func:`choose` as pictures to make. They are drawn when they are needed: all of them at once would
    fill the memory."""

    def __init__(self, settings: CocoSettings, count: int, side: int) -> None:
        """Choose ``count`` captions, for pictures of ``side`` by ``side`` pixels."""
        self.chosen, self.by_box, self.side = choose(settings, count), settings.places == "boxes", side
        self._drawn = functools.lru_cache(maxsize=16)(self._draw)

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | Sequence[Case]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._drawn(range(len(self))[index])

    def _draw(self, index: int) -> Case:
        return coco_case(self.chosen[index], self.by_box, self.side)


def coco_case(chosen: Chosen, by_box: bool, side: int) -> CocoCase:
    """Return a caption as a picture to make, ``side`` by ``side`` pixels."""
    frames = torch.tensor([_frame(x, chosen.square) for x in chosen.objects])
    places = (
        [_drawn(box, side) for box in frames]
        if by_box
        else [x.mask(chosen.square, side).float() for x in chosen.objects]
    )
    layers = tuple(
        Layer(f"{x.category} {number}", mask=mask, prompt=Named(x.category).words)
        for number, (x, mask) in enumerate(
            zip(chosen.objects, visible_masks(torch.stack(places))[0], strict=True), 1
        )
    )
    scene = Described(
        seed=chosen.number, background="", background_image=np.zeros((side, side, 3), np.uint8),
        described=LayerDocument(side, side, layers, prompt=chosen.caption),
    )  # fmt: skip
    return CocoCase(scene=scene, chosen=chosen, frames=frames, by_box=by_box)


def _frame(instance: Instance, square: Square) -> list[float]:
    """Return an object's box as shares of a square's sides, cut to the square: left, top, right, bottom."""
    left, top, width, height = instance.box
    edges = (
        left - square.left,
        top - square.top,
        left + width - square.left,
        top + height - square.top,
    )
    return [min(max(edge / square.side, 0.0), 1.0) for edge in edges]


def _area(frame: Sequence[float]) -> float:
    """Return the area of a box, as a share of the square."""
    left, top, right, bottom = frame
    return (right - left) * (bottom - top)


def _drawn(box: Tensor, side: int) -> Tensor:
    """Return the pixels of a box, 0 or 1, float ``[side, side]``; at least one pixel."""
    left, top, right, bottom = (round(edge * side) for edge in box.tolist())
    left, top = min(left, side - 1), min(top, side - 1)
    mask = torch.zeros(side, side)
    mask[top : max(bottom, top + 1), left : max(right, left + 1)] = 1
    return mask


def _no_pictures() -> LayeredError:
    return LayeredError(
        "suite coco: a method starts from pictures, and COCO's captions come without any. Leave it out with --methods"
    )
