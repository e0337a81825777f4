"""Guidance rescaled by region: against hand-worked values and an independent formula."""

import pytest
import torch

from layered_core.errors import LayeredError
from layered_core.noise.guidance import PREDICTIONS, of_empty_picture, rescaling

SIGMA = 2.5


def noisy(batch=1, size=(6, 10), channels=4):
    """Return a model's scaled input, and two predictions of the picture."""
    source = torch.Generator().manual_seed(0)
    x, guided, cond = torch.randn(3, batch, channels, *size, generator=source, dtype=torch.float64)
    return x, 2.0 * guided + 0.3, cond - 0.1


def noise_of(x, picture):
    return (x * (1 + SIGMA**2) ** 0.5 - picture) / SIGMA


def velocity(x, picture):
    """Return v for ``x = alpha picture + beta noise``."""
    alpha, beta = 1 / (1 + SIGMA**2) ** 0.5, SIGMA / (1 + SIGMA**2) ** 0.5
    return alpha * noise_of(x, picture) - beta * picture


def flow(x, picture):
    """Return the flow for ``x = (1 - sigma) picture + sigma noise``."""
    return (x - (1 - SIGMA) * picture) / SIGMA - picture


OF = {
    "sample": lambda x, picture: picture, "epsilon": noise_of, "v_prediction": velocity,
    "flow_prediction": flow,
}  # fmt: skip
"""What a model of each kind predicts of a picture."""


def everywhere(size=(6, 10)):
    return torch.ones(1, *size)


@pytest.mark.parametrize(("amount", "wanted"), [(0.0, [0.0, 4.0]), (0.5, [0.0, 3.0]), (1.0, [0.0, 2.0])])
def test_twice_the_deviation_is_halved_by_the_amount(amount, wanted):
    guided, cond = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2), torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    added = rescaling(guided, cond, 0.0, torch.ones(1, 1, 2), [amount])
    assert (guided + added).flatten().tolist() == wanted


def test_one_mask_of_ones_is_the_papers_rescaling_of_the_picture():
    _, guided, cond = noisy(batch=2)
    dims = (1, 2, 3)
    factor = cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    got = guided + rescaling(guided, cond, 0.0, everywhere(), [0.7])
    torch.testing.assert_close(got, 0.7 * factor * guided + 0.3 * guided, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_model_of_any_kind_makes_the_same_picture(kind):
    x, guided, cond = noisy()
    masks = torch.rand(2, 6, 10, generator=torch.Generator().manual_seed(1)) / 2
    pictures = guided + rescaling(guided, cond, 0.0, masks, [0.4, 1.0])
    mine, empty = OF[kind](x, guided), of_empty_picture(x, SIGMA, kind)
    added = rescaling(mine, OF[kind](x, cond), empty, masks, [0.4, 1.0])
    torch.testing.assert_close(mine + added, OF[kind](x, pictures), atol=1e-5, rtol=1e-5)


def test_each_region_has_its_own_deviation_and_elsewhere_no_bit_changes():
    _, guided, cond = noisy(size=(4, 12))
    guided[..., 4:8] *= 5
    masks = torch.zeros(2, 4, 12)
    masks[0, :, :4], masks[1, :, 4:8] = 1, 1
    got = guided + rescaling(guided, cond, 0.0, masks, [1.0, 1.0])
    for part in (slice(0, 4), slice(4, 8)):
        alone = guided[..., part] * (cond[..., part].std() / guided[..., part].std())
        torch.testing.assert_close(got[..., part], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(got[..., 8:], guided[..., 8:])


def test_a_soft_mask_weighs_its_cells():
    _, guided, cond = noisy()
    mask = torch.rand(1, 6, 10, generator=torch.Generator().manual_seed(2))
    weights = mask.double().expand(1, 4, 6, 10) / (4 * mask.double().sum())

    def deviation(v):
        mean = (weights * v).sum()
        return (weights * (v - mean) ** 2).sum().sqrt()

    wanted = guided * (1 + 0.5 * mask * (deviation(cond) / deviation(guided) - 1))
    got = guided + rescaling(guided, cond, 0.0, mask, [0.5])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_a_picture_of_a_batch_does_not_depend_on_the_others():
    _, guided, cond = noisy(batch=3)
    together = rescaling(guided, cond, 0.0, everywhere(), [1.0])
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(together[one], rescaling(guided[one], cond[one], 0.0, everywhere(), [1.0]))


def test_latents_with_a_time_axis_are_rescaled_alike():
    _, guided, cond = noisy()
    flat = rescaling(guided, cond, 0.0, everywhere(), [1.0])
    deep = rescaling(guided[:, :, None], cond[:, :, None], 0.0, everywhere(), [1.0])
    assert torch.equal(deep[:, :, 0], flat)


@pytest.mark.parametrize("guided", [torch.zeros(1, 4, 6, 10), torch.full((1, 4, 6, 10), 3.0)])
def test_what_has_no_deviation_stays(guided):
    _, _, cond = noisy()
    added = rescaling(guided, cond, 0.0, everywhere(), [1.0])
    assert torch.equal(added, torch.zeros_like(guided))


def test_a_layer_that_covers_no_cell_changes_nothing():
    _, guided, cond = noisy()
    added = rescaling(guided, cond, 0.0, torch.zeros(1, 6, 10), [1.0])
    assert torch.equal(added, torch.zeros_like(guided))


def test_half_precision_is_measured_in_single():
    _, guided, cond = (t.float() for t in noisy())
    exact = rescaling(guided, cond, 0.0, everywhere(), [1.0])
    halved = rescaling(guided.half(), cond.half(), 0.0, everywhere(), [1.0])
    assert halved.dtype == torch.float16
    torch.testing.assert_close(halved.float(), exact, atol=2e-2, rtol=1e-2)


def test_an_unknown_kind_of_prediction_is_named():
    with pytest.raises(LayeredError, match="prediction type is 'x'; allowed: sample, epsilon"):
        of_empty_picture(torch.zeros(1, 4, 2, 2), 1.0, "x")
