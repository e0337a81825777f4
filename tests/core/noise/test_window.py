"""Windows of the sampling, given as noise levels."""

import math

import pytest
import torch

from layered_core.noise.window import ALWAYS, Window, sigma_at

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


def test_the_share_of_a_window_is_one_of_the_timesteps():
    window = Window.of_shares(ALPHAS, 0.3, 0.7)
    acting = [t for t in range(1000) if window.acts(sigma_at(ALPHAS, t))]
    assert (acting[0], acting[-1]) == (300, 699)
    assert len(acting) == 400


def test_windows_that_meet_share_no_step_and_miss_none():
    edges = [0.0, 0.25, 333 / 999, 0.5, 666 / 999, 1.0]
    windows = [Window.of_shares(ALPHAS, a, b) for a, b in zip(edges, edges[1:], strict=False)]
    for t in range(1000):
        assert sum(w.acts(sigma_at(ALPHAS, t)) for w in windows) == 1, t


def test_the_whole_sampling_is_inside_and_a_window_of_no_length_holds_nothing():
    sigmas = [sigma_at(ALPHAS, t) for t in (0, 500, 999)]
    assert all(ALWAYS.acts(s) and Window.of_shares(ALPHAS, 0, 1).acts(s) for s in sigmas)
    assert not any(
        Window.of_shares(ALPHAS, share, share).acts(s) for s in sigmas for share in (0.0, 0.5, 1.0)
    )


def test_the_noise_level_is_noise_over_picture_and_between_timesteps_its_logarithm_is_even():
    assert sigma_at(ALPHAS, 500) == pytest.approx(float(((1 - ALPHAS[500]) / ALPHAS[500]).sqrt()))
    assert sigma_at(ALPHAS, 500.5) == pytest.approx(math.sqrt(sigma_at(ALPHAS, 500) * sigma_at(ALPHAS, 501)))
    assert (sigma_at(ALPHAS, share=0.0), sigma_at(ALPHAS, share=1.0)) == (math.inf, 0.0)
    assert sigma_at(torch.tensor([0.9, 0.0]), 1) < 1e4


def test_a_window_begins_with_its_first_noise_level_and_is_over_at_its_last():
    window = Window(5.0, 2.0)
    assert [window.acts(sigma) for sigma in (5.01, 5.0, 2.01, 2.0)] == [False, True, True, False]


@pytest.mark.parametrize(("share", "timestep"), [(0.5, 499.5), (0.25, 749.25), (0.9, 99.9)])
def test_a_share_is_counted_between_the_first_and_the_last_timestep(share, timestep):
    """As ComfyUI's ``percent_to_sigma``: ``(1 - share) * 999``."""
    assert sigma_at(ALPHAS, share=share) == pytest.approx(sigma_at(ALPHAS, timestep), rel=1e-9)
