"""Drawn scenes in layers, for the network that makes several layers at once: what each frame shows, and its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor, nn

from demo.train.loop import device
from demo.train.replay import ReplayStore
from demo.train.sprites import draw_sprite, padded
from demo.train.transparent import Autoencoder
from demo.train.words import encode as encode_words
from demo.train.words import pad, training_caption
from demo.world.drawing import draw_background
from demo.world.scenes import place_object
from demo.world.vocabulary import BACKGROUNDS, CANVAS, THINGS, Thing
from layered_core.transparency.transparent_networks import CELL, over_mid_grey

SIZES = {2: (42, 62), 3: (36, 52), 4: (30, 44)}
"""By number of layers: least and greatest side of a silhouette in pixels. A single one is as in
:func:`demo.train.sprites.draw_sprite`."""

OVERLAPPING = 0.4
"""Share of scenes in which two layers overlap by ``OVERLAP``."""

OVERLAP = (0.1, 0.4)
"""Area of the intersection of two layers' boxes over the smaller one."""

CELLS = CANVAS // CELL


class Layers(NamedTuple):
    """A drawn scene."""

    place: str
    things: list[Thing]
    """The objects, back to front."""
    sprites: list[np.ndarray]
    """Each whole, on an empty canvas: RGBA uint8 ``[128, 128, 4]``, straight alpha."""
    background: np.ndarray
    """RGB uint8 ``[128, 128, 3]``."""

    def blend(self) -> np.ndarray:
        """Return all composited, RGB uint8 ``[128, 128, 3]``."""
        canvas = Image.fromarray(self.background)
        for sprite in map(Image.fromarray, self.sprites):
            canvas.paste(sprite, (0, 0), sprite)
        return np.asarray(canvas)


def draw_layers(rng: np.random.Generator, count: int) -> Layers:
    """Draw a scene of ``count`` layers, 1..4. No two show things of one kind and colour."""
    place = str(rng.choice(list(BACKGROUNDS)))
    things: list[Thing] = []
    while len(things) < count:
        thing = THINGS[rng.integers(len(THINGS))]
        if all(thing[1:] != other[1:] for other in things):
            things.append(thing)
    if count == 1:
        sprites = [draw_sprite(things[0], rng)]
    else:
        sprites = [_drawn(thing, box, rng) for thing, box in zip(things, boxes(rng, count), strict=True)]
    return Layers(place, things, sprites, draw_background(place, rng))


def _drawn(thing: Thing, box: tuple[float, float, float, float], rng: np.random.Generator) -> np.ndarray:
    item = place_object(thing, box, angle=float(rng.uniform(-10, 10)), flip=bool(rng.random() < 0.5))
    canvas = Image.new("RGBA", (CANVAS, CANVAS))
    canvas.paste(Image.fromarray(item.image), (item.x, item.y))
    return np.asarray(canvas)


def boxes(rng: np.random.Generator, count: int) -> list[tuple[float, float, float, float]]:
    """Return random boxes (x, y, width, height) of silhouettes, pixels, 2 to 4 of them: apart, or in a share of
    ``OVERLAPPING`` two of them overlapping by ``OVERLAP`` and no others."""
    overlapping = rng.random() < OVERLAPPING
    shrink = 1.0
    while True:
        found: list[tuple[float, float, float, float]] = []
        for _ in range(count):
            side = rng.uniform(*SIZES[count]) * shrink
            width, height = side * rng.uniform(0.9, 1.0, 2)
            x, y = rng.uniform(2, CANVAS - 2 - width), rng.uniform(2, CANVAS - 2 - height)
            found.append((float(x), float(y), float(width), float(height)))
        shared = sorted(_overlap(a, b) for i, a in enumerate(found) for b in found[i + 1 :])
        least, most = OVERLAP if overlapping else (0.0, 0.03)
        if least <= shared[-1] <= most and (len(shared) < 2 or shared[-2] <= 0.03):
            return found
        shrink = max(shrink * 0.999, 0.8)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0) / min(a[2] * a[3], b[2] * b[3])


class Batch(NamedTuple):
    """B scenes of K layers; F = K + 2."""

    latents: Tensor
    """Clean latents ``[B F, 4, 16, 16]``, the frames of a scene one after the other."""
    tokens: Tensor
    """Token ids of every frame ``[B F, 77]``."""
    masks: Tensor
    """Where each layer is seen, ``[B, K, 16, 16]`` in 0..1, also where it is translucent."""
    nouns: Tensor
    """Place of each layer's noun in the blend's words, ``[B, K]``; 0: there is none."""
    shares: Tensor
    """How much of each cell shows each layer, and the background last, ``[B, K + 1, 16, 16]``; their sum is 1."""


