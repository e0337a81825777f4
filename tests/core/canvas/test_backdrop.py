"""The backdrop is the picture that others lie on, and nothing else."""

from dataclasses import replace

import pytest
import torch

from layered_core.canvas.backdrop import find_backdrop
from layered_core.document import Layer, LayerDocument, Recipe

PHOTO = Layer("photo", torch.rand(48, 64, 4).clamp(0.01, 1).index_fill(2, torch.tensor(3), 1.0))
BALL = Layer("ball", torch.ones(8, 8, 4), x=4, y=4)


def backdrop_of(*layers):
    found = find_backdrop(LayerDocument(64, 48, layers))
    return None if found is None else found.name


def test_an_opaque_picture_without_words_that_fills_the_canvas_behind_others_is_the_backdrop():
    assert backdrop_of(PHOTO, BALL) == "photo"


@pytest.mark.parametrize(
    "change",
    [
        {"x": -10, "y": -10, "width": 90, "height": 80},
        {"x": -30.5, "y": -40.25, "width": 130, "height": 130, "rotation": 33},
        {"rotation": 180},
        {"negative": "people"},
        {"recipe": Recipe(noise=0.8)},
    ],
)
def test_a_backdrop_may_be_scaled_turned_and_larger_than_the_canvas(change):
    assert backdrop_of(replace(PHOTO, **change), BALL) == "photo"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a meadow"},
        {"opacity": 0.9},
        {"visible": False},
        {"blend_mode": "multiply"},
        {"x": 1},
        {"rotation": 5},
        {"width": 63},
        {"mask": torch.ones(48, 64).index_fill(0, torch.tensor(0), 0.0)},
        {"image": None},
    ],
)
def test_a_picture_with_words_or_with_a_hole_is_no_backdrop(change):
    assert backdrop_of(replace(PHOTO, **change), BALL) is None


def test_a_picture_that_is_alone_or_in_front_is_no_backdrop():
    assert backdrop_of(PHOTO) is None
    assert backdrop_of(PHOTO, replace(BALL, visible=False)) is None
    assert backdrop_of(BALL, PHOTO) is None
