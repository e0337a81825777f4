"""Residual weights: masks, ranges, depth, shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layered_core.control.control_map import (
    ControlMap,
    centre_crop,
    fitted,
    inpaint_hint,
    on_grid,
    soft_weights,
    token_grid,
    weighted,
)
from layered_core.document import Control, Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError


def layer(name, hint="canny", **values):
    control = Control(hint=hint, strength=values.pop("strength", 1.0))
    return Layer(name, torch.ones(4, 4, 4), recipe=Recipe(control=control), **values)


def test_the_map_of_a_document_is_each_layers_visible_part_times_its_strength():
    document = LayerDocument(
        8,
        4,
        (
            layer("left", strength=0.5),
            layer("right", x=4, strength=2.0),
            layer("free", hint="none", x=2, opacity=0.5),
        ),
    )
    control_map = ControlMap.of(document)
    total = control_map.at([True, True])
    assert total[0].tolist() == [0.5, 0.5, 0.25, 0.25, 1, 1, 2, 2]
    assert torch.equal(control_map.at([True, False])[:, 4:], torch.zeros(4, 4))
    assert torch.equal(ControlMap.of(document, strength=0.5).at([True, True]), total / 2)


def test_a_map_that_is_the_same_everywhere_is_a_number():
    control = Control(hint="canny", strength=0.3)
    assert ControlMap(torch.ones(1, 3, 5), (control,)).at([True]) == pytest.approx(0.3)
    assert ControlMap(torch.zeros(1, 3, 5), (control,)).at([True]) == 0
    assert ControlMap(torch.ones(1, 3, 5), (control,)).at([False]) == 0


def test_soft_weights_rise_to_one_in_the_middle():
    assert soft_weights(13, "balanced") == [1] * 13
    for mode in ("prompt", "control"):
        assert soft_weights(13, mode) == pytest.approx([0.825 ** (12 - i) for i in range(13)])
        assert soft_weights(4, mode, adapter=True) == [0.25, 0.62, 0.825, 1]


def test_a_hint_of_the_pictures_size_is_padded_as_the_model_pads_and_others_are_scaled():
    picture = torch.rand(3, 20, 28)
    padded = fitted(picture, 32, 32, 32)
    assert torch.equal(padded[:, :20, :28], picture)
    assert torch.equal(padded[:, 20:, 0], picture[:, 19:, 0].expand(3, 12))
    assert torch.equal(fitted(picture, 20, 28, 8), picture)
    larger = fitted(picture, 60, 84, 4)
    assert larger.mean() == pytest.approx(float(picture.mean()), abs=0.02)
    assert fitted(torch.ones(2, 2, 30, 40), 60, 80, 8).unique().tolist() == [1]
    with pytest.raises(
        LayeredError, match="control hint's size is '28x20'; allowed: the aspect ratio of the picture, 64x64"
    ):
        fitted(picture, 64, 64, 8)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_resizing_by_area_keeps_the_mean(height, width, up, across):
    weight = torch.rand(height * up, width * across, generator=torch.Generator().manual_seed(height))
    assert on_grid(weight, (height, width)).mean() == pytest.approx(float(weight.mean()), abs=1e-5)


def test_complementary_maps_add_up_to_the_plain_residual():
    mask = torch.rand(24, 16, generator=torch.Generator().manual_seed(0))
    residual = torch.randn(2, 5, 3, 2)
    both = weighted(residual, mask, (24, 16)) + weighted(residual, 1 - mask, (24, 16))
    torch.testing.assert_close(both, residual)


def test_tokens_are_weighted_row_by_row_whatever_the_patch():
    weight = torch.zeros(8, 12)
    weight[:, 6:] = 1
    residual = torch.ones(1, 4 * 6, 3)
    out = weighted(residual, weight, (8, 12))[0, :, 0].view(4, 6)
    assert torch.equal(out, torch.tensor([0.0, 0, 0, 1, 1, 1]).expand(4, 6))
    assert token_grid(96, (8, 12)) == (8, 12)
    assert token_grid(5 * 7, (9, 13)) == (5, 7)
    with pytest.raises(LayeredError, match="number of tokens is 23"):
        token_grid(23, (8, 12))


def test_each_row_of_a_batch_may_have_a_map_of_its_own():
    control_map = ControlMap(torch.ones(1, 4, 4), (Control("canny", strength=0.5),))
    rows = torch.stack([torch.ones(1, 4, 4), torch.eye(4)[None]])
    weight = control_map.at([True], rows)
    torch.testing.assert_close(weight, rows[:, 0] * 0.5)
    residual = torch.ones(2, 3, 2, 2)
    wanted = torch.stack([torch.full((2, 2), 0.5), torch.eye(2) / 4])
    torch.testing.assert_close(weighted(residual, weight, (4, 4)), wanted[:, None].expand(2, 3, 2, 2))
    tokens = weighted(torch.ones(2, 16, 3), weight, (4, 4))
    torch.testing.assert_close(tokens[..., 0], weight.flatten(1))
    assert centre_crop(weight, 2, 4).shape == (2, 2, 4)


def test_weighting_leaves_the_residual_alone():
    residual = torch.ones(1, 1, 2, 2)
    weighted(residual, torch.zeros(4, 4), (2, 2))
    assert float(residual.sum()) == 4


def test_the_middle_is_cropped_to_the_latents_aspect():
    weight = torch.arange(8.0).expand(4, 8)
    assert centre_crop(weight, 2, 2)[0].tolist() == [2, 3, 4, 5]
    assert centre_crop(weight.T, 2, 2)[:, 0].tolist() == [2, 3, 4, 5]
    assert torch.equal(centre_crop(weight, 2, 4), weight)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ControlMap(torch.ones(2, 3, 3), (Control(),)), "masks' shape"),
        (lambda: ControlMap(torch.full((1, 3, 3), torch.nan), (Control(),)), "masks' values"),
        (lambda: ControlMap(torch.ones(1, 3, 3), (Control(),), "loud"), "control mode is 'loud'"),
        (
            lambda: ControlMap(torch.ones(1, 3, 3), (Control(),), strength=float("nan")),
            "control strength is nan",
        ),
        (
            lambda: ControlMap.of(LayerDocument(4, 4, (layer("a", hint="none"),))),
            "no visible layer has a control hint.*'a'",
        ),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(LayeredError, match=words):
        make()


def test_an_inpainting_control_sees_minus_one_where_something_new_is_wanted():
    """As diffusers' ``make_inpaint_condition``."""
    picture = torch.rand(1, 3, 2, 2)
    hint = inpaint_hint(picture, torch.tensor([[0.0, 0.5], [0.51, 1.0]]))
    assert torch.equal(hint[..., 0, :], picture[..., 0, :])
    assert bool((hint[..., 1, :] == -1).all())


def test_a_hint_may_differ_in_aspect_by_two_percent_and_no_more():
    assert fitted(torch.rand(1, 300, 305), 64, 64, 8).shape == (1, 64, 64)
    with pytest.raises(LayeredError, match="control hint's size is '310x300'"):
        fitted(torch.rand(1, 300, 310), 64, 64, 8)
