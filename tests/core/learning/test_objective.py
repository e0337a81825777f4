"""The error inside a mask: nothing outside is seen, small layers learn as fast as large ones, and models of every kind
learn the same."""

import pytest
import torch

from layered_core.errors import LayeredError
from layered_core.learning.objective import (
    attention_term,
    error_weights,
    masked_error,
    noised,
    target,
)


def test_training_does_not_see_what_lies_outside_the_mask():
    mask = torch.zeros(1, 4, 4)
    mask[0, 1:3, 1:3] = torch.tensor([[1.0, 0.5], [1.0, 1.0]])
    wanted = torch.randn(1, 3, 4, 4)
    predicted = torch.randn(1, 3, 4, 4)
    planted = predicted.clone()
    planted[:, :, 0] = torch.nan
    planted.requires_grad_()
    error = masked_error(planted, wanted, mask)
    error.sum().backward()
    assert torch.equal(error, masked_error(predicted, wanted, mask))
    assert torch.equal(planted.grad[:, :, 0], torch.zeros(1, 3, 4))
    assert torch.equal(planted.grad != 0, (mask > 0)[:, None].expand(1, 3, 4, 4))


def test_half_the_area_learns_as_fast():
    shift = torch.zeros((), requires_grad=True)
    gradients = {}
    for rows in (4, 2):
        mask = torch.zeros(1, 4, 4)
        mask[:, :rows] = 1
        for by_area in (True, False):
            error = masked_error(shift + torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4), mask, by_area)
            gradients[rows, by_area] = float(torch.autograd.grad(error.sum(), shift)[0])
    assert gradients[4, True] == gradients[2, True] == -2
    assert gradients[2, False] == gradients[4, False] / 2


def test_the_error_is_the_weighted_mean_over_channels_and_mask():
    mask = torch.tensor([[[1.0, 0.25]]])
    predicted = torch.tensor([[[[2.0, 4.0]], [[0.0, 0.0]]]])
    assert masked_error(predicted, torch.zeros(1, 2, 1, 2), mask).item() == pytest.approx(
        (4 + 0.25 * 16) / (2 * 1.25)
    )


def denoised(predicted, kind, noisy, alpha):
    """Return the clean picture that a prediction means."""
    a, b = alpha.view(-1, 1, 1, 1).sqrt(), (1 - alpha).view(-1, 1, 1, 1).sqrt()
    return {
        "epsilon": lambda: (noisy - b * predicted) / a,
        "v_prediction": lambda: a * noisy - b * predicted,
        "sample": lambda: predicted,
    }[kind]()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_of_every_kind_means_the_same_clean_picture(kind):
    clean, noise, alpha = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    noisy = noised(clean, noise, alpha)
    wanted = target(kind, clean, noise, alpha)
    assert torch.allclose(denoised(wanted, kind, noisy, alpha), clean, atol=1e-5)


def test_models_of_every_kind_learn_in_the_same_direction():
    """One ideal denoiser, written as each kind of network, with a colour to be learnt."""
    make = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 3, 4, 4, generator=make) for _ in range(2))
    alpha, mask = torch.tensor([0.3]), torch.rand(1, 4, 4, generator=make)
    noisy = noised(clean, noise, alpha)
    a, b = alpha.sqrt(), (1 - alpha).sqrt()
    directions = []
    for kind in ("epsilon", "v_prediction", "sample"):
        colour = torch.zeros(3, requires_grad=True)
        guess = 0.5 * noisy + colour[None, :, None, None]
        predicted = {
            "epsilon": (noisy - a * guess) / b,
            "v_prediction": (a * noisy - guess) / b,
            "sample": guess,
        }[kind]
        error = masked_error(predicted, target(kind, clean, noise, alpha), mask) * error_weights(kind, alpha)
        gradient = torch.autograd.grad(error.sum(), colour)[0]
        directions.append(gradient / gradient.norm())
    for other in directions[1:]:
        assert torch.allclose(directions[0], other, atol=1e-5)


def test_weights_are_those_of_min_snr():
    alpha = torch.tensor([0.5, 0.9])  # snr 1 and 9
    assert torch.equal(error_weights("epsilon", alpha), torch.ones(2))
    assert torch.allclose(error_weights("v_prediction", alpha), torch.tensor([1.0, 5 / 9]))
    assert torch.allclose(error_weights("sample", alpha), torch.tensor([1.0, 5.0]))


def test_a_model_that_predicts_something_else_is_named():
    with pytest.raises(LayeredError, match="what the model predicts is 'flow'"):
        target("flow", torch.zeros(1), torch.zeros(1), torch.ones(1))


def test_the_attention_term_is_0_inside_and_1_outside():
    masks = torch.zeros(1, 4, 4)
    masks[0, :2] = 1
    inside, outside = torch.zeros(1, 16), torch.zeros(1, 16)
    inside[0, :8], outside[0, 8:] = 0.3, 0.7
    half = inside / 0.3 + outside / 0.7
    for maps, wanted in (([inside], 0), ([outside], 1), ([half], 0.25), ([inside, outside], 0.5), ([], 0)):
        assert attention_term(maps, [(4, 4)] * len(maps), masks).item() == pytest.approx(wanted)
