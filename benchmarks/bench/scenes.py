"""The scenes that the bench judges by: fixed seeds that no training drew, wordings that no training used,
everything about them known."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from demo.world.drawing import draw_background
from demo.world.harmony import pasted
from demo.world.scenes import HELD_OUT, Scene, is_held_out, place_object, random_scene
from demo.world.vocabulary import BACKGROUNDS, CANVAS, COLOURS, KINDS, THINGS, Thing
from layered_core.canvas.compositing import composite
from layered_core.control.hints import canny
from layered_core.document import LayerDocument

FIRST = HELD_OUT + 1_000_000
"""Least seed of a scene of the bench."""

REFERENCE = HELD_OUT + 2_000_000
"""Least seed of the drawn scenes that harmony is compared with; none is judged."""


@dataclass(frozen=True)
class Case:
    """One question to a method: make this picture."""

    scene: Scene
    """What is wanted, drawn as one: the right answer."""
    before: Scene | None = None
    """The picture there is already, of which one object is to become another; None where there is none."""
    changed: int | None = None
    """Which object of ``scene`` differs from ``before``."""

    @property
    def words(self) -> str:
        """The caption."""
        return self.scene.caption

    @property
    def background_words(self) -> str:
        """The landscape's part of the caption."""
        return BACKGROUNDS[self.scene.background][0]

    @property
    def things(self) -> list[Thing]:
        """The objects, back to front."""
        return [o.thing for o in self.scene.objects]

    @functools.cached_property
    def collage(self) -> LayerDocument:
        """The layers as a user might bring them: cut-outs from elsewhere that do not belong together."""
        return pasted(self.scene, self.scene.seed)

    @functools.cached_property
    def backdrop(self) -> Tensor:
        """The landscape without objects, ``[3, H, W]`` in 0..1."""
        return _pixels(replace(self.scene, objects=()))

    @functools.cached_property
    def sprite(self) -> Tensor:
        """The objects without the landscape, straight RGBA ``[4, H, W]`` in 0..1."""
        drawn = self.scene.document()
        return composite(replace(drawn, layers=drawn.layers[1:])).permute(2, 0, 1)

    @functools.cached_property
    def start(self) -> Tensor:
        """The composite of :attr:`collage`, ``[3, H, W]`` in 0..1."""
        return composite(self.collage)[..., :3].permute(2, 0, 1)

    @functools.cached_property
    def picture(self) -> Tensor:
        """:attr:`scene`, ``[3, H, W]`` in 0..1."""
        return _pixels(self.scene)

    @functools.cached_property
    def picture_before(self) -> Tensor:
        """:attr:`before`, ``[3, H, W]`` in 0..1."""
        assert self.before is not None
        return _pixels(self.before)

    @functools.cached_property
    def masks(self) -> Tensor:
        """Where each object is seen, hard, float ``[L, H, W]``."""
        owner = torch.from_numpy(self.scene.object_map().astype(np.int64))
        return (owner == torch.arange(1, len(self.scene.objects) + 1)[:, None, None]).float()

    @functools.cached_property
    def edges(self) -> Tensor:
        """Canny edges of :attr:`picture`, bool ``[H, W]``."""
        return canny(self.picture)

    @functools.cached_property
    def around_first(self) -> Tensor:
        """Where the first object is seen, and three pixels around it, bool ``[H, W]``."""
        return functional.max_pool2d(self.masks[:1], 7, 1, 3)[0] > 0

    @functools.cached_property
    def box_masks(self) -> Tensor:
        """The boxes around the objects, four pixels wider, float ``[L, H, W]``: what a user would draw."""
        out = torch.zeros_like(self.masks)
        for mask, item in zip(out, self.scene.objects, strict=True):
            left, top, right, bottom = _box(item.silhouette, item.x, item.y)
            mask[max(top - 4, 0) : bottom + 4, max(left - 4, 0) : right + 4] = 1
        return out

    @functools.cached_property
    def change_mask(self) -> Tensor:
        """Where the picture may change to become :attr:`scene`, ``[H, W]``: the object's box without what is
        seen of the others."""
        assert self.changed is not None
        assert self.before is not None
        old, new = (s.objects[self.changed] for s in (self.before, self.scene))
        mask = self.box_masks[self.changed].clone()
        left, top, right, bottom = _box(old.silhouette, old.x, old.y)
        mask[max(top - 4, 0) : bottom + 4, max(left - 4, 0) : right + 4] = 1
        for scene in (self.before, self.scene):
            owner = torch.from_numpy(scene.object_map().astype(np.int64))
            mask[(owner > 0) & (owner != self.changed + 1)] = 0
        assert old.thing != new.thing
        return mask


