"""Figures of a picture that was taken apart into layers, compared with the layers that it was made of.

The layers are matched in order, and neighbouring ones may be merged, as in LayerD (Suzuki et al., arXiv 2509.25134,
section 4) and Qwen-Image-Layered (arXiv 2512.15603, section 4). Layers that do not overlap have no order: there they
are grouped first, here any order of theirs counts, the one with which the stacks are most alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..canvas.compositing import straight
from ..errors import invalid
from .layout_metrics import mask_iou


class Decomposition(NamedTuple):
    """How alike two stacks of layers are: means over the matched pairs."""

    rgb_l1: float
    """Difference of the colours where the wanted layer is, 0..1; see :func:`rgb_l1`."""
    soft_iou: float
    """Soft IoU of the alphas, 0..1."""

    @property
    def cost(self) -> float:
        """What is kept least when layers are matched and merged: the mean of ``rgb_l1`` and ``1 - soft_iou``."""
        return (self.rgb_l1 + 1 - self.soft_iou) / 2


MOST_ORDERS = 5000
"""Greatest number of orders that are tried."""


def compare_stacks(made: Tensor, wanted: Tensor, merges: int = 0) -> Decomposition:
    """Compare two stacks of layers, each back to front.

    Args:
        made: straight RGBA ``[K, 4, H, W]`` in 0..1, K at least 1.
        wanted: ``[L, 4, H, W]``, L at least 1.
        merges: how many times two neighbouring layers of either stack may be merged; each time the pair with which
            the stacks are most alike, and only if they are then more alike. Neutral: 0.

    Raises:
        LayeredError: a stack is empty, or they have other shapes.
    """
    for name, stack in (("made", made), ("wanted", wanted)):
        if stack.ndim != 4 or stack.shape[1] != 4 or not len(stack) or stack.shape[2:] != wanted.shape[2:]:
            raise invalid(
                f"{name} layers: shape", list(stack.shape), "[layers, 4, height, width], of one size"
            )
    made = min(_orders(made), key=lambda x: _matched(x, wanted).cost)
    best = _matched(made, wanted)
    for _ in range(merges):
        tried = [(_matched(x, wanted), x, wanted) for x in _merged_once(made)]
        tried += [(_matched(made, x), made, x) for x in _merged_once(wanted)]
        found = min(tried, key=lambda x: x[0].cost, default=None)
        if found is None or found[0].cost >= best.cost:
            break
        best, made, wanted = found
    return best


def rgb_l1(made: Tensor, wanted: Tensor) -> float:
    """Compute the mean absolute difference of the colours of two layers, straight RGBA ``[4, H, W]`` in 0..1, over the
    pixels where ``wanted`` is not transparent; colours of transparent pixels of ``made`` count as black. 0 if
    ``wanted`` is transparent everywhere."""
    there = wanted[3] > 0
    colours = torch.where(made[3] > 0, made[:3], 0.0)
    return float((colours - wanted[:3]).abs().mean(0)[there].mean()) if bool(there.any()) else 0.0


def in_order(costs: Tensor) -> list[tuple[int, int]]:
    """Match two sequences in order (dynamic time warping): pairs from the first two to the last two, of which each goes
    on by one in one sequence or in both, with the least sum of ``costs`` ``[K, L]``.

    Every element is matched at least once. Of equal ways the one that goes on in both is taken.
    """
    rows, columns = costs.shape
    total = torch.full((rows + 1, columns + 1), torch.inf, dtype=torch.float64)
    total[0, 0] = 0
    for i in range(rows):
        for j in range(columns):
            before = min(total[i, j], total[i, j + 1], total[i + 1, j])
            total[i + 1, j + 1] = costs[i, j].double() + before
    i, j, pairs = rows, columns, []
    while i and j:
        pairs.append((i - 1, j - 1))
        ways = (total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
        way = min(range(3), key=lambda x: float(ways[x]))
        i, j = i - (way != 2), j - (way != 1)
    return pairs[::-1]


def _orders(stack: Tensor) -> list[Tensor]:
    """Return the stack in all orders in which overlapping layers keep theirs, the given one first."""
    present = (stack[:, 3] >= 0.5).flatten(1).float()
    over = present @ present.mT > 0
    orders: list[list[int]] = [[]]
    for _ in range(len(stack)):
        orders = [
            [*order, i]
            for order in orders
            for i in range(len(stack))
            if i not in order and all(j in order for j in range(i) if bool(over[i, j]))
        ]
        if len(orders) > MOST_ORDERS:
            return [stack]
    return [stack[order] for order in orders]


def _matched(made: Tensor, wanted: Tensor) -> Decomposition:
    each = [[Decomposition(rgb_l1(a, b), float(mask_iou(a[3], b[3]))) for b in wanted] for a in made]
    pairs = in_order(torch.tensor([[x.cost for x in row] for row in each]))
    found = [each[i][j] for i, j in pairs]
    return Decomposition(
        sum(x.rgb_l1 for x in found) / len(found), sum(x.soft_iou for x in found) / len(found)
    )


def _merged_once(stack: Tensor) -> list[Tensor]:
    """Return the stacks in which two neighbouring layers are one."""
    return [
        torch.cat([stack[:i], _over(stack[i + 1], stack[i])[None], stack[i + 2 :]])
        for i in range(len(stack) - 1)
    ]


def _over(front: Tensor, back: Tensor) -> Tensor:
    """Composite a straight RGBA layer ``[4, H, W]`` over another."""
    alpha = front[3:] + back[3:] * (1 - front[3:])
    colours = front[:3] * front[3:] + back[:3] * back[3:] * (1 - front[3:])
    return straight(torch.cat([colours, alpha]).movedim(0, -1)).movedim(-1, 0)
