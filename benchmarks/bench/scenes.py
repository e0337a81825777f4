"""The scenes of the bench. Training used neither their seeds nor their wordings, and everything about them is
known."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from demo.world.drawing import draw_background
from demo.world.harmony import pasted
from demo.world.scenes import HELD_OUT, Scene, StoryObject, is_held_out, place_object, random_scene
from demo.world.vocabulary import BACKGROUNDS, CANVAS, COLOURS, KINDS, THINGS, Thing
from layered_core.canvas.compositing import composite
from layered_core.canvas.masks import visible_masks
from layered_core.control.hints import canny
from layered_core.document import Layer, LayerDocument

FIRST = HELD_OUT + 1_000_000
"""First seed of the bench's scenes."""

REFERENCE = HELD_OUT + 2_000_000
"""First seed of the drawn scenes that serve as reference of the Fréchet distance; no method has to make
them."""


@dataclass(frozen=True)
class Case:
    """A picture that a method has to make."""

    scene: Scene
    """The wanted scene, drawn as one."""
    before: Scene | None = None
    """The scene of the existing picture, in which one object is to become another; None if there is no such
    picture."""
    changed: int | None = None
    """Index of the object in which ``scene`` differs from ``before``."""
    source: Scene | None = None
    """The scene whose single object a word is to be learnt from, which is the first of ``scene``; None if nothing is
    to be learnt."""

    @property
    def words(self) -> str:
        """The scene's caption."""
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
        """The scene as a collage that a user might make, of cut-outs that do not fit each other."""
        return pasted(self.scene, self.scene.seed)

    @functools.cached_property
    def boxes(self) -> LayerDocument:
        """The scene as a user might describe it without pictures: layers of words alone, each as large as the box
        around its object."""
        back, *objects = self.collage
        layers = [Layer(back.name, prompt=back.prompt, width=self.collage.width, height=self.collage.height)]
        for layer, mask in zip(objects, self.box_masks, strict=True):
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            left, top = int(columns[0]), int(rows[0])
            width, height = int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top
            layers.append(Layer(layer.name, prompt=layer.prompt, x=left, y=top, width=width, height=height))
        return replace(self.collage, layers=tuple(layers))

    @functools.cached_property
    def backdrop(self) -> Tensor:
        """The landscape without objects, ``[3, H, W]`` in 0..1."""
        return _pixels(replace(self.scene, objects=()))

    @functools.cached_property
    def sprite(self) -> Tensor:
        """The composite of the objects without the landscape, straight RGBA ``[4, H, W]`` in 0..1."""
        drawn = self.scene.document()
        return composite(replace(drawn, layers=drawn.layers[1:])).permute(2, 0, 1)

    @functools.cached_property
    def start(self) -> Tensor:
        """The composite of :attr:`collage`, ``[3, H, W]`` in 0..1."""
        return composite(self.collage)[..., :3].permute(2, 0, 1)

    @functools.cached_property
    def picture(self) -> Tensor:
        """The picture of :attr:`scene`, ``[3, H, W]`` in 0..1."""
        return _pixels(self.scene)

    @functools.cached_property
    def picture_before(self) -> Tensor:
        """The picture of :attr:`before`, ``[3, H, W]`` in 0..1."""
        assert self.before is not None
        return _pixels(self.before)

    @functools.cached_property
    def masks(self) -> Tensor:
        """The visible mask of each object, 0 or 1, float ``[L, H, W]``."""
        owner = torch.from_numpy(self.scene.object_map().astype(np.int64))
        return (owner == torch.arange(1, len(self.scene.objects) + 1)[:, None, None]).float()

    @functools.cached_property
    def edges(self) -> Tensor:
        """Canny edges of :attr:`picture`, bool ``[H, W]``."""
        return canny(self.picture)

    @functools.cached_property
    def around_first(self) -> Tensor:
        """The visible mask of the first object, widened by three pixels, bool ``[H, W]``."""
        return functional.max_pool2d(self.masks[:1], 7, 1, 3)[0] > 0

    @functools.cached_property
    def box_masks(self) -> Tensor:
        """The boxes around the objects, four pixels wider, as a user would draw them, float ``[L, H, W]``."""
        out = torch.zeros_like(self.masks)
        for mask, item in zip(out, self.scene.objects, strict=True):
            left, top, right, bottom = _box(item.silhouette, item.x, item.y)
            mask[max(top - 4, 0) : bottom + 4, max(left - 4, 0) : right + 4] = 1
        return out

    @functools.cached_property
    def visible_boxes(self) -> Tensor:
        """What is seen of each of the boxes, of which later ones lie in front, float ``[L, H, W]``."""
        return visible_masks(self.box_masks)[0]

    @functools.cached_property
    def change_mask(self) -> Tensor:
        """The mask where the picture may change to become :attr:`scene`, ``[H, W]``: the boxes of the old and
        the new object without the visible parts of the others."""
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
    """Return ``count`` scenes of held-out wording with different solid objects, whose number is taken from
    ``objects`` in turn.

    Two objects' boxes overlap by less than three tenths of the smaller box.
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
    """Return scenes in which one object is to become another of a new kind and colour, in the same place."""
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
    """Return scenes with a single object near the middle of the canvas, of all kinds, colours and materials
    in turn, each with a landscape to composite it on."""
    cases = []
    places = list(BACKGROUNDS)
    for number in range(count):
        # 25 and the number of things, 144, share no factor, so few scenes already spread over kinds, colours
        # and materials.
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


def few_cases(count: int) -> list[Case]:
    """Return the scenes of :func:`layout_cases` with two or three objects."""
    return layout_cases(count, (2, 3))


ODD_THINGS = (
    ("orange", "ball"), ("cyan", "house"), ("brown", "heart"), ("red and white", "ball"), ("pink", "star"),
    ("orange", "house"), ("cyan", "mushroom"), ("brown", "tree"), ("red and white", "heart"), ("pink", "heart"),
)  # fmt: skip
"""Things that no words name: four colours between the palette's, and stripes of two, on two kinds each."""

