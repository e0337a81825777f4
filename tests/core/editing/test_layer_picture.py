"""A layer's picture that is taken out and put back has the same bits."""

from dataclasses import replace

import pytest
import torch

from layered_core.document import Layer, LayerDocument, Recipe, identical
from layered_core.editing.layer_picture import put_picture, take_picture, thumbnail
from layered_core.errors import LayeredError


def a_layer(mask=None, height=7, width=9):
    image = torch.rand(height, width, 4, generator=torch.Generator().manual_seed(0))
    image[0, 0, 3] = 0  # colours where alpha is 0 are kept too
    return Layer(
        "a",
        image,
        mask,
        "words",
        "no words",
        3.5,
        -4,
        80,
        20,
        33,
        True,
        False,
        0.3,
        "screen",
        False,
        Recipe(noise=0.2, seed=3),
    )


MASKS = {"no mask": None, "mask": torch.rand(7, 9), "mask of another size": torch.rand(3, 2)}


def same(a, b):
    return identical(LayerDocument(8, 8, [a]), LayerDocument(8, 8, [b]))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("with_alpha", [True, False])
def test_put_is_the_exact_inverse_of_take(mask, with_alpha):
    layer = a_layer(mask)
    colours, alpha = take_picture(layer)
    assert same(put_picture(layer, colours, alpha if with_alpha else None), layer)


def test_what_is_taken_is_straight_colour_and_all_of_the_alpha():
    mask = torch.rand(7, 9)
    colours, alpha = take_picture(a_layer(mask))
    assert torch.equal(colours, a_layer().image[..., :3])
    assert torch.equal(alpha, a_layer().image[..., 3] * mask)


def test_another_picture_takes_the_place_and_leaves_everything_else():
    layer, colours, alpha = a_layer(torch.rand(7, 9)), torch.rand(30, 10, 3), torch.rand(30, 10)
    after = put_picture(layer, colours, alpha)
    assert torch.equal(torch.cat([colours, alpha[..., None]], -1), after.image)
    assert after.mask is None
    assert same(replace(after, image=layer.image, mask=layer.mask), layer)


def test_without_alpha_the_layers_own_is_scaled_to_the_picture():
    layer = Layer("a", torch.cat([torch.zeros(4, 4, 3), torch.eye(4)[..., None]], -1))
    after = put_picture(layer, torch.ones(8, 8, 3))
    assert after.image.shape == (8, 8, 4)
    assert (after.width, after.height) == (4, 4)
    assert after.image[..., 3].mean() == pytest.approx(0.25)
    assert after.image[0, 0, 3] == 1


def test_a_layer_still_to_be_generated_gets_its_first_picture_and_keeps_its_mask():
    region = Layer("a", mask=torch.rand(6, 6), width=12, height=12)
    colours, alpha = take_picture(region)
    assert colours.shape == (6, 6, 3)
    assert torch.equal(alpha, region.mask)
    after = put_picture(region, torch.rand(6, 6, 3), alpha)
    assert after.mask is region.mask
    assert bool((after.image[..., 3] == 1).all())
    box = Layer("b", width=5, height=3)
    assert take_picture(box)[1].shape == (3, 5)
    assert bool((put_picture(box, torch.rand(12, 20, 3)).coverage == 1).all())


def test_alpha_of_another_size_is_refused():
    with pytest.raises(
        LayeredError, match="layer 'a': alpha's size is '4x5'; allowed: 9x7, that of the picture"
    ):
        put_picture(a_layer(), torch.rand(7, 9, 3), torch.rand(5, 4))


def test_a_thumbnail_is_small_keeps_its_shape_and_has_no_fringe():
    image = torch.zeros(100, 40, 4)
    image[:, :20] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    image[:, 20:, 1] = 1  # transparent green
    small = thumbnail(Layer("a", image), 50)
    assert small.shape == (50, 20, 4)
    assert float(small[..., 1].max()) == 0
    assert small[..., 3].mean() == pytest.approx(0.5, abs=0.01)


def test_a_thumbnail_is_never_larger_than_the_picture():
    layer = a_layer()
    assert torch.allclose(thumbnail(layer, 512)[..., 3], layer.image[..., 3])
    assert thumbnail(Layer("b", width=5, height=5), 512) is None
    assert thumbnail(Layer("c", mask=torch.rand(8, 4)), 4).shape == (4, 2, 4)
    assert thumbnail(Layer("d", torch.rand(3000, 1, 4)), 512).shape == (512, 1, 4)
