"""Single transparent objects, drawn from a seed, on which the transparent autoencoder and the layer generator
are trained."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo.world.scenes import is_held_out, place_object
from demo.world.vocabulary import CANVAS, THINGS, Thing
from layered_core.transparency.transparent_encode import pad_colours

KNOWN = [t for t in THINGS if not is_held_out(t.words)]
"""The objects that the autoencoder is trained on; it is measured on the others and on smoke of other
seeds."""

SMOKE_SHARE = 0.15
"""Share of smoke in the autoencoder's training pictures."""


def draw_sprite(thing: Thing, rng: np.random.Generator) -> np.ndarray:
    """Draw one object near the middle of an empty canvas, RGBA uint8 ``[128, 128, 4]``, straight alpha."""
    width, height = rng.uniform(56, 86) * rng.uniform(0.9, 1.0, 2)
    x, y = CANVAS / 2 + rng.normal(0, 5, 2).clip(-14, 14) - np.array([width, height]) / 2
    item = place_object(
        thing,
        (float(x), float(y), float(width), float(height)),
        angle=float(rng.uniform(-10, 10)),
        flip=bool(rng.random() < 0.5),
    )
    canvas = Image.new("RGBA", (CANVAS, CANVAS))
    canvas.paste(Image.fromarray(item.image), (item.x, item.y))
    return np.asarray(canvas)


def draw_smoke(rng: np.random.Generator) -> np.ndarray:
    """Draw a cloud of one tint whose alpha takes all values, in the format of :func:`draw_sprite`."""
    field = 0.5 * _noise(rng, 4) + 0.3 * _noise(rng, 8) + 0.2 * _noise(rng, 16)
    ys, xs = np.mgrid[:CANVAS, :CANVAS] / CANVAS
    cx, cy = rng.uniform(0.35, 0.65, 2)
    distance = np.hypot(xs - cx, (ys - cy) * rng.uniform(0.8, 1.2)) / rng.uniform(0.25, 0.5)
    alpha = (2.2 * field - 0.3).clip(0, 1) * (1.3 - 1.3 * distance).clip(0, 1) * rng.uniform(0.6, 1.0)
    tint = rng.uniform(0.3, 1.0) * 255 * (1 - rng.uniform(0, 0.5, 3) * (rng.random() < 0.5))
    colours = tint * (0.85 + 0.15 * _noise(rng, 8)[..., None])
    return np.concatenate([colours, alpha[..., None] * 255], -1).round().clip(0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Return smooth noise in 0..1, ``[128, 128]``."""
    grid = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)).clip(0, 1)


def padded(sprite: np.ndarray) -> Tensor:
    """Return a drawn sprite as floats ``[4, 128, 128]`` in 0..1, with its colours continued where alpha is
    0."""
    rgba = torch.from_numpy(sprite.copy()).permute(2, 0, 1)[None].float() / 255
    return torch.cat([pad_colours(rgba), rgba[:, 3:]], 1)[0]
