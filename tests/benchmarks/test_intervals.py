"""Means with their intervals, and differences of paired answers."""

import numpy as np
import pytest

from benchmarks.bench import intervals


def test_an_interval_holds_the_mean_it_was_drawn_around_19_times_in_20():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        x = intervals.mean_interval(list(rng.normal(3, 1, 40)), draws=400)
        hits += x.low <= 3 <= x.high
    assert 0.9 <= hits / 300 <= 0.98


def test_pairing_sees_what_scatter_would_hide():
    rng = np.random.default_rng(1)
    base = list(rng.normal(0, 10, 50))
    better = [b + 0.5 + e for b, e in zip(base, rng.normal(0, 0.2, 50), strict=True)]
    assert intervals.paired_interval(better, base).low > 0
    assert intervals.mean_interval(better).low < intervals.mean_interval(base).high


def test_scenes_without_a_number_are_left_out():
    x = intervals.mean_interval([1.0, float("nan"), 3.0])
    assert (x.mean, x.n) == (2, 2)
    assert intervals.mean_interval([float("nan")]).n == 0
    assert intervals.paired_interval([1.0, 2.0], [float("nan"), 1.0]).n == 1


def test_an_interval_of_a_set_lies_around_its_figure():
    values = np.random.default_rng(2).random(30)
    x, drawn = intervals.set_interval(lambda scenes: float(values[scenes].max() + 1), 30)
    assert x.low <= x.mean <= x.high
    assert np.median(drawn) == pytest.approx(x.mean)


def test_an_interval_has_two_and_a_half_percent_of_the_resamples_on_either_side():
    """Of 100 answers, half of them right: 1.96 standard errors of 0.05."""
    x = intervals.mean_interval([0.0, 1.0] * 50, draws=20_000)
    assert (x.low, x.high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.008)


def test_an_interval_of_a_set_is_moved_back_by_what_resamples_add_and_stays_in_range():
    """A third of the scenes is missing from a resample, which lowers the count of different ones."""
    x, drawn = intervals.set_interval(lambda scenes: len(set(scenes)) / 30, 30, most=1.0)
    assert x.mean == 1
    assert np.median(drawn) == pytest.approx(1)
    assert float(drawn.max()) == x.high == 1
    assert 0.8 < x.low < 0.95
