"""Figures of stacks of layers: equal ones, other orders, a layer too many, and the best way through the costs."""

import itertools

import pytest
import torch

from layered_core.errors import LayeredError
from layered_core.metrics.decomposition_metrics import compare_stacks, in_order, rgb_l1


def layer(colour, rows, columns, alpha=1.0):
    out = torch.zeros(4, 8, 8)
    out[:3, rows, columns] = torch.tensor(colour)[:, None, None]
    out[3, rows, columns] = alpha
    return out


ALL = slice(0, 8)
BACK = layer((0.5, 0.5, 0.5), ALL, ALL)
RED = layer((1.0, 0.0, 0.0), slice(0, 4), slice(0, 4))
BLUE = layer((0.0, 0.0, 1.0), slice(4, 8), slice(4, 8))


def test_equal_stacks_are_alike_in_all():
    stack = torch.stack([BACK, RED, BLUE])
    assert compare_stacks(stack, stack) == (0.0, 1.0)
    assert compare_stacks(stack, stack, merges=2) == (0.0, 1.0)


def test_colours_count_where_the_wanted_layer_is_and_missing_ones_are_black():
    assert rgb_l1(layer((0.4, 0.4, 0.4), ALL, ALL), BACK) == pytest.approx(0.1)
    assert rgb_l1(RED, BACK) == pytest.approx((0.5 * 48 + 0.5 * 16) / 64)
    faint = layer((1.0, 0.0, 0.0), slice(0, 4), slice(0, 4), 0.25)
    assert rgb_l1(faint, RED) == 0.0
    invisible = RED * torch.tensor([1.0, 1, 1, 0])[:, None, None]
    assert rgb_l1(invisible, RED) == pytest.approx(1 / 3)
    assert rgb_l1(RED, torch.zeros(4, 8, 8)) == 0.0


def test_a_half_right_alpha_gives_half_an_iou():
    faint = layer((1.0, 0.0, 0.0), slice(0, 4), slice(0, 4), 0.5)
    found = compare_stacks(torch.stack([BACK, faint]), torch.stack([BACK, RED]))
    assert found.soft_iou == pytest.approx((1 + 0.5) / 2)
    assert found.rgb_l1 == 0.0


def test_the_wrong_order_counts_of_layers_that_overlap_and_only_of_these():
    right = torch.stack([BACK, RED, BLUE])
    assert compare_stacks(torch.stack([BACK, BLUE, RED]), right) == (0.0, 1.0)
    wide = layer((0.0, 0.0, 1.0), slice(3, 8), slice(3, 8))
    assert compare_stacks(torch.stack([BACK, wide, RED]), torch.stack([BACK, RED, wide])).cost > 0.2
    assert compare_stacks(torch.stack([RED, BACK]), torch.stack([BACK, RED])).cost > 0.2


def test_many_layers_without_an_order_are_compared_as_they_are():
    stack = torch.zeros(9, 4, 8, 8)
    for i in range(8):
        stack[i, :, i, :4] = 1
    assert compare_stacks(stack, stack) == (0.0, pytest.approx(1.0))


def test_one_merge_makes_up_for_a_layer_in_two_pieces():
    halves = [layer((1.0, 0.0, 0.0), slice(a, a + 2), slice(0, 4)) for a in (0, 2)]
    made, wanted = torch.stack([BACK, *halves, BLUE]), torch.stack([BACK, RED, BLUE])
    assert compare_stacks(made, wanted).soft_iou == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)
    assert compare_stacks(made, wanted, merges=1) == (0.0, 1.0)


def test_a_merge_is_the_composite():
    glass = layer((0.0, 0.0, 1.0), ALL, ALL, 0.5)
    both = layer((0.25, 0.25, 0.75), ALL, ALL)
    found = compare_stacks(torch.stack([BACK, glass]), both[None], merges=1)
    assert found.rgb_l1 == pytest.approx(0, abs=1e-6)
    assert found.soft_iou == pytest.approx(1)


def test_the_way_through_the_costs_is_the_cheapest_of_all():
    costs = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))

    def ways(i, j):
        if (i, j) == (2, 3):
            yield [(i, j)]
        for a, b in ((1, 1), (1, 0), (0, 1)):
            if i + a <= 2 and j + b <= 3:
                yield from ([(i, j), *rest] for rest in ways(i + a, j + b))

    best = min(ways(0, 0), key=lambda way: sum(float(costs[x]) for x in way))
    assert in_order(costs) == best
    assert in_order(torch.zeros(2, 2)) == [(0, 0), (1, 1)]
    assert in_order(torch.zeros(1, 3)) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize(("made", "wanted"), itertools.permutations([torch.zeros(0, 4, 8, 8), BACK[None]]))
def test_an_empty_stack_is_refused(made, wanted):
    with pytest.raises(LayeredError, match="layers: shape"):
        compare_stacks(made, wanted)
