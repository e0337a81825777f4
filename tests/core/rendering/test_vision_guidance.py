"""Vision guidance: vectors, what is planted, and that models of every kind are led alike."""

import hashlib

import pytest
import torch

from layered_core.canvas.masks import mask_pyramid
from layered_core.errors import LayeredError
from layered_core.rendering.vision_guidance import (
    fuse,
    input_factor,
    left_in,
    noise_colours,
    picture_colours,
    strongest_cells,
    unit_vectors,
    vision_guidance,
    word_colours,
)

KINDS = ("sample", "epsilon", "v_prediction", "flow_prediction")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_unit_vectors_have_a_root_mean_square_of_1_and_nothing_stays_nothing():
    found = unit_vectors(torch.tensor([[0.0, 0.0], [3.0, 4.0], [-0.001, 0.0]]))
    wanted = torch.tensor([[0.0, 0.0], [3.0, 4.0], [-1.0, 0.0]])
    wanted[1] /= 12.5**0.5
    wanted[2] *= 2**0.5
    torch.testing.assert_close(found, wanted)


def test_the_colour_is_planted_inside_its_opposite_outside_and_nothing_on_the_border():
    planted = vision_guidance(
        torch.tensor([[1.0, -3.0]]), torch.tensor([[[1.0, 0.0, 0.5]]]), torch.tensor([0.2])
    )
    torch.testing.assert_close(planted, torch.tensor([[[[0.2, -0.2, 0.0]], [[-0.6, 0.6, 0.0]]]]))


def test_a_part_that_is_not_led_gets_nothing():
    planted = vision_guidance(torch.ones(2, 4), torch.rand(2, 3, 3), torch.tensor([0.0, 0.1]))
    assert not bool(planted[0].any())
    assert bool(planted[1].any())


def test_parts_are_mixed_by_coverage_in_soft_cells_and_apart_in_hard_ones():
    masks = torch.tensor([[[1.0, 0.0, 0.25]], [[0.0, 1.0, 0.75]], [[1.0, 1.0, 1.0]]])
    predictions = torch.stack([torch.full((4, 1, 3), x) for x in (1.0, 2.0, 7.0)])
    fused = fuse(predictions, masks, torch.tensor([0, 0, 1]))
    assert tuple(fused.shape) == (2, 4, 1, 3)
    assert torch.equal(fused[0], torch.tensor([1.0, 2.0, 1.75]).expand(4, 1, 3))
    assert torch.equal(fused[1], torch.full((4, 1, 3), 7.0))


# --- the ideal denoiser of pictures that are N(0, spread^2)


class Ideal:
    """A model that predicts perfectly, in the parametrisation ``kind``."""

    def __init__(self, kind, sigma, spread=0.7):
        self.kind, self.sigma, self.spread = kind, sigma, spread
        self.flow = kind == "flow_prediction"

    def scaled(self, x):
        """Return the model's input for latents ``x0 + sigma n``; a flow model's are ``(1 - t) x0 + t n``."""
        return x / (1 + self.sigma) if self.flow else x / (self.sigma**2 + 1) ** 0.5

    @property
    def level(self):
        """The noise level as the model counts it: a flow model's t is ``sigma / (1 + sigma)``."""
        return self.sigma / (1 + self.sigma) if self.flow else self.sigma

    def predict(self, scaled):
        x = scaled * (1 + self.sigma) if self.flow else scaled * (self.sigma**2 + 1) ** 0.5
        picture = self.spread**2 / (self.spread**2 + self.sigma**2) * x
        noise = (x - picture) / self.sigma
        alpha = 1 / (self.sigma**2 + 1) ** 0.5
        velocity = alpha * noise - self.sigma * alpha * picture
        return {
            "sample": picture,
            "epsilon": noise,
            "v_prediction": velocity,
            "flow_prediction": noise - picture,
        }[self.kind]

    def picture(self, scaled, predicted):
        """Return the picture that a prediction at an input stands for."""
        alpha, t = 1 / (self.sigma**2 + 1) ** 0.5, self.level
        return {
            "sample": predicted,
            "epsilon": scaled / alpha - self.sigma * predicted,
            "v_prediction": alpha * scaled - self.sigma * alpha * predicted,
            "flow_prediction": scaled - t * predicted,
        }[self.kind]


def fused_picture(kind, sigma, form="denoised"):
    """Return Phi of three parts of one picture, and the shift of the latents ``x0 + sigma n`` fused likewise."""
    model, x = Ideal(kind, sigma), random(1, 4, 8, 8)
    share = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masks, rows = share / share.sum(0), torch.zeros(3, dtype=torch.long)
    colours = unit_vectors(random(3, 4, seed=2))
    # The same shift of x0 + sigma n for all kinds.
    shift = vision_guidance(colours, masks, torch.tensor([0.0, 0.2, 0.3], dtype=torch.float64))
    planted = model.scaled(shift)
    scaled = model.scaled(x)
    predicted = model.predict(scaled + planted)
    if form == "denoised":
        predicted = predicted - left_in(model.level, kind) * planted
    return model.picture(scaled, fuse(predicted, masks, rows)), fuse(shift, masks, rows)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 14.6])
