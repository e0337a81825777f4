"""A layer in many places, and the error inside it alone."""

import random
from dataclasses import replace

import pytest
import torch

from layered_core.canvas.placement import bounds
from layered_core.document import Layer, LayerDocument
from layered_core.learning.objective import masked_error
from layered_core.learning.placings import placed, seen_inside


def scene(**more):
    layer = Layer("ball", image=torch.ones(20, 30, 4), x=5, y=7, **more)
    return layer, LayerDocument(100, 80, (layer,))


@pytest.mark.parametrize("rotation", [0, 30])
def test_a_placed_layer_lies_on_the_canvas_and_is_no_larger_and_no_smaller_than_seven_tenths(rotation):
    layer, document = scene(rotation=rotation)
    for seed in range(50):
        other = placed(layer, document, random.Random(seed))
        left, top, right, bottom = bounds(other)
        assert left >= 0
        assert top >= 0
        assert right <= 100
        assert bottom <= 80
        assert 21 <= other.width <= 30
        assert abs(other.height - other.width * 20 / 30) <= 1
        assert replace(other, x=5, y=7, width=30, height=20, flip_h=False).recipe == layer.recipe


def test_places_and_mirrors_differ_and_depend_on_chance_alone():
    layer, document = scene()
    found = [placed(layer, document, random.Random(seed)) for seed in range(20)]
    assert len({(x.x, x.y, x.width) for x in found}) > 15
    assert {x.flip_h for x in found} == {False, True}
    again = placed(layer, document, random.Random(3))
    assert (again.x, again.y, again.width, again.flip_h) == (
        found[3].x, found[3].y, found[3].width, found[3].flip_h,
    )  # fmt: skip


def test_without_flips_and_moves_the_layer_is_the_same_object():
    layer, document = scene()
    assert placed(layer, document, random.Random(0), flips=False, moves=False) is layer


def test_a_layer_larger_than_the_canvas_still_covers_it():
    layer = Layer("sky", x=-50, y=-50, width=300, height=300)
    document = LayerDocument(100, 80, (layer,))
    for seed in range(20):
        left, top, right, bottom = bounds(placed(layer, document, random.Random(seed)))
        assert max(left, top) <= 0
        assert right >= 100
        assert bottom >= 80


@pytest.mark.parametrize("frames", [(), (1,)])
def test_the_mean_squared_error_of_what_is_seen_inside_is_the_masked_error(frames):
    torch.manual_seed(0)
    predicted, clean = torch.randn(2, 4, *frames, 8, 8), torch.randn(2, 4, *frames, 8, 8)
    masks = torch.rand(2, 8, 8) * (torch.rand(2, 8, 8) > 0.5)
    plain = (seen_inside(predicted, clean, masks) - clean).square().flatten(1).mean(1)
    wanted = masked_error(predicted.reshape(2, 4, 8, 8), clean.reshape(2, 4, 8, 8), masks)
    assert torch.allclose(plain, wanted, atol=1e-5)


def test_what_lies_outside_has_no_gradient_even_if_it_is_no_number():
    predicted, clean = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:5, 2:5] = 1
    predicted[:, :, 0] = torch.nan
    predicted.requires_grad_()
    (seen_inside(predicted, clean, mask) - clean).square().mean().backward()
    outside = mask[:, None].expand_as(predicted) == 0
    assert not predicted.grad[outside].any()
    assert predicted.grad[~outside].all()
