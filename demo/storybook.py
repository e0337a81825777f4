"""The storybook world: procedural scenes whose every layer, mask and word is known.

A scene is a background and zero to four objects. An object is one of six kinds in one of six colours, made of one of
four materials (hard, translucent, haloed or soft edges), at any place. Everything is drawn from a seed, with Pillow and
numpy only, so the same seed gives the same pixels on every machine.

The model in ``demo/model`` was trained on these scenes; the judge in ``demo/judge.py`` reads pictures back into them.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter

if TYPE_CHECKING or __package__ == "demo":
    from layered_core.document import Layer, LayerDocument
else:
    # As part of the ComfyUI pack, whose folder is a package under a name that ComfyUI chooses.
    from ..layered_core.document import Layer, LayerDocument

CANVAS = 128
"""Side of a scene in pixels."""

KINDS = ("ball", "star", "heart", "house", "tree", "mushroom")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (216, 44, 52),
    "yellow": (252, 208, 48),
    "green": (48, 164, 80),
    "blue": (40, 108, 220),
    "purple": (148, 64, 196),
    "white": (244, 244, 240),
}

MATERIALS = ("solid", "glass", "glowing", "soft")
"""Hard edges, translucent inside, a halo outside, blurred edges. ``solid`` is never named in a caption."""

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "a meadow with hills"),
    "sea": ("by the sea", "the sea"),
    "night": ("at night", "a night sky"),
    "desert": ("in the desert", "a desert"),
    "snow": ("in the snow", "snowy mountains"),
    "sunset": ("at sunset", "sunset over the mountains"),
}
"""Background name -> the phrases a caption uses for it."""

_HALO = 0.22
"""Border around an object's silhouette in its sprite, as a share of the silhouette's side: room for halo and blur."""

_SPRITE = 160
"""Side of the square sprite (halo included) from which objects are scaled."""

_SIZES = {1: (50, 76), 2: (40, 62), 3: (34, 50), 4: (30, 44)}
"""Number of objects -> least and greatest silhouette side in pixels on a 128-pixel canvas."""


class Thing(NamedTuple):
    """What an object is."""

    material: str
    colour: str
    kind: str

    @property
    def words(self) -> str:
        """As a caption names it, e.g. ``a glass blue star``."""
        return " ".join(["a", *([] if self.material == "solid" else [self.material]), self.colour, self.kind])


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
    """What the object covers regardless of translucency, uint8 ``[h, w]``, 255 inside."""

    @property
    def thing(self) -> Thing:
        """What it is, without where it is."""
        return Thing(self.material, self.colour, self.kind)


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
        """The finished picture, uint8 ``[H, W, 3]``: every object over what is behind it."""
        canvas = Image.fromarray(self.background_image)
        for item in self.objects:
            sprite = Image.fromarray(item.image)
            canvas.paste(sprite, (item.x, item.y), sprite)
        return np.asarray(canvas)

    def object_map(self) -> np.ndarray:
        """Which object is on top at each pixel, uint8 ``[H, W]``: 0 background, i + 1 for ``objects[i]``."""
        owner = Image.new("L", (self.size, self.size), 0)
        for index, item in enumerate(self.objects):
            hard = Image.fromarray(item.silhouette).point(lambda v: 255 if v > 127 else 0)
            owner.paste(index + 1, (item.x, item.y), hard)
        return np.asarray(owner)

    @property
    def caption(self) -> str:
        """Objects back to front, then the background."""
        return caption([o.thing.words for o in self.objects], BACKGROUNDS[self.background][0])

    def document(self) -> LayerDocument:
        """The scene as a layer document whose composite is :meth:`picture`."""
        back = Layer(
            name=self.background,
            image=_rgba_floats(np.dstack([self.background_image, np.full(self.background_image.shape[:2], 255, np.uint8)])),
            prompt=BACKGROUNDS[self.background][0],
            width=self.size,
            height=self.size,
        )
        layers = [back]
        for index, item in enumerate(self.objects):
            height, width = item.image.shape[:2]
            name = f"{item.thing.words.removeprefix('a ')} {index + 1}"
            layers.append(Layer(name=name, image=_rgba_floats(item.image), prompt=item.thing.words, x=item.x, y=item.y, width=width, height=height))
        return LayerDocument(width=self.size, height=self.size, layers=tuple(layers))


def caption(objects: Sequence[str], place: str, place_first: bool = False) -> str:
    """Join object phrases and a place: ``a red ball, a blue star and a green tree by the sea``."""
    things = ", ".join(objects[:-1]) + (" and " if len(objects) > 1 else "") + objects[-1] if objects else ""
    if not things or not place:
        return things or place
    return f"{place}, {things}" if place_first else f"{things} {place}" if place.split()[0] in _PREPOSITIONS else f"{things}, {place}"


_PREPOSITIONS = frozenset({"in", "by", "at"})


def is_held_out(words: str) -> bool:
    """Whether this caption is kept from training, to be judged by: one in eight, by the checksum of its text.

    Wordings are held out, not combinations: a model that never sees a green mushroom by the sea learns that there is none.
    """
    return zlib.crc32(words.encode()) % 8 == 0


def random_things(
    rng: np.random.Generator,
    count: int | None = None,
    background: str | None = None,
    materials: Sequence[str] = MATERIALS,
) -> tuple[str, list[Thing]]:
    """Draw what a scene shows: its background and its objects, back to front. Arguments as :func:`random_scene`."""
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


def random_caption(rng: np.random.Generator, background: str, things: Sequence[Thing]) -> tuple[str, list[int]]:
    """Words for a scene in shuffled order and varied phrases; 15 % of the time without the background.

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
) -> Scene:
    """Draw a scene from ``seed``.

    Args:
        seed: any non-negative integer; the same seed and arguments give the same pixels.
        count: number of objects 0..4, or None for a random one (0: 10 %, 1: 40 %, 2: 30 %, 3: 12 %, 4: 8 %).
        background: a name of ``BACKGROUNDS``, or None for a random one.
        materials: the materials to choose from; ``solid`` is taken 70 % of the time when it is among several.
        size: side of the canvas in pixels.
    """
    rng = np.random.default_rng(seed)
    place, things = random_things(rng, count, background, materials)
    backdrop = draw_background(place, rng, size)
    objects = [
        place_object(thing, box, angle=float(rng.uniform(-10, 10)), flip=bool(rng.random() < 0.5))
        for thing, box in zip(things, _boxes(len(things), rng, size), strict=True)
    ]
    return Scene(seed, place, backdrop, tuple(objects))


