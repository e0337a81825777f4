"""The storybook world: procedural scenes whose every layer, mask and word is known.

A scene is a background and zero to four objects. An object is one of six kinds in one of six colours, made of
one of four materials (hard, translucent, haloed or soft edges), at any place. Everything is drawn from a
seed, with Pillow and numpy only, so the same seed gives the same pixels on every machine.

The model in ``demo/model`` was trained on these scenes; the judge in ``demo/world/judge.py`` finds their
objects and background in a picture.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from .drawing import draw_background, draw_in_box
from .vocabulary import BACKGROUNDS, CANVAS, COLOURS, KINDS, MATERIALS, Thing

if TYPE_CHECKING or __package__ == "demo.world":
    from layered_core.document import Layer, LayerDocument
else:
    # As part of the ComfyUI pack, whose folder is a package under a name that ComfyUI chooses.
    from ...layered_core.document import Layer, LayerDocument

_SIZES = {1: (50, 76), 2: (40, 62), 3: (34, 50), 4: (30, 44)}
"""By number of objects: least and greatest side of a silhouette in pixels on a 128-pixel canvas."""


@dataclass(frozen=True)
class StoryObject:
    """One object of a scene."""

    kind: str
    colour: str
    material: str
    x: int
    """Left edge of the sprite on the canvas, pixels; may be negative."""
    y: int
    """Top edge of the sprite on the canvas, pixels; may be negative."""
    image: np.ndarray
    """RGBA sprite as placed, uint8 ``[h, w, 4]``, straight alpha."""
    silhouette: np.ndarray
    """The area that the object covers, whatever its translucency, uint8 ``[h, w]``, 255 inside."""

    @property
    def thing(self) -> Thing:
        """The object's material, colour and kind, without its place."""
        return Thing(self.material, self.colour, self.kind)


Draw = Callable[..., StoryObject]
"""Draws an object as :func:`place_object` does, with the same arguments except ``body``."""


@dataclass(frozen=True)
class Scene:
    """A background and its objects, back to front."""

    seed: int
    background: str
    background_image: np.ndarray
    """RGB, uint8 ``[H, W, 3]``."""
    objects: tuple[StoryObject, ...] = field(default=())

    @property
    def size(self) -> int:
        """Side of the square canvas in pixels."""
        return int(self.background_image.shape[0])

    def picture(self) -> np.ndarray:
        """Composite the objects over the background, uint8 ``[H, W, 3]``."""
        canvas = Image.fromarray(self.background_image)
        for item in self.objects:
            sprite = Image.fromarray(item.image)
            canvas.paste(sprite, (item.x, item.y), sprite)
        return np.asarray(canvas)

    def object_map(self) -> np.ndarray:
        """Return the topmost object at each pixel, uint8 ``[H, W]``: 0 background, i + 1 for
        ``objects[i]``."""
        owner = Image.new("L", (self.size, self.size), 0)
        for index, item in enumerate(self.objects):
            hard = Image.fromarray(item.silhouette).point(lambda v: 255 if v > 127 else 0)
            owner.paste(index + 1, (item.x, item.y), hard)
        return np.asarray(owner)

    @property
    def caption(self) -> str:
        """The caption: the objects back to front, then the background."""
        return caption([o.thing.words for o in self.objects], BACKGROUNDS[self.background][0])

    def document(self) -> LayerDocument:
        """Return the scene as a layer document whose composite is :meth:`picture`."""
        back = Layer(
            name=self.background,
            image=_rgba_floats(
                np.dstack([self.background_image, np.full(self.background_image.shape[:2], 255, np.uint8)])
            ),
            prompt=BACKGROUNDS[self.background][0],
            width=self.size,
            height=self.size,
        )
        layers = [back]
        for index, item in enumerate(self.objects):
            height, width = item.image.shape[:2]
            name = f"{item.thing.words.removeprefix('a ')} {index + 1}"
            layers.append(
                Layer(
                    name=name,
                    image=_rgba_floats(item.image),
                    prompt=item.thing.words,
                    x=item.x,
                    y=item.y,
                    width=width,
                    height=height,
                )
            )
        return LayerDocument(width=self.size, height=self.size, layers=tuple(layers))


def caption(objects: Sequence[str], place: str, place_first: bool = False) -> str:
    """Join phrases of objects and a place: ``a red ball, a blue star and a green tree by the sea``."""
    things = ", ".join(objects[:-1]) + (" and " if len(objects) > 1 else "") + objects[-1] if objects else ""
    if not things or not place:
        return things or place
    return (
        f"{place}, {things}"
        if place_first
        else f"{things} {place}"
        if place.split()[0] in _PREPOSITIONS
        else f"{things}, {place}"
    )


_PREPOSITIONS = frozenset({"in", "by", "at"})


