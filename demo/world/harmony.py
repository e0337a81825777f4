"""Harmony: make collages whose layers do not fit each other, and detect them with a small network that
separates them from scenes drawn as one.

The network is trained on drawn pictures only (``python -m demo.train.harmony``) and never used to train a
generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from .places import JUDGE
from .scenes import Scene

if TYPE_CHECKING or __package__ == "demo.world":
    from layered_core.canvas.resizing import resized
    from layered_core.document import LayerDocument
else:
    from ...layered_core.canvas.resizing import resized
    from ...layered_core.document import LayerDocument

WEIGHTS = JUDGE / "harmony.safetensors"


def pasted(scene: Scene, seed: int) -> LayerDocument:
    """Return the scene's document with every object changed as if it were cut out of another picture.

    Each object gets one or two of these flaws: low resolution, other light (exposure and warmth), texture, a
    margin of the paper it was cut from. Half of the objects get hard edges too. All flaws are coarse enough
    to survive the VAE. Place, shape, colour name and landscape stay.
    """
    rng = np.random.default_rng([seed, 1])
    document = scene.document()
    layers = []
    for layer in document:
        if layer is not document.layers[0] and layer.image is not None:
            image = layer.image
            for index in sorted(rng.permutation(len(_FLAWS))[: rng.integers(1, 3)]):
                image = _FLAWS[index](image, rng)
            if rng.random() < 0.5:
                image = _hard_edges(image)
            layer = replace(layer, image=image)
        layers.append(layer)
    return replace(document, layers=tuple(layers), prompt=scene.caption)


def _low_resolution(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Reduce an image ``[h, w, 4]`` three to five times and enlarge it again."""
    alpha = image[..., 3:]
    nchw = torch.cat([image[..., :3] * alpha, alpha], -1).permute(2, 0, 1)[None]
    factor = float(rng.uniform(3, 5))
    size = (max(round(image.shape[0] / factor), 1), max(round(image.shape[1] / factor), 1))
    small = functional.interpolate(nchw, size, mode="bilinear", antialias=True)
    out = functional.interpolate(small, image.shape[:2], mode=str(rng.choice(["nearest", "bilinear"])))[
        0
    ].permute(1, 2, 0)
    colour = torch.where(out[..., 3:] > 1e-3, out[..., :3] / out[..., 3:].clamp_min(1e-3), image[..., :3])
    return torch.cat([colour, out[..., 3:]], -1).clamp(0, 1)


def _other_light(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Make an image ``[h, w, 4]`` brighter or darker, and warmer or colder."""
    warm = float(rng.choice([-1, 1]) * rng.uniform(0.12, 0.25))
    gain = torch.tensor([warm, 0.0, -warm]).add(float(rng.choice([-1, 1]) * rng.uniform(0.2, 0.45))).exp()
    return torch.cat([(image[..., :3] * gain).clamp(0, 1), image[..., 3:]], -1)


def _texture(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Add blotches of four pixels to an image ``[h, w, 4]``, like coarse paper or strong compression."""
    height, width = image.shape[:2]
    noise = torch.from_numpy(rng.normal(0, rng.uniform(0.1, 0.18), (-(-height // 4), -(-width // 4)))).float()
    blotches = noise.repeat_interleave(4, 0).repeat_interleave(4, 1)[:height, :width]
    return torch.cat([(image[..., :3] + blotches[..., None]).clamp(0, 1), image[..., 3:]], -1)


def _margin(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Surround an image ``[h, w, 4]`` by three or four pixels of the paper that it was cut from."""
    paper = torch.tensor([0.97, 0.96, 0.93]) * float(rng.choice([0.1, 0.55, 1.0]))
    alpha = image[..., 3]
    reach = int(rng.integers(3, 5))
    grown = functional.max_pool2d(alpha[None, None], 2 * reach + 1, 1, reach)[0, 0]
    colour = image[..., :3] * alpha[..., None] + paper * (1 - alpha[..., None])
    return torch.cat([colour, grown[..., None]], -1).clamp(0, 1)


def _hard_edges(image: Tensor) -> Tensor:
    return torch.cat([image[..., :3], (image[..., 3:] > 0.5).float()], -1)


_FLAWS: tuple[Callable[[Tensor, np.random.Generator], Tensor], ...] = (
    _low_resolution,
    _other_light,
    _texture,
    _margin,
)
"""The flaws, in the order in which they are applied."""


class Harmony(nn.Module):
    """Detector of pasted parts in pictures ``[B, 3, 128, 128]`` in 0..1.

    It gives two logits: for each cell of 4 x 4 pixels that the cell is pasted, ``[B, 32, 32]``; and for the
    picture that it is drawn as one, ``[B]``, computed from the cells with the greatest first logit.
    """

    def __init__(self) -> None:
        super().__init__()
        stages = []
        for inside, out, stride in ((3, 16, 1), (16, 32, 2), (32, 48, 2), (48, 48, 1)):
            stages += [nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.stages = nn.Sequential(*stages)
        self.cells = nn.Conv2d(48, 1, 1)
        self.head = nn.Linear(1, 1)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Return both logits, see the class."""
        cells = self.cells(self.stages(picture * 2 - 1))[:, 0]
        return cells, self.head(_worst(cells))[:, 0]

    def worst(self, picture: Tensor) -> Tensor:
        """Return the mean logit ``[B, 1]`` of the 24 cells that look most pasted."""
        return _worst(self.cells(self.stages(picture * 2 - 1))[:, 0])

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Harmony:
        """Load the classifier (by default the shipped one), in evaluation mode."""
        harmony = cls()
        harmony.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
        )
        return harmony.eval()

    @torch.no_grad()
    def native(self, pictures: Tensor) -> Tensor:
        """Return the probability ``[B]`` that each of ``pictures`` [B, 3, H, W] in 0..1, of any square size,
        is no collage."""
        pictures = resized(pictures, 128, 128)
        return self(pictures.float())[1].sigmoid()


def _worst(cells: Tensor) -> Tensor:
    return cells.flatten(1).topk(24).values.mean(1, keepdim=True)
