"""Change maps: the places that are kept, the step at which they are freed, and the map of a document."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError
from layered_core.noise.change_map import (
    free_places,
    fresh_noise,
    layer_noises,
    noise_level,
    noise_map,
    schedule_place,
)

LEVELS = st.floats(0, 1)


def opaque(name, x, width, noise, size=16):
    image = torch.ones(size, width, 4)
    return Layer(name, image, x=x, recipe=Recipe(noise=noise))


@given(st.floats(0, 1e3), st.integers(0, 999))
def test_a_noise_level_lies_in_its_schedule_where_it_is_nearest(sigma, step):
    sigmas = torch.linspace(-3, 3, 1000).exp()
    assert schedule_place(float(sigmas[step]), sigmas) == step
    assert schedule_place(0.0, sigmas) == 0
    place = schedule_place(sigma, sigmas)
    assert place == 0 or sigma >= float(sigmas[place - 1])
    assert place == 999 or sigma <= float(sigmas[place + 1])


@given(LEVELS, st.floats(0, 6), st.floats(0, 1))
def test_zero_is_never_free_and_one_always(level, dilation, softness):
    assert bool((free_places(torch.zeros(5, 7), level, dilation, softness) == 0).all())
    assert bool((free_places(torch.ones(5, 7), level, dilation, softness) == 1).all())


@example(a=0.0, b=0.5, softness=5e-324)
@given(LEVELS, LEVELS, st.floats(0, 1))
def test_what_is_free_stays_free_as_the_noise_falls(a, b, softness):
    change = torch.linspace(0, 1, 101)[None]
    early, late = (free_places(change, level, 3.0, softness) for level in (max(a, b), min(a, b)))
    assert bool((late >= early).all())


def test_a_place_is_freed_when_the_level_reaches_its_number():
    change = torch.tensor([[0.2, 0.5, 0.8]])
    assert free_places(change, 0.6).tolist() == [[0, 0, 1]]
    assert free_places(change, 0.5).tolist() == [[0, 1, 1]]


def test_softness_is_a_ramp_of_that_width_around_the_level():
    change = torch.tensor([[0.39, 0.45, 0.5, 0.55, 0.61]])
    torch.testing.assert_close(
        free_places(change, 0.5, softness=0.2), torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0]])
    )


def test_dilation_widens_what_is_pinned_in_proportion_to_the_level():
    change = torch.ones(1, 9)
    change[0, 4] = 0
    pinned = [int((free_places(change, level, dilation=4)[0] == 0).sum()) for level in (1.0, 0.8, 0.5, 0.2)]
    assert pinned == [9, 7, 5, 1]  # a reach of 4, 3, 2, 0 cells on both sides


@pytest.mark.parametrize(
    ("t", "start", "end", "level"),
    [
        (999, 999, 0, 1),
        (0, 999, 0, 0),
        (250, 500, 0, 0.5),
        (-2.5, 1, -4, 0.3),
        (600, 500, 0, 1),
        (7, 7, 7, 1),
        (float("-inf"), 1, 0, 0),
    ],
)
def test_the_level_is_a_share_of_the_way_and_never_not_a_number(t, start, end, level):
    assert noise_level(t, start, end) == pytest.approx(level)


def test_fresh_noise_is_white_repeatable_and_different_at_every_level():
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    a, again, b = fresh_noise(noise, 0.7), fresh_noise(noise, 0.7), fresh_noise(noise, 0.6)
    assert torch.equal(a, again)
    for x, y in ((a, b), (a, noise), (b, noise)):
        assert abs(float((x * y).mean())) < 0.06
    assert abs(float(a.std()) - 1) < 0.05


def test_runs_of_other_noise_have_other_fresh_noise_at_one_level():
    noises = [torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    a, b = (fresh_noise(noise, 0.7) for noise in noises)
    assert abs(float((a * b).mean())) < 0.06


def test_the_map_of_a_document_holds_each_layers_noise_where_it_is_seen():
    document = LayerDocument(16, 16, (opaque("back", 0, 12, 0.3), opaque("front", 8, 6, 0.9)))
    change = noise_map(document, background=0.1)
    torch.testing.assert_close(change[0], torch.tensor([0.3] * 8 + [0.9] * 6 + [0.1] * 2))


def test_half_covered_pixels_take_the_mean():
    document = LayerDocument(
        16, 16, (opaque("back", 0, 16, 0.2), replace(opaque("front", 0, 16, 1.0), opacity=0.5))
    )
    torch.testing.assert_close(noise_map(document), torch.full((16, 16), 0.6))


@pytest.mark.parametrize("noise", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("blur", [0.0, 2.5])
def test_equal_noises_are_that_number_exactly(noise, blur):
    soft = torch.rand(16, 16, 4, generator=torch.Generator().manual_seed(1))
    layers = tuple(Layer(str(i), soft.roll(i, 0), recipe=Recipe(noise=noise)) for i in range(3))
    assert bool(
        (noise_map(LayerDocument(16, 16, layers), background=noise, blur=blur) == torch.tensor(noise)).all()
    )


def test_a_layer_without_a_picture_is_free_and_a_hidden_one_counts_for_nothing():
    box = Layer("box", width=8, height=16, recipe=Recipe(noise=0.1))
    hidden = replace(opaque("hidden", 0, 16, 0.9), visible=False)
    assert noise_map(LayerDocument(16, 16, (box, hidden)), background=0)[0].tolist() == [1.0] * 8 + [0.0] * 8


def test_blur_is_in_pixels_and_keeps_the_mean():
    document = LayerDocument(64, 16, (opaque("left", 0, 32, 1.0),))
    row = noise_map(document, background=0, blur=4)[8]
    assert float(row.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(row[31 - 4]) == pytest.approx(0.841, abs=0.04)  # one deviation from the step


@pytest.mark.parametrize("values", [{"background": 1.5}, {"background": float("nan")}, {"blur": -1.0}])
def test_values_out_of_range_are_named(values):
    with pytest.raises(LayeredError, match="allowed: a number 0"):
        noise_map(LayerDocument(4, 4, (opaque("a", 0, 4, 0.5, 4),)), **values)


def test_a_backdrop_keeps_its_pixels_unless_its_noise_was_said():
    photo = Layer("photo", torch.ones(16, 16, 4))
    ball = Layer("ball", torch.ones(4, 4, 4))
    assert layer_noises(LayerDocument(16, 16, (photo, ball))) == [0.0, 0.8]
    said = replace(photo, recipe=Recipe(noise=0.8))
    assert layer_noises(LayerDocument(16, 16, (said, ball))) == [0.8, 0.8]
    assert layer_noises(LayerDocument(16, 16, (photo,))) == [0.8]


def test_only_pixels_of_the_backdrop_are_frozen():
    photo, ball = Layer("photo", torch.ones(16, 16, 4)), Layer("ball", torch.ones(4, 4, 4))
    change = noise_map(LayerDocument(16, 16, (photo, ball)))
    assert bool((change[:4, :4] == 0.8).all())
    assert float(change.sum()) == pytest.approx(16 * 0.8)
