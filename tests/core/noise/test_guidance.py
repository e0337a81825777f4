"""Guidance rescaled by region: against hand-worked values and an independent formula."""

import pytest
import torch

from layered_core.errors import LayeredError
from layered_core.noise.guidance import PREDICTIONS, rescaling, zero_velocity

SIGMA = 2.5


def noisy(batch=1, size=(6, 10), channels=4):
    """Return a model's scaled input, and two predictions of the picture."""
    source = torch.Generator().manual_seed(0)
    x, guided, cond = torch.randn(3, batch, channels, *size, generator=source, dtype=torch.float64)
    return x, 2.0 * guided + 0.3, cond - 0.1


def velocity(x, picture):
    """Return v of a picture predicted from ``x = alpha picture + beta noise``."""
    alpha, beta = 1 / (1 + SIGMA**2) ** 0.5, SIGMA / (1 + SIGMA**2) ** 0.5
    noise = (x - alpha * picture) / beta
    return alpha * noise - beta * picture


def noise_of(x, picture):
    return (x * (1 + SIGMA**2) ** 0.5 - picture) / SIGMA


def everywhere(size=(6, 10)):
    return torch.ones(1, *size)


@pytest.mark.parametrize(("amount", "wanted"), [(0.0, [0.0, 4.0]), (0.5, [0.0, 3.0]), (1.0, [0.0, 2.0])])
def test_twice_the_deviation_is_halved_by_the_amount(amount, wanted):
    guided, cond = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2), torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    added = rescaling(guided, cond, torch.zeros_like(guided), torch.ones(1, 1, 2), [amount])
    assert (guided + added).flatten().tolist() == wanted


def test_one_mask_of_ones_is_the_papers_rescaling_of_the_velocity():
    x, guided, cond = noisy(batch=2)
    before, wanted = velocity(x, guided), velocity(x, cond)
    dims = (1, 2, 3)
    factor = wanted.std(dims, keepdim=True) / before.std(dims, keepdim=True)
    after = 0.7 * factor * before + 0.3 * before
    got = guided + rescaling(guided, cond, zero_velocity(x, SIGMA, "sample"), everywhere(), [0.7])
    torch.testing.assert_close(velocity(x, got), after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_model_of_any_kind_makes_the_same_picture(kind):
    of = {"sample": lambda x, p: p, "epsilon": noise_of, "v_prediction": velocity}[kind]
    x, guided, cond = noisy()
    masks = torch.rand(2, 6, 10, generator=torch.Generator().manual_seed(1)) / 2
    pictures = guided + rescaling(guided, cond, zero_velocity(x, SIGMA, "sample"), masks, [0.4, 1.0])
    mine, zero = of(x, guided), zero_velocity(x, SIGMA, kind)
    added = rescaling(mine, of(x, cond), zero, masks, [0.4, 1.0])
    torch.testing.assert_close(mine + added, of(x, pictures), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_prediction_of_velocity_0_has_velocity_0(kind):
    of = {"sample": lambda x, p: p, "epsilon": noise_of, "v_prediction": velocity}[kind]
    x, *_ = noisy()
    still = zero_velocity(x, SIGMA, "sample")
    assert float(velocity(x, still).abs().max()) < 1e-12
    torch.testing.assert_close(zero_velocity(x, SIGMA, kind), of(x, still))


def test_each_region_has_its_own_deviation_and_elsewhere_no_bit_changes():
    _, guided, cond = noisy(size=(4, 12))
    guided[..., 4:8] *= 5
    masks = torch.zeros(2, 4, 12)
    masks[0, :, :4], masks[1, :, 4:8] = 1, 1
    got = guided + rescaling(guided, cond, torch.zeros_like(guided), masks, [1.0, 1.0])
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
    got = guided + rescaling(guided, cond, torch.zeros_like(guided), mask, [0.5])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_a_picture_of_a_batch_does_not_depend_on_the_others():
    x, guided, cond = noisy(batch=3)
    zero = zero_velocity(x, SIGMA, "sample")
    together = rescaling(guided, cond, zero, everywhere(), [1.0])
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(
            together[one], rescaling(guided[one], cond[one], zero[one], everywhere(), [1.0])
        )


def test_latents_with_a_time_axis_are_rescaled_alike():
    _, guided, cond = noisy()
    flat = rescaling(guided, cond, torch.zeros_like(guided), everywhere(), [1.0])
    deep = rescaling(guided[:, :, None], cond[:, :, None], torch.zeros(1, 4, 1, 6, 10), everywhere(), [1.0])
    assert torch.equal(deep[:, :, 0], flat)


@pytest.mark.parametrize("guided", [torch.zeros(1, 4, 6, 10), torch.full((1, 4, 6, 10), 3.0)])
def test_what_has_no_deviation_stays(guided):
    _, _, cond = noisy()
    added = rescaling(guided, cond, torch.zeros_like(guided), everywhere(), [1.0])
    assert torch.equal(added, torch.zeros_like(guided))


def test_a_layer_that_covers_no_cell_changes_nothing():
    _, guided, cond = noisy()
    added = rescaling(guided, cond, torch.zeros_like(guided), torch.zeros(1, 6, 10), [1.0])
    assert torch.equal(added, torch.zeros_like(guided))


def test_half_precision_is_measured_in_single():
    _, guided, cond = (t.float() for t in noisy())
    exact = rescaling(guided, cond, torch.zeros_like(guided), everywhere(), [1.0])
    halved = rescaling(guided.half(), cond.half(), torch.zeros_like(guided).half(), everywhere(), [1.0])
    assert halved.dtype == torch.float16
    torch.testing.assert_close(halved.float(), exact, atol=2e-2, rtol=1e-2)


def test_an_unknown_kind_of_prediction_is_named():
    with pytest.raises(LayeredError, match="prediction type is 'flow_prediction'; allowed: sample, epsilon"):
        zero_velocity(torch.zeros(1, 4, 2, 2), 1.0, "flow_prediction")