SEEDS = 8
"""Pictures of each odd thing."""


def odd_object(look: str, kind: str, box: tuple[float, float, float, float]) -> StoryObject:
    """Draw an object in an odd colour, or in stripes of two colours."""
    first, _, second = look.partition(" and ")
    item = place_object(Thing("solid", first, kind), box)
    if not second:
        return item
    image = item.image.copy()
    stripes = (np.arange(len(image)) // 9) % 2 == 1
    image[stripes] = place_object(Thing("solid", second, kind), box).image[stripes]
    return replace(item, image=image)


def learn_cases(count: int, beside: bool = False) -> list[Case]:
    """Return odd things, each to be learnt from one scene and shown :data:`SEEDS` times in another landscape, alone or
    ``beside`` a thing that words name."""
    cases = []
    places = list(BACKGROUNDS)
    for number in range(count):
        index, seed = number // SEEDS % len(ODD_THINGS), number % SEEDS
        look, kind = ODD_THINGS[index]
        rng = np.random.default_rng(FIRST + index)
        place = places[index % len(places)]
        source = Scene(
            FIRST + index, place, draw_background(place, rng), (odd_object(look, kind, (30, 34, 62, 60)),)
        )
        other = places[(index + 2) % len(places)]
        backdrop = draw_background(other, np.random.default_rng(FIRST + number))
        wanted = [odd_object(look, kind, (8, 40, 52, 50) if beside else (30, 34, 62, 60))]
        if beside:
            kinds = [k for k in KINDS if k != kind]
            thing = Thing("solid", list(COLOURS)[(index + seed) % len(COLOURS)], kinds[seed % len(kinds)])
            wanted.append(place_object(thing, (70, 40, 50, 48)))
        cases.append(Case(Scene(FIRST + number, other, backdrop, tuple(wanted)), source=source))
    return cases


CASES: dict[str, Callable[[int], list[Case]]] = {
    "layout": layout_cases,
    "few": few_cases,
    "redo": redo_cases,
    "layer": layer_cases,
    "learn": learn_cases,
    "learn_beside": functools.partial(learn_cases, beside=True),
}
"""The functions that make scenes, by the names that suites use."""


def _pixels(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.picture().astype(np.float32) / 255).permute(2, 0, 1)


def _box(silhouette: np.ndarray, x: int, y: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the pixels above one half, in pixels of the canvas."""
    rows, columns = np.nonzero(silhouette > 127)
    return int(columns.min()) + x, int(rows.min()) + y, int(columns.max()) + 1 + x, int(rows.max()) + 1 + y
