"""Write the layered file that the PSD workflow opens: ``python -m demo.example_files``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from demo.world.drawing import draw_background, sprite
from demo.world.places import EXAMPLES
from demo.world.vocabulary import Thing
from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.files import write_layers


def storybook() -> LayerDocument:
    """Return a document with a house and a tree in a meadow, a shadow in mode multiply and a hidden ball."""
    layers = (
        Layer(
            "meadow",
            _opaque(draw_background("meadow", np.random.default_rng(3), 128)),
            prompt="in a meadow",
            recipe=Recipe(noise=0.4),
        ),
        Layer(
            "shadow",
            _shadow(80, 24),
            x=2,
            y=90,
            opacity=0.5,
            blend_mode="multiply",
            recipe=Recipe(inside=0, outside=0, noise=1),
        ),
        Layer(
            "house",
            _sprite("solid", "red", "house", 88),
            prompt="a red house",
            x=-4,
            y=22,
            recipe=Recipe(noise=0.3),
        ),
        Layer("tree", _sprite("solid", "green", "tree", 80), prompt="a green tree", x=58, y=36),
        Layer(
            "ball",
            _sprite("glass", "blue", "ball", 48),
            prompt="a glass blue ball",
            x=40,
            y=78,
            visible=False,
        ),
    )
    return LayerDocument(128, 128, layers)


def _sprite(material: str, colour: str, kind: str, size: int) -> Tensor:
    return torch.from_numpy(sprite(Thing(material, colour, kind), size)[0].copy()).float() / 255


def _opaque(pixels: np.ndarray) -> Tensor:
    colours = torch.from_numpy(pixels.copy()).float() / 255
    return torch.cat([colours, torch.ones(*colours.shape[:2], 1)], -1)


def _shadow(width: int, height: int) -> Tensor:
    """Draw a soft dark ellipse, straight RGBA ``[height, width, 4]``."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    alpha = (1 - (x**2 + y**2)).clamp(0, 1).mul(255).round() / 255
    return torch.cat([torch.tensor([51, 51, 102]).expand(height, width, 3) / 255, alpha[..., None]], -1)


if __name__ == "__main__":
    EXAMPLES.mkdir(exist_ok=True)
    write_layers(storybook(), EXAMPLES / "storybook.psd")