def layout_cases(count: int, objects: Sequence[int] = (2, 3, 4), first: int = FIRST) -> list[Case]:
    """``count`` scenes with ``objects`` different solid objects in turn, all of held-out wording.

    No object is covered by more than three tenths of the smaller of two boxes.
    """
    cases: list[Case] = []
    seed = first
    while len(cases) < count:
        scene = random_scene(seed, count=objects[len(cases) % len(objects)], materials=("solid",))
        seed += 1
        if is_held_out(scene.caption) and len({(o.colour, o.kind) for o in scene.objects}) == len(
            scene.objects
        ):
            cases.append(Case(scene))
    return cases


def redo_cases(count: int, objects: Sequence[int] = (2, 3)) -> list[Case]:
    """Scenes of which one object, in its place, is to become one of another kind and colour."""
    cases = []
    for case in layout_cases(count, objects):
        scene = case.scene
        rng = np.random.default_rng([scene.seed, 2])
        index = int(rng.integers(len(scene.objects)))
        item = scene.objects[index]
        kinds = [k for k in KINDS if k not in {o.kind for o in scene.objects}]
        colours = [c for c in COLOURS if c not in {o.colour for o in scene.objects}]
        left, top, right, bottom = _box(item.silhouette, item.x, item.y)
        other = place_object(
            Thing("solid", str(rng.choice(colours)), str(rng.choice(kinds))),
            (left, top, right - left, bottom - top),
        )
        wanted = replace(
            scene, objects=tuple(other if i == index else o for i, o in enumerate(scene.objects))
        )
        cases.append(Case(wanted, before=scene, changed=index))
    return cases


def layer_cases(count: int) -> list[Case]:
    """Single things of every kind, colour and material, near the middle of the canvas, each with a landscape
    that it is to be laid on."""
    cases = []
    places = list(BACKGROUNDS)
    for number in range(count):
        # 25 shares no factor with the 144 things: the first ones are spread over kinds, colours and
        # materials.
        thing = THINGS[number * 25 % len(THINGS)]
        rng = np.random.default_rng(FIRST + number)
        place = places[number % len(places)]
        width, height = rng.uniform(56, 86) * rng.uniform(0.9, 1.0, 2)
        x, y = CANVAS / 2 + rng.uniform(-8, 8, 2) - np.array([width, height]) / 2
        item = place_object(
            thing, (float(x), float(y), float(width), float(height)), angle=float(rng.uniform(-10, 10))
        )
        cases.append(Case(Scene(FIRST + number, place, draw_background(place, rng), (item,))))
    return cases


CASES = {"layout": layout_cases, "redo": redo_cases, "layer": layer_cases}
"""What a suite may name as its scenes."""


def _pixels(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.picture().astype(np.float32) / 255).permute(2, 0, 1)


def _box(silhouette: np.ndarray, x: int, y: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is over one half, canvas pixels."""
    rows, columns = np.nonzero(silhouette > 127)
    return int(columns.min()) + x, int(rows.min()) + y, int(columns.max()) + 1 + x, int(rows.max()) + 1 + y
