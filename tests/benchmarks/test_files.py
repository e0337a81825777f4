"""The benchmark of files has its figures, and its layers are like a painter's."""

import numpy as np

from benchmarks.files import GOALS, measure, painted


def test_a_small_run_gives_every_figure():
    figures = measure(3, 64, 1)
    assert set(GOALS) <= set(figures) | {"psd_peak_ratio"}
    assert all(value > 0 for value in figures.values())


def test_layers_are_soft_shapes_on_transparency_with_noise():
    pixels = painted(256, np.random.default_rng(7))
    alpha = pixels[..., 3]
    assert 0.2 < (alpha > 0).mean() < 0.9
    assert 0.02 < ((alpha > 0) & (alpha < 255)).mean() < 0.4
    assert (pixels[alpha == 0] == 0).all()
    inside = pixels[..., 0][alpha == 255].astype(int)
    assert 0.5 < np.abs(np.diff(inside)).mean() < 6
