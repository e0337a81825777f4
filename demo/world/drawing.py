"""Draw the storybook's objects and landscapes, with Pillow and numpy only, so that every machine gives the
same pixels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .vocabulary import BACKGROUNDS, CANVAS, COLOURS, KINDS, MATERIALS, ODD_COLOURS, Thing

_HALO = 0.22
"""Border around an object's silhouette in its sprite, as a share of the silhouette's side, for halo and
blur."""

_SPRITE = 160
"""Side of the square sprite (halo included) from which objects are scaled."""

_OUTLINE = (46, 40, 58)
_WOOD = (122, 82, 50)
_CREAM = (250, 236, 206)
_Point = tuple[float, float]
_MIPS = (48, 64, 88, 120, 160)


def sprite(thing: Thing, size: int = _SPRITE) -> tuple[np.ndarray, np.ndarray]:
    """Draw an upright object with its halo border.

    Returns:
        RGBA uint8 ``[size, size, 4]`` (straight alpha, colour padded under alpha 0) and silhouette uint8
        ``[size, size]``.
    """
    image, silhouette = _sprite_at(thing, size)
    return np.asarray(image.convert("RGBA")), np.asarray(silhouette)


def draw_in_box(
    thing: Thing,
    box: tuple[float, float, float, float],
    angle: float,
    flip: bool,
    body: tuple[int, int, int] | None = None,
) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Draw an object whose silhouette fills ``box`` = (x, y, width, height) in pixels and is then turned by
    ``angle`` degrees. ``body`` is its colour, red, green and blue 0..255; None: the one that the words name.

    Returns:
        Left and top edge of the sprite, pixels; RGBA uint8 ``[h, w, 4]``, straight alpha; silhouette uint8
        ``[h, w]``.
    """
    x, y, width, height = box
    left, top = math.floor(x - _HALO * width), math.floor(y - _HALO * height)
    right, bottom = math.ceil(x + width * (1 + _HALO)), math.ceil(y + height * (1 + _HALO))
    out = (right - left, bottom - top)
    side = max(out)
    sprite, silhouette = _sprite_at(thing, next((s for s in _MIPS if s >= side), side), body)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    scale_x = sprite.width / (width * (1 + 2 * _HALO)) * (-1 if flip else 1)
    scale_y = sprite.height / (height * (1 + 2 * _HALO))
    centre_x, centre_y = x + width / 2 - left, y + height / 2 - top
    a, b, d, e = cos * scale_x, sin * scale_x, -sin * scale_y, cos * scale_y
    matrix = (
        a,
        b,
        sprite.width / 2 - a * centre_x - b * centre_y,
        d,
        e,
        sprite.height / 2 - d * centre_x - e * centre_y,
    )
    image = sprite.transform(out, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC).convert("RGBA")
    mask = silhouette.transform(out, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return left, top, np.asarray(image), np.asarray(mask)


@functools.lru_cache(maxsize=1024)
def _sprite_at(
    thing: Thing, size: int, body: tuple[int, int, int] | None = None
) -> tuple[Image.Image, Image.Image]:
    """Return the premultiplied ("RGBa") sprite and the silhouette of ``size`` pixels, drawn three times
    larger and reduced; ``body`` as in :func:`draw_in_box`."""
    material, colour, kind = thing
    colours = {**COLOURS, **ODD_COLOURS}
    if kind not in KINDS or colour not in colours or material not in MATERIALS:
        raise ValueError(
            f"there is no {material} {colour} {kind} in the storybook; allowed: kinds {KINDS}, colours "
            f"{tuple(colours)}, materials {MATERIALS}"
        )
    if size < _SPRITE:
        image, silhouette = _sprite_at(thing, _SPRITE, body)
        return image.resize((size, size), Image.Resampling.BOX), silhouette.resize(
            (size, size), Image.Resampling.BOX
        )
    big = 3 * size
    unit = big / (1 + 2 * _HALO)
    shape, inner = _shape(kind, big)

    def at(points: Sequence[_Point]) -> list[_Point]:
        return _laid(points, big)

    body = body or colours[colour]
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
        halo = shape.filter(ImageFilter.GaussianBlur(unit * 0.09)).point(
            lambda v: min(int(v * 1.15), 255) * 7 // 10
        )
        alpha = ImageChops.lighter(shape, halo)
        paint.paste(body, (0, 0), ImageChops.invert(shape))
    elif material == "soft":
        alpha = shape.filter(ImageFilter.GaussianBlur(unit * 0.035))
    paint.putalpha(alpha)
    return paint.convert("RGBa").resize((size, size), Image.Resampling.BOX), shape.resize(
        (size, size), Image.Resampling.BOX
    )


@functools.lru_cache(maxsize=32)
def _shape(kind: str, big: int) -> tuple[Image.Image, Image.Image]:
    """Return the silhouette of a kind of object in a square of ``big`` pixels, and its part inside the outline."""
    unit = big / (1 + 2 * _HALO)
    shape = Image.new("L", (big, big), 0)
    pen = ImageDraw.Draw(shape)
    for points in _SHAPES[kind]():
        pen.polygon(_laid(points, big), fill=255)
    inner = shape.filter(ImageFilter.GaussianBlur(unit * 0.012)).point(lambda v: 255 if v > 240 else 0)
    return shape, inner.filter(ImageFilter.MinFilter(2 * int(unit * 0.018) + 1))


def _laid(points: Sequence[_Point], big: int) -> list[_Point]:
    """Return points of the unit square in pixels of a square of ``big`` pixels, inside the halo's border."""
    unit = big / (1 + 2 * _HALO)
    border = (big - unit) / 2
    return [(border + px * unit, border + py * unit) for px, py in points]


def _mix(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """Return colour ``a`` moved by ``share`` (0..1) towards ``b``."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def _ellipse(cx: float, cy: float, rx: float, ry: float) -> list[_Point]:
    return [
        (cx + rx * math.cos(t), cy + ry * math.sin(t))
        for t in np.linspace(0, 2 * math.pi, 96, endpoint=False)
    ]


def _ball() -> list[list[_Point]]:
    return [_ellipse(0.5, 0.5, 0.48, 0.48)]


def _star() -> list[list[_Point]]:
    radii = [0.54 if i % 2 == 0 else 0.25 for i in range(10)]
    return [
        [
            (0.5 + r * math.sin(i * math.pi / 5), 0.54 - r * math.cos(i * math.pi / 5))
            for i, r in enumerate(radii)
        ]
    ]


def _heart() -> list[list[_Point]]:
    turns = np.linspace(0, 2 * math.pi, 120)
    xs = 16 * np.sin(turns) ** 3
    ys = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
    return [
        [(0.5 + 0.5 * x / 16, 0.46 - 0.5 * y / 15) for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]
    ]


def _house() -> list[list[_Point]]:
    return [[(0.1, 0.42), (0.9, 0.42), (0.9, 1.0), (0.1, 1.0)], [(0.0, 0.47), (0.5, 0.0), (1.0, 0.47)]]


def _tree() -> list[list[_Point]]:
    tiers = [
        [(0.5, 0.0), (0.78, 0.34), (0.22, 0.34)],
        [(0.5, 0.14), (0.88, 0.58), (0.12, 0.58)],
        [(0.5, 0.34), (0.98, 0.82), (0.02, 0.82)],
    ]
    return [*tiers, [(0.41, 0.8), (0.59, 0.8), (0.59, 1.0), (0.41, 1.0)]]


def _mushroom() -> list[list[_Point]]:
    cap = [(0.5 - 0.5 * math.cos(t), 0.52 - 0.5 * math.sin(t)) for t in np.linspace(0, math.pi, 64)]
    return [
        [*cap, (1.0, 0.55), (0.95, 0.6), (0.05, 0.6), (0.0, 0.55)],
        [(0.34, 0.55), (0.66, 0.55), (0.7, 0.97), (0.3, 0.97)],
    ]


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


# --- backgrounds ---


def draw_background(name: str, rng: np.random.Generator, size: int = CANVAS) -> np.ndarray:
    """Draw a landscape, uint8 ``[size, size, 3]``; hills, horizon and sun vary with ``rng``."""
    if name not in _LANDSCAPES:
        raise ValueError(
            f"there is no background {name!r} in the storybook; allowed: {', '.join(BACKGROUNDS)}"
        )
    return np.asarray(
        _LANDSCAPES[name](rng).resize(
            (size, size), Image.Resampling.BOX if size <= 2 * CANVAS else Image.Resampling.LANCZOS
        )
    )


def _sky(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    ramp = np.linspace(0, 1, 2 * CANVAS)[:, None, None]
    column = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
    return Image.fromarray(
        np.broadcast_to(column.round().astype(np.uint8), (2 * CANVAS, 2 * CANVAS, 3)).copy()
    )


def _disc(picture: Image.Image, cx: float, cy: float, radius: float, colour: tuple[int, int, int]) -> None:
    s = 2 * CANVAS
    ImageDraw.Draw(picture).ellipse(
        [(cx - radius) * s, (cy - radius) * s, (cx + radius) * s, (cy + radius) * s], fill=colour
    )


def _hills(
    picture: Image.Image,
    rng: np.random.Generator,
    level: float,
    height: float,
    waves: float,
    colour: tuple[int, int, int],
) -> None:
    """Draw rolling hills whose mean height is ``level`` (0 top, 1 bottom)."""
    xs = np.linspace(0, 1, 65)
    ys = level + height * np.sin(2 * math.pi * (waves * rng.uniform(0.8, 1.2) * xs + rng.random()))
    _ground(picture, xs, ys, colour)


def _peaks(
    picture: Image.Image, rng: np.random.Generator, level: float, height: float, colour: tuple[int, int, int]
) -> None:
    """Draw a ridge of three to four peaks."""
    xs = np.linspace(-0.1, 1.1, int(rng.integers(7, 10)))
    ys = level - height * np.where(
        np.arange(len(xs)) % 2 == 0, rng.uniform(0.0, 0.25, len(xs)), rng.uniform(0.65, 1.0, len(xs))
    )
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
