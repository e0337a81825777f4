"""The coverage of a layer that is only a box."""

import torch

from layered_core.canvas.placement import place
from layered_core.document import Layer


def test_the_coverage_of_a_box_takes_no_memory_and_is_placed_as_ones_are():
    for number in range(24):
        layer = Layer("a", width=30, height=17, x=(-3, 0.5)[number % 2], y=2.25, rotation=15 * number)
        covered = layer.coverage
        assert covered.shape == (17, 30)
        assert covered.untyped_storage().nbytes() == 4
        ones = torch.ones(17, 30, 1)
        assert torch.equal(place(covered[..., None], layer, 24, 20), place(ones, layer, 24, 20))