class LayeredScenes(ReplayStore):
    """A growing store of drawn scenes of one number of layers.

    Args:
        layers: K.
    """

    def __init__(
        self, vae: AutoencoderTiny, autoencoder: Autoencoder, rng: np.random.Generator, layers: int,
        capacity: int = 4000,
    ) -> None:  # fmt: skip
        super().__init__(rng, capacity)
        self.vae, self.autoencoder, self.layers = vae, autoencoder, layers
        self.latents = torch.zeros(capacity, layers + 2, 4, CELLS, CELLS, dtype=torch.float16)
        self.masks = torch.zeros(capacity, layers, CELLS, CELLS, dtype=torch.float16)
        self.shares = torch.zeros(capacity, layers + 1, CELLS, CELLS, dtype=torch.float16)
        self.words: list[tuple[str, list[Thing]]] = [("", [])] * capacity

    @torch.no_grad()
    def add(self, count: int) -> None:
        """Draw, encode and store ``count`` new scenes."""
        for _ in range(count):
            scene = draw_layers(self.rng, self.layers)
            front = torch.stack([padded(s) for s in scene.sprites])
            flat = torch.from_numpy(np.stack([scene.background, scene.blend()])).permute(0, 3, 1, 2) / 255
            pictures = torch.cat([over_mid_grey(front), flat]).to(device(), memory_format=torch.channels_last)
            latents = self.vae.encoder(pictures * 2 - 1).float()
            latents[: self.layers] += self.autoencoder.offset(front.to(device()))
            slot = self.take_slot()
            alpha = front[:, 3]
            self.latents[slot] = latents.cpu().half()
            self.masks[slot] = _pooled(seen((alpha > 0.1).float())[:-1])
            self.shares[slot] = _pooled(seen(alpha))
            self.words[slot] = scene.place, scene.things

    def batch(self, count: int, ids: dict[str, int]) -> Batch:
        """Return ``count`` random scenes."""
        chosen = self.draw(count)
        tokens, nouns = [], []
        for index in chosen:
            place, things = self.words[index]
            rows, where = frame_words(self.rng, place, things, ids)
            tokens += rows
            nouns.append(where)
        pick = torch.from_numpy(chosen)
        found = (self.latents[pick].flatten(0, 1).float(), torch.tensor(tokens), self.masks[pick].float(),
                 torch.tensor(nouns), self.shares[pick].float())  # fmt: skip
        return Batch(*(x.to(device()) for x in found))


def seen(alpha: Tensor) -> Tensor:
    """Return how much of each pixel shows each layer, and the background last: alphas ``[K, H, W]`` back to front to
    ``[K + 1, H, W]``."""
    through = torch.flip(torch.cumprod(torch.flip(1 - alpha, (0,)), 0), (0,))
    above = torch.cat([through[1:], torch.ones_like(alpha[:1])])
    return torch.cat([alpha * above, through[:1]])


def _pooled(x: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x, CELL).half()


def frame_words(
    rng: np.random.Generator, place: str, things: Sequence[Thing], ids: dict[str, int]
) -> tuple[list[list[int]], list[int]]:
    """Return the 77 token ids of every frame of a scene, and the places of the nouns in the blend's.

    In eight scenes of ten each frame has words of its own; in a quarter of them the layers' words lack what the
    scene's say, which the prompt enhancer must find there. In one of ten all have the scene's, in one none has any.
    """
    chance = rng.random()
    caption, nouns = training_caption(rng, place, things, ids)
    if chance < 0.1:
        return [pad([])] * (len(things) + 2), [0] * len(things)
    if chance < 0.2:
        return [caption] * (len(things) + 2), nouns
    weak = chance < 0.4
    own = [pad(encode_words(weakened(rng, t, things) if weak else t.words, ids)) for t in things]
    return [*own, training_caption(rng, place, [], ids)[0], caption], nouns


def weakened(rng: np.random.Generator, thing: Thing, things: Sequence[Thing]) -> str:
    """Return a thing's words without its colour, its material, or both; with all of them if another of ``things`` is
    of its kind, so that the scene's words could not tell which is meant."""
    if sum(other.kind == thing.kind for other in things) > 1:
        return thing.words
    chance = rng.random()
    material = "" if thing.material == "solid" or chance < 0.5 else thing.material
    colour = thing.colour if 0.3 < chance < 0.5 else ""
    return " ".join(["a", *filter(None, (material, colour)), thing.kind])