def place_object(thing: Thing, box: tuple[float, float, float, float], *, angle: float = 0.0, flip: bool = False) -> StoryObject:
    """Draw an object so that its silhouette fills ``box`` = (x, y, width, height) in pixels, then turn it by ``angle`` degrees."""
    x, y, width, height = box
    left, top = math.floor(x - _HALO * width), math.floor(y - _HALO * height)
    right, bottom = math.ceil(x + width * (1 + _HALO)), math.ceil(y + height * (1 + _HALO))
    out = (right - left, bottom - top)
    side = max(out)
    sprite, silhouette = _sprite_at(thing, next((s for s in _MIPS if s >= side), side))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    scale_x = sprite.width / (width * (1 + 2 * _HALO)) * (-1 if flip else 1)
    scale_y = sprite.height / (height * (1 + 2 * _HALO))
    centre_x, centre_y = x + width / 2 - left, y + height / 2 - top
    a, b, d, e = cos * scale_x, sin * scale_x, -sin * scale_y, cos * scale_y
    matrix = (a, b, sprite.width / 2 - a * centre_x - b * centre_y, d, e, sprite.height / 2 - d * centre_x - e * centre_y)
    image = sprite.transform(out, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC).convert("RGBA")
    mask = silhouette.transform(out, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return StoryObject(thing.kind, thing.colour, thing.material, left, top, np.asarray(image), np.asarray(mask))


def _boxes(number: int, rng: np.random.Generator, size: int) -> list[tuple[float, float, float, float]]:
    """Silhouette boxes with at most a third of any box behind those in front of it."""
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
    """Intersection area over the smaller area."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0) / min(a[2] * a[3], b[2] * b[3])


# --- objects ---------------------------------------------------------------------------------------------------------

_OUTLINE = (46, 40, 58)
_WOOD = (122, 82, 50)
_CREAM = (250, 236, 206)
_Point = tuple[float, float]
_MIPS = (48, 64, 88, 120, 160)


def sprite(thing: Thing, size: int = _SPRITE) -> tuple[np.ndarray, np.ndarray]:
    """An upright object with its halo border.

    Returns:
        RGBA uint8 ``[size, size, 4]`` (straight alpha, colour padded under alpha 0) and silhouette uint8 ``[size, size]``.
    """
    image, silhouette = _sprite_at(thing, size)
    return np.asarray(image.convert("RGBA")), np.asarray(silhouette)


@functools.lru_cache(maxsize=1024)
def _sprite_at(thing: Thing, size: int) -> tuple[Image.Image, Image.Image]:
    """Premultiplied ("RGBa") sprite and silhouette of ``size`` pixels, drawn three times larger."""
    material, colour, kind = thing
    if kind not in KINDS or colour not in COLOURS or material not in MATERIALS:
        raise ValueError(f"no {material} {colour} {kind} in the storybook: kinds {KINDS}, colours {tuple(COLOURS)}, materials {MATERIALS}")
    if size < _SPRITE:
        image, silhouette = _sprite_at(thing, _SPRITE)
        return image.resize((size, size), Image.Resampling.BOX), silhouette.resize((size, size), Image.Resampling.BOX)
    big = 3 * size
    unit = big / (1 + 2 * _HALO)
    border = (big - unit) / 2

    def at(points: Sequence[_Point]) -> list[_Point]:
        return [(border + px * unit, border + py * unit) for px, py in points]

    shape = Image.new("L", (big, big), 0)
    pen = ImageDraw.Draw(shape)
    for points in _SHAPES[kind]():
        pen.polygon(at(points), fill=255)
    inner = shape.filter(ImageFilter.GaussianBlur(unit * 0.012)).point(lambda v: 255 if v > 240 else 0)
    inner = inner.filter(ImageFilter.MinFilter(2 * int(unit * 0.018) + 1))

    body = COLOURS[colour]
    outline = _mix(body, _OUTLINE, {"solid": 0.75, "glass": 0.35}.get(material, 0.0))
    paint = Image.new("RGB", (big, big), outline)
    painted = Image.new("RGB", (big, big), body)
    _DETAILS[kind](ImageDraw.Draw(painted), at, body)
    if material == "glowing":
        painted = Image.blend(painted, Image.new("RGB", (big, big), (255, 255, 255)), 0.15)
    paint.paste(painted, (0, 0), inner if material in ("solid", "glass") else None)

    alpha = shape
    if material == "glass":
        alpha = ImageChops.subtract(shape, inner.point(lambda v: int(v * 0.5)))
    elif material == "glowing":
        halo = shape.filter(ImageFilter.GaussianBlur(unit * 0.09)).point(lambda v: min(int(v * 1.15), 255) * 7 // 10)
        alpha = ImageChops.lighter(shape, halo)
        paint.paste(body, (0, 0), ImageChops.invert(shape))
    elif material == "soft":
        alpha = shape.filter(ImageFilter.GaussianBlur(unit * 0.035))
    paint.putalpha(alpha)
    return paint.convert("RGBa").resize((size, size), Image.Resampling.BOX), shape.resize((size, size), Image.Resampling.BOX)


def _mix(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """``a`` moved by ``share`` towards ``b``."""
    return (round(a[0] + (b[0] - a[0]) * share), round(a[1] + (b[1] - a[1]) * share), round(a[2] + (b[2] - a[2]) * share))


def _ellipse(cx: float, cy: float, rx: float, ry: float) -> list[_Point]:
    return [(cx + rx * math.cos(t), cy + ry * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 96, endpoint=False)]


def _ball() -> list[list[_Point]]:
    return [_ellipse(0.5, 0.5, 0.48, 0.48)]


def _star() -> list[list[_Point]]:
    radii = [0.54 if i % 2 == 0 else 0.25 for i in range(10)]
    return [[(0.5 + r * math.sin(i * math.pi / 5), 0.54 - r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]]


def _heart() -> list[list[_Point]]:
    turns = np.linspace(0, 2 * math.pi, 120)
    xs = 16 * np.sin(turns) ** 3
    ys = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
    return [[(0.5 + 0.5 * x / 16, 0.46 - 0.5 * y / 15) for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]]


def _house() -> list[list[_Point]]:
    return [[(0.1, 0.42), (0.9, 0.42), (0.9, 1.0), (0.1, 1.0)], [(0.0, 0.47), (0.5, 0.0), (1.0, 0.47)]]


def _tree() -> list[list[_Point]]:
    tiers = [[(0.5, 0.0), (0.78, 0.34), (0.22, 0.34)], [(0.5, 0.14), (0.88, 0.58), (0.12, 0.58)], [(0.5, 0.34), (0.98, 0.82), (0.02, 0.82)]]
    return [*tiers, [(0.41, 0.8), (0.59, 0.8), (0.59, 1.0), (0.41, 1.0)]]


def _mushroom() -> list[list[_Point]]:
    cap = [(0.5 - 0.5 * math.cos(t), 0.52 - 0.5 * math.sin(t)) for t in np.linspace(0, math.pi, 64)]
    return [[*cap, (1.0, 0.55), (0.95, 0.6), (0.05, 0.6), (0.0, 0.55)], [(0.34, 0.55), (0.66, 0.55), (0.7, 0.97), (0.3, 0.97)]]


_At = Callable[[Sequence[_Point]], list[_Point]]


def _paint_round(pen: ImageDraw.ImageDraw, at: _At, body: tuple[int, int, int]) -> None:
    pen.polygon(at(_ellipse(0.62, 0.66, 0.5, 0.5)), fill=_mix(body, _OUTLINE, 0.18))
    pen.polygon(at(_ellipse(0.44, 0.42, 0.46, 0.46)), fill=body)
    pen.polygon(at(_ellipse(0.34, 0.28, 0.1, 0.08)), fill=_mix(body, (255, 255, 255), 0.75))


def _paint_star(pen: ImageDraw.ImageDraw, at: _At, body: tuple[int, int, int]) -> None:
    corners = _star()[0]
    for i in range(0, 10, 2):
        pen.polygon(at([corners[i], corners[i + 1], (0.5, 0.54)]), fill=_mix(body, _OUTLINE, 0.14))


def _paint_house(pen: ImageDraw.ImageDraw, at: _At, body: tuple[int, int, int]) -> None:
    pen.polygon(at([(0.0, 0.47), (0.5, 0.0), (1.0, 0.47)]), fill=_mix(body, _OUTLINE, 0.4))
    pen.polygon(at([(0.56, 0.64), (0.78, 0.64), (0.78, 1.0), (0.56, 1.0)]), fill=_WOOD)
    pen.polygon(at([(0.2, 0.58), (0.44, 0.58), (0.44, 0.8), (0.2, 0.8)]), fill=(255, 232, 150))


def _paint_tree(pen: ImageDraw.ImageDraw, at: _At, body: tuple[int, int, int]) -> None:
    tiers = _tree()
    for tier, shade in zip(reversed(tiers[:3]), (0.24, 0.12, 0.0), strict=True):
        pen.polygon(at(tier), fill=_mix(body, _OUTLINE, shade))
    pen.polygon(at([(0.3, 0.83), (0.7, 0.83), (0.7, 1.1), (0.3, 1.1)]), fill=_WOOD)


def _paint_mushroom(pen: ImageDraw.ImageDraw, at: _At, body: tuple[int, int, int]) -> None:
    pen.polygon(at([(0.2, 0.6), (0.8, 0.6), (0.8, 1.1), (0.2, 1.1)]), fill=_CREAM)
    dot = (255, 255, 255) if max(body) - min(body) > 30 else (206, 206, 214)
    for cx, cy, r in ((0.5, 0.2, 0.1), (0.22, 0.42, 0.08), (0.78, 0.42, 0.08)):
        pen.polygon(at(_ellipse(cx, cy, r, r * 0.85)), fill=dot)


_SHAPES: dict[str, Callable[[], list[list[_Point]]]] = {
    "ball": _ball,
    "star": _star,
    "heart": _heart,
    "house": _house,
    "tree": _tree,
    "mushroom": _mushroom,
}
_DETAILS: dict[str, Callable[[ImageDraw.ImageDraw, _At, tuple[int, int, int]], None]] = {
    "ball": _paint_round,
    "star": _paint_star,
    "heart": _paint_round,
    "house": _paint_house,
    "tree": _paint_tree,
    "mushroom": _paint_mushroom,
}


# --- backgrounds -----------------------------------------------------------------------------------------------------


def draw_background(name: str, rng: np.random.Generator, size: int = CANVAS) -> np.ndarray:
    """A landscape, uint8 ``[size, size, 3]``; hills, horizon and sun vary with ``rng``."""
    if name not in _LANDSCAPES:
        raise ValueError(f"no background {name!r} in the storybook: {tuple(BACKGROUNDS)}")
    return np.asarray(_LANDSCAPES[name](rng).resize((size, size), Image.Resampling.BOX if size <= 2 * CANVAS else Image.Resampling.LANCZOS))


def _sky(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    ramp = np.linspace(0, 1, 2 * CANVAS)[:, None, None]
    column = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
    return Image.fromarray(np.broadcast_to(column.round().astype(np.uint8), (2 * CANVAS, 2 * CANVAS, 3)).copy())


def _disc(picture: Image.Image, cx: float, cy: float, radius: float, colour: tuple[int, int, int]) -> None:
    s = 2 * CANVAS
    ImageDraw.Draw(picture).ellipse([(cx - radius) * s, (cy - radius) * s, (cx + radius) * s, (cy + radius) * s], fill=colour)


def _hills(picture: Image.Image, rng: np.random.Generator, level: float, height: float, waves: float, colour: tuple[int, int, int]) -> None:
    """Rolling hills whose mean height is ``level`` (0 top, 1 bottom)."""
    xs = np.linspace(0, 1, 65)
    ys = level + height * np.sin(2 * math.pi * (waves * rng.uniform(0.8, 1.2) * xs + rng.random()))
    _ground(picture, xs, ys, colour)


def _peaks(picture: Image.Image, rng: np.random.Generator, level: float, height: float, colour: tuple[int, int, int]) -> None:
    """A ridge of three to four peaks."""
    xs = np.linspace(-0.1, 1.1, int(rng.integers(7, 10)))
    ys = level - height * np.where(np.arange(len(xs)) % 2 == 0, rng.uniform(0.0, 0.25, len(xs)), rng.uniform(0.65, 1.0, len(xs)))
    _ground(picture, xs, ys, colour)


def _ground(picture: Image.Image, xs: np.ndarray, ys: np.ndarray, colour: tuple[int, int, int]) -> None:
    s = 2 * CANVAS
    line = [(float(x) * s, float(y) * s) for x, y in zip(xs, ys, strict=True)]
    ImageDraw.Draw(picture).polygon([*line, (1.2 * s, s + 1), (-0.2 * s, s + 1)], fill=colour)


def _meadow(rng: np.random.Generator) -> Image.Image:
    picture = _sky((126, 196, 246), (214, 238, 252))
    _disc(picture, rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.25), 0.07, (255, 240, 170))
    _hills(picture, rng, rng.uniform(0.52, 0.62), 0.05, 1.0, (150, 208, 110))
    _hills(picture, rng, rng.uniform(0.72, 0.82), 0.05, 0.8, (112, 182, 84))
    return picture


def _sea(rng: np.random.Generator) -> Image.Image:
    picture = _sky((170, 218, 240), (236, 246, 246))
    horizon = rng.uniform(0.4, 0.55)
    _ground(picture, np.array([0.0, 1.0]), np.array([horizon, horizon]), (52, 150, 190))
    _hills(picture, rng, horizon + 0.14, 0.01, 3.0, (36, 126, 172))
    _hills(picture, rng, rng.uniform(0.84, 0.9), 0.03, 0.7, (242, 222, 170))
    return picture


def _night(rng: np.random.Generator) -> Image.Image:
    picture = _sky((14, 18, 52), (52, 56, 108))
    for cx, cy in rng.uniform((0.02, 0.02), (0.98, 0.55), (9, 2)):
        _disc(picture, float(cx), float(cy), 0.009, (230, 230, 250))
    cx, cy = rng.uniform(0.15, 0.85), rng.uniform(0.12, 0.28)
    _disc(picture, cx, cy, 0.08, (250, 244, 214))
    _disc(picture, cx + 0.035, cy - 0.02, 0.07, (24, 28, 64))
    _hills(picture, rng, rng.uniform(0.72, 0.82), 0.05, 1.0, (24, 30, 54))
    return picture


def _desert(rng: np.random.Generator) -> Image.Image:
    picture = _sky((250, 214, 150), (254, 240, 206))
    _disc(picture, rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.25), 0.08, (255, 250, 226))
    _hills(picture, rng, rng.uniform(0.55, 0.65), 0.06, 0.9, (230, 176, 104))
    _hills(picture, rng, rng.uniform(0.74, 0.84), 0.05, 0.7, (210, 146, 78))
    return picture


def _snow(rng: np.random.Generator) -> Image.Image:
    picture = _sky((176, 196, 218), (226, 234, 242))
    _peaks(picture, rng, rng.uniform(0.6, 0.68), 0.36, (140, 162, 190))
    _hills(picture, rng, rng.uniform(0.62, 0.7), 0.03, 0.9, (236, 242, 248))
    _hills(picture, rng, rng.uniform(0.8, 0.88), 0.03, 0.7, (216, 226, 240))
    return picture


def _sunset(rng: np.random.Generator) -> Image.Image:
    picture = _sky((118, 70, 132), (255, 170, 90))
    _disc(picture, rng.uniform(0.2, 0.8), rng.uniform(0.5, 0.6), 0.11, (255, 226, 130))
    _peaks(picture, rng, rng.uniform(0.74, 0.82), 0.28, (146, 70, 104))
    _hills(picture, rng, rng.uniform(0.8, 0.88), 0.03, 0.9, (86, 44, 84))
    return picture


_LANDSCAPES: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "meadow": _meadow,
    "sea": _sea,
    "night": _night,
    "desert": _desert,
    "snow": _snow,
    "sunset": _sunset,
}


def _rgba_floats(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32) / 255)