def test_models_of_every_kind_get_the_same_picture(sigma):
    """It is what the model saw in the shifted latents, ``sum_i M_i D(x + Xi_i)``."""
    wanted, shift = fused_picture("sample", sigma)
    factor = 0.49 / (0.49 + sigma**2)
    torch.testing.assert_close(wanted, factor * (random(1, 4, 8, 8) + shift), atol=1e-12, rtol=0)
    for kind in KINDS[1:]:
        torch.testing.assert_close(fused_picture(kind, sigma)[0], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 14.6])
def test_the_papers_form_takes_out_what_was_planted_by_the_kind_of_model(sigma):
    """All of it with noise, ``1 / (sigma^2 + 1)`` of it with velocity, all of it with flow, as the model's input
    has it."""
    for kind, taken in (
        ("sample", 0.0),
        ("epsilon", 1.0),
        ("v_prediction", 1 / (sigma**2 + 1)),
        ("flow_prediction", 1 / (1 + sigma)),
    ):
        found, shift = fused_picture(kind, sigma, "paper")
        torch.testing.assert_close(found - fused_picture(kind, sigma)[0], -taken * shift, atol=1e-9, rtol=0)


def test_a_shift_of_the_models_input_is_that_factor_larger_in_the_latents():
    assert input_factor(3.0, flow=False) == 10**0.5
    assert input_factor(0.4, flow=True) == 1.0
    x, sigma = random(1, 4, 2, 2), 3.0
    model = Ideal("epsilon", sigma)
    torch.testing.assert_close(model.scaled(x + input_factor(sigma, False) * 0.2), model.scaled(x) + 0.2)


def test_an_unknown_kind_of_prediction_is_named():
    with pytest.raises(
        LayeredError, match="prediction type is 'score'; allowed: sample, epsilon, v_prediction"
    ):
        left_in(1.0, "score")


# --- colours


def test_the_words_colour_is_what_they_change_most_and_not_what_both_predictions_show():
    """3 % of 10 x 10 cells are three."""
    empty = random(1, 2, 10, 10)
    change = torch.zeros(1, 2, 10, 10, dtype=torch.float64)
    change[0, :, 4, 5:8] = torch.tensor([[3.0, 3.0, 3.0], [-4.0, -4.0, -4.0]], dtype=torch.float64)
    change[0, 0, 0, 0] = 2.0
    assert strongest_cells(change)[0].sort().values.tolist() == [45, 46, 47]
    found = word_colours(empty + change, empty)
    torch.testing.assert_close(found, torch.tensor([[3.0, -4.0]], dtype=torch.float64) / 12.5**0.5)


def test_the_noises_colour_is_that_of_the_noise_where_the_words_act():
    noisy, empty, change = random(2, 3, 10, 10), torch.zeros(2, 3, 10, 10), torch.zeros(2, 3, 10, 10)
    change[0, :, 4, 5:8], change[1, :, 9, 0:3] = 1.0, -1.0
    found = noise_colours(noisy, change, empty)
    means = torch.stack([noisy[0, :, 4, 5:8].mean(1), noisy[1, :, 9, 0:3].mean(1)])
    torch.testing.assert_close(found, means / means.square().mean(1, keepdim=True).sqrt())


def test_words_that_change_nothing_have_no_colour():
    assert not bool(word_colours(torch.ones(1, 4, 3, 3), torch.ones(1, 4, 3, 3)).any())


def test_the_pictures_colour_is_its_mean_over_the_mask_against_grey():
    latents = torch.zeros(1, 2, 1, 3)
    latents[0, 0], latents[0, 1] = torch.tensor([[3.0, 1.0, 9.0]]), torch.tensor([[1.0, 1.0, -9.0]])
    grey = torch.ones(1, 2, 1, 3)
    found = picture_colours(latents, grey, torch.tensor([[[1.0, 0.5, 0.0]]]))
    # (2, 0) counts twice as much as (0, 0): the mean is (4/3, 0), of which the direction is left.
    torch.testing.assert_close(found, torch.tensor([[2.0**0.5, 0.0]]))


def test_golden_masks_and_colours():
    """The sha is of the same arithmetic in numpy, in 64 bits, rounded to four places."""
    noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(18))
    canvas = torch.zeros(3, 64, 64)
    canvas[0], canvas[1, 8:40, 4:30], canvas[2, 20:60, 25:61] = 1.0, 1.0, 1.0
    canvas[1] *= 1 - canvas[2]
    canvas[0] -= canvas[1] + canvas[2]
    masks = mask_pyramid(canvas, [(16, 16)])[0]
    planted = vision_guidance(
        word_colours(noise, torch.zeros_like(noise)), masks, torch.tensor([0.0, 0.2, 0.2])
    )
    rounded = (torch.cat([masks.flatten(), planted.flatten()]) * 1e4).round().to(torch.int32)
    assert hashlib.sha256(rounded.numpy().tobytes()).hexdigest() == (
        "72d4c0d98fe2d829ebf4b15c694b132115b16747c59fc443af9b5d5bd432db78"
    )