def is_held_out(words: str) -> bool:
    """Whether this caption is held out from training to measure with: one in eight is, by the checksum of its
    text.

    Wordings are held out, not combinations: a model that is never shown a green mushroom by the sea learns
    that there is none.
    """
    return zlib.crc32(words.encode()) % 8 == 0


def random_things(
    rng: np.random.Generator,
    count: int | None = None,
    background: str | None = None,
    materials: Sequence[str] = MATERIALS,
) -> tuple[str, list[Thing]]:
    """Choose a scene's background and its objects, back to front. The arguments are those of
    :func:`random_scene`."""
    number = int(rng.choice(5, p=[0.10, 0.40, 0.30, 0.12, 0.08]))
    place = str(rng.choice(list(BACKGROUNDS)))
    place = place if background is None else background
    pairs = [(c, k) for c in COLOURS for k in KINDS]
    others = [m for m in materials if m != "solid"]
    things = []
    for _ in range(number if count is None else count):
        solid = "solid" in materials and (not others or rng.random() < 0.7)
        things.append(Thing("solid" if solid else str(rng.choice(others)), *pairs[rng.integers(len(pairs))]))
    return place, things


def random_caption(
    rng: np.random.Generator, background: str, things: Sequence[Thing]
) -> tuple[str, list[int]]:
    """Return a caption of a scene in shuffled order and varied phrases; 15 % leave out the background.

    Returns:
        the caption, and the indices of ``things`` in the order in which it names them.
    """
    order = [int(i) for i in rng.permutation(len(things))]
    phrases = BACKGROUNDS[background]
    place = phrases[rng.integers(len(phrases))] if not things or rng.random() > 0.15 else ""
    return caption([things[i].words for i in order], place, place_first=bool(rng.random() < 0.2)), order


def random_scene(
    seed: int,
    *,
    count: int | None = None,
    background: str | None = None,
    materials: Sequence[str] = MATERIALS,
    size: int = CANVAS,
    draw: Draw | None = None,
) -> Scene:
    """Draw a scene from ``seed``.

    Args:
        seed: any non-negative integer; the same seed and arguments give the same pixels.
        count: number of objects 0..4, or None for a random one (0: 10 %, 1: 40 %, 2: 30 %, 3: 12 %, 4: 8 %).
        background: a key of ``BACKGROUNDS``, or None for a random one.
        materials: the materials to choose from; ``solid`` is chosen 70 % of the time if there are others too.
        size: side of the canvas in pixels.
        draw: draws each object, such as one of :data:`demo.world.looks.LOOKS`; None: :func:`place_object`. It
            changes nothing else in the scene.
    """
    rng = np.random.default_rng(seed)
    place, things = random_things(rng, count, background, materials)
    backdrop = draw_background(place, rng, size)
    objects = [
        (draw or place_object)(thing, box, angle=float(rng.uniform(-10, 10)), flip=bool(rng.random() < 0.5))
        for thing, box in zip(things, _boxes(len(things), rng, size), strict=True)
    ]
    return Scene(seed, place, backdrop, tuple(objects))


def place_object(
    thing: Thing,
    box: tuple[float, float, float, float],
    *,
    angle: float = 0.0,
    flip: bool = False,
    body: tuple[int, int, int] | None = None,
) -> StoryObject:
    """Draw an object whose silhouette fills ``box`` = (x, y, width, height) in pixels and is then turned by
    ``angle`` degrees. ``body`` is its colour, red, green and blue 0..255; None: the one that the words name."""
    left, top, image, silhouette = draw_in_box(thing, box, angle, flip, body)
    return StoryObject(thing.kind, thing.colour, thing.material, left, top, image, silhouette)


def _boxes(number: int, rng: np.random.Generator, size: int) -> list[tuple[float, float, float, float]]:
    """Return random boxes of silhouettes of which no two overlap by 0.3 of the smaller one or more."""
    if number == 0:
        return []
    low, high = (s * size / CANVAS for s in _SIZES[number])
    for attempt in range(200):
        boxes: list[tuple[float, float, float, float]] = []
        for _ in range(number):
            side = rng.uniform(low, high) * (0.99**attempt)
            width, height = side * rng.uniform(0.9, 1.0), side * rng.uniform(0.9, 1.0)
            boxes.append((rng.uniform(2, size - 2 - width), rng.uniform(2, size - 2 - height), width, height))
        if all(_overlap(a, b) < 0.3 for i, a in enumerate(boxes) for b in boxes[i + 1 :]):
            return boxes
    raise RuntimeError(f"no room for {number} objects on {size} pixels")  # unreachable: boxes shrink


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Return the area of the intersection over the smaller area."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0) / min(a[2] * a[3], b[2] * b[3])


def _rgba_floats(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32) / 255)


HELD_OUT = 10_000_000
"""Training never uses seeds of this number or above."""
