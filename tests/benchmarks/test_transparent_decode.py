"""The decoder's benchmark has its keys, finds both variants equal, and measures memory where the system
allows it."""

import sys

import pytest

from benchmarks.transparent_decode import GOALS, forget_peak, measure, resident


def test_a_small_run_gives_every_figure_and_the_same_picture_twice():
    figures = measure([128], 1, widths=(8, 8, 8, 8, 16, 16, 16), threads=1)
    assert {
        "max_abs_diff",
        "time_ratio_128",
        "time_ratio_128_1",
        "time_ratio_128_8",
        "processor_ratio_128",
    } <= set(figures)
    assert figures["max_abs_diff"] < GOALS["max_abs_diff"]
    assert figures["time_ratio_128"] == max(figures["time_ratio_128_1"], figures["time_ratio_128_8"]) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_the_peak_of_memory_is_that_since_it_was_forgotten():
    forget_peak()
    before = resident("VmRSS")
    block = bytearray(b"x") * 200_000_000
    grown = resident("VmHWM") - before
    del block
    assert grown > 150_000_000
    forget_peak()
    assert resident("VmHWM") < before + 100_000_000
