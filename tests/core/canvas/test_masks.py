"""Visible masks are not negative, sum to one, and do not depend on the order of layers that do not touch."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layered_core.canvas.masks import grown_masks, layer_alphas, mask_pyramid, visible_masks
from layered_core.document import Layer, LayerDocument

WIDTH, HEIGHT = 37, 23


@st.composite
def layers(draw, most=6):
    found = []
    for i in range(draw(st.integers(0, most))):
        seed = draw(st.integers(0, 1000))
        width, height = draw(st.integers(1, 50)), draw(st.integers(1, 50))
        alpha = torch.rand(
            draw(st.integers(1, 9)), draw(st.integers(1, 9)), generator=torch.Generator().manual_seed(seed)
        )
        mask = draw(st.sampled_from([alpha, alpha.round(), torch.zeros_like(alpha), None]))
        found.append(
            Layer(
                f"layer {i}",
                mask=mask,
                width=width,
                height=height,
                x=draw(st.integers(-60, 60)) + draw(st.sampled_from([0, 0.25])),
                y=draw(st.integers(-60, 60)),
                rotation=draw(st.sampled_from([0, 0, 30, 90, -77.5])),
                flip_h=draw(st.booleans()),
                opacity=draw(st.sampled_from([1.0, 0.5, 0.0])),
                visible=draw(st.booleans()),
            )
        )
    return found


@settings(deadline=None, max_examples=60)
@given(layers())
def test_visible_masks_are_not_negative_and_sum_to_one(stack):
    masks, rest = visible_masks(layer_alphas(LayerDocument(WIDTH, HEIGHT, tuple(stack))))
    assert masks.shape == (len(stack), HEIGHT, WIDTH)
    assert bool((masks >= 0).all())
    assert bool((rest >= 0).all())
    torch.testing.assert_close(masks.sum(0) + rest, torch.ones(HEIGHT, WIDTH))


@settings(deadline=None, max_examples=40)
@given(layers(4), st.randoms(use_true_random=False))
def test_permuting_layers_that_do_not_overlap_changes_nothing(stack, random):
    # Each layer is in a row of its own, so that no two touch.
    apart = [
        Layer(x.name, mask=x.mask, width=30, height=4, x=i, y=5 * i, opacity=x.opacity, visible=x.visible)
        for i, x in enumerate(stack)
    ]
    order = list(range(len(apart)))
    random.shuffle(order)
    masks, rest = visible_masks(layer_alphas(LayerDocument(WIDTH, HEIGHT, tuple(apart))))
    shuffled, shuffled_rest = visible_masks(
        layer_alphas(LayerDocument(WIDTH, HEIGHT, tuple(apart[i] for i in order)))
    )
    assert torch.equal(shuffled, masks[order])
    assert torch.equal(shuffled_rest, rest)


def test_an_opaque_layer_hides_what_is_behind_it_and_a_soft_one_shares():
    alphas = torch.tensor([[[1.0, 1.0, 1.0]], [[0.0, 0.25, 1.0]]])
    masks, rest = visible_masks(alphas)
    assert masks.tolist() == [[[1.0, 0.75, 0.0]], [[0.0, 0.25, 1.0]]]
    assert rest.tolist() == [[0.0, 0.0, 0.0]]


def test_a_box_without_picture_covers_its_box():
    alpha = layer_alphas(LayerDocument(6, 4, (Layer("box", x=1, y=2, width=3, height=5),)))[0]
    expected = torch.zeros(4, 6)
    expected[2:, 1:4] = 1
    assert torch.equal(alpha, expected)


def test_hidden_and_fully_transparent_layers_cover_nothing():
    document = LayerDocument(
        4, 4, (Layer("a", width=4, height=4, visible=False), Layer("b", width=4, height=4, opacity=0.0))
    )
    masks, rest = visible_masks(layer_alphas(document))
    assert not masks.any()
    assert torch.equal(rest, torch.ones(4, 4))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_a_pyramid_keeps_the_sum_over_layers_at_any_aspect_ratio(height, width, count):
    alphas = torch.rand(count, 40, 56, generator=torch.Generator().manual_seed(height * 41 + width))
    masks, rest = visible_masks(alphas)
    (cells,), (rest_cells,) = (
        mask_pyramid(masks, [(height, width)]),
        mask_pyramid(rest[None], [(height, width)]),
    )
    assert cells.shape == (count, height, width)
    torch.testing.assert_close(cells.sum(0) + rest_cells[0], torch.ones(height, width))


def test_a_pyramid_cell_is_the_mean_of_the_pixels_it_covers():
    mask = torch.zeros(1, 4, 8)
    mask[0, 0, 0] = 1
    (cells,) = mask_pyramid(mask, [(2, 2)])
    assert cells.tolist() == [[[1 / 8, 0.0], [0.0, 0.0]]]


@settings(deadline=None, max_examples=40)
@given(layers(), st.integers(0, 12))
def test_grown_masks_are_not_negative_and_sum_to_at_most_one_whatever_the_order(stack, pixels):
    masks, _ = visible_masks(layer_alphas(LayerDocument(WIDTH, HEIGHT, tuple(stack))))
    grown = grown_masks(masks, pixels)
    assert float(grown.min() if len(grown) else 0) > -1e-5
    assert float(grown.sum(0).max() if len(grown) else 0) < 1 + 1e-5
    torch.testing.assert_close(grown_masks(masks.flip(0), pixels), grown.flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(grown_masks(masks.flip(-1), pixels), grown.flip(-1), atol=1e-5, rtol=0)
    if pixels == 0:
        assert grown is masks


def test_small_layers_grow_into_larger_ones_and_into_holes_but_not_into_their_equals():
    masks = torch.zeros(4, 8, 12)
    masks[0, :, :6] = 1  # one half; the other half is a hole
    masks[1, 3:5, 3:5] = 1  # inside the first
    masks[2, 3:5, 8:9] = 1  # two of the same size beside each other, in the hole
    masks[3, 3:5, 9:10] = 1
    masks[0, 3:5, 3:5] = 0
    grown = grown_masks(masks, 1)
    expected = torch.zeros(8, 12)
    expected[2:6, 2:6] = 1
    assert torch.equal(grown[1], expected)
    assert float((grown[0] * expected).sum()) == 0
    assert float(grown[0, :, 6].min()) == 1, "the half grows into the hole"
    assert torch.equal(grown[2, 3:5, 8:10], masks[2, 3:5, 8:10])
    assert float(grown[2, 2, 8]) == float(grown[3, 2, 8]) == 0.5, "what both reach is shared"
