"""Means with bootstrap intervals (Efron 1979, percentile method), and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A figure with its 95 % interval."""

    mean: float
    low: float
    """2.5 % point of the resamples."""
    high: float
    """97.5 % point of the resamples."""
    n: int
    """Number of scenes that it is computed from."""


def resamples(count: int, draws: int, seed: int = 0) -> np.ndarray:
    """Draw ``draws`` samples of ``count`` indices with replacement, ``[draws, count]``. All figures use the
    same ones, so that differences are paired."""
    return np.random.default_rng(seed).integers(count, size=(draws, count))


def mean_interval(values: Sequence[float], draws: int = 2000) -> Interval:
    """Return the mean of the values that are not NaN, with its 95 % interval."""
    kept = np.array([v for v in values if v == v], dtype=float)
    if not len(kept):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    means = kept[resamples(len(kept), draws)].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(kept.mean()), float(low), float(high), len(kept))


def paired_interval(values: Sequence[float], baseline: Sequence[float], draws: int = 2000) -> Interval:
    """Return the mean of ``values - baseline`` over the scenes where neither is NaN, with its 95 %
    interval."""
    return mean_interval([v - b for v, b in zip(values, baseline, strict=True)], draws)


def set_interval(
    figure: Callable[[Sequence[int]], float], count: int, draws: int = 200, most: float = float("inf")
) -> tuple[Interval, np.ndarray]:
    """Compute a figure of a whole set of scenes, with its 95 % interval.

    Resamples contain scenes more than once, which shifts some figures (a Fréchet distance grows). The
    interval is shifted back, so that its median is the figure.

    Args:
        figure: maps the indices of scenes (which may repeat) to a number.
        count: number of scenes.
        most: greatest possible value; the figure lies in 0..``most``.

    Returns:
        the interval, and the figure of every resample, shifted in the same way, for differences.
    """
    mean = figure(range(count))
    drawn = np.array([figure(list(map(int, indices))) for indices in resamples(count, draws)])
    if np.isnan(drawn).all():
        return Interval(mean, float("nan"), float("nan"), count), drawn
    drawn = (drawn + mean - np.nanmedian(drawn)).clip(0, most)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(mean, float(low), float(high), count), drawn
