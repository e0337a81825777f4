"""The masked sum of LoRAs in one module of a network: ``f(x) + sum_k w_k (adapted_k(x) - f(x))``.

Only rows, and only the box of pixels, whose weight is above 0 are computed. Where no weight is above 0 the output is
``f(x)`` itself, to the bit.

>>> import torch
>>> from layered_core.attention.lora_sum import Adapted, LowRank, Rows
>>> linear, x = torch.nn.Linear(8, 8), torch.randn(2, 5, 8)
>>> lora = LowRank(torch.randn(1, 8), torch.randn(8, 1))
>>> rows = Rows.of(torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5]]).repeat(1, 2))  # two pictures of five tokens
>>> y = Adapted([(0, lora)]).to_rows(linear(x), x, rows)
>>> bool((y[:, :2] == linear(x)[:, :2]).all()), bool((y[:, 2:] == linear(x)[:, 2:]).any())
(True, False)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Delta = Callable[[Tensor, Tensor], Tensor]
"""What a LoRA adds to a module, with its strength: from the input ``x`` and the module's own output ``f(x)`` to
``adapted(x) - f(x)``. For a linear layer rows ``[n, C]`` and ``[n, C']``; for a convolution ``[B, C, h, w]`` and
``[B, C', h', w']``."""

_CALL = {"cpu": 2e6, "cuda": 3e8}
"""Multiplications that take about as long as the start of one operation, by the kind of device."""

_CALLS_EACH, _CALLS_TOGETHER = 6, 3
"""Operations that a LoRA takes if its rows are gathered, and that all take together."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """A LoRA of a linear layer: a :data:`Delta` that is ``scale up (down x)``."""

    down: Tensor
    """``[r, C]`` for rank r."""
    up: Tensor
    """``[C', r]``."""
    scale: float = 1.0
    """Factor, with the strength in it."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``[n, C']`` for rows ``x`` ``[n, C]``."""
        out = functional.linear(functional.linear(x, self.down), self.up)
        return out if self.scale == 1 else out * self.scale


@dataclass(frozen=True, eq=False)
class Rows:
    """The weights of K LoRAs for the rows of a linear layer's input, R of them: all its dimensions but the last, one
    after the other."""

    weights: Tensor
    """Float32 ``[K, R]``."""
    chosen: tuple[Tensor | None, ...]
    """For each LoRA the rows whose weight is not 0, int64 ``[n]``; None: all, with weight 1."""
    shares: tuple[Tensor, ...]
    """For each LoRA the weights of these rows, ``[n, 1]``."""
    _spread: dict[Hashable, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: Tensor, device: torch.device | str = "cpu") -> Rows:
        """Prepare weights ``[K, R]``."""
        rows = [w.nonzero()[:, 0] for w in weights]
        shares = tuple(w[own, None].to(device) for w, own in zip(weights, rows, strict=True))
        chosen = tuple(
            None if bool((w == 1).all()) else own.to(device) for w, own in zip(weights, rows, strict=True)
        )
        return cls(weights.to(device), chosen, shares)

    def count(self, k: int) -> int:
        """Return the number of rows on which LoRA ``k`` acts."""
        return len(self.shares[k])

    def spread(self, ranks: Sequence[tuple[int, int]], dtype: torch.dtype) -> Tensor:
        """Return the weights of every LoRA as often as its rank, ``[R, r_1 + r_2 + ...]``, for pairs of a LoRA's number
        and its rank."""
        key = tuple(ranks), dtype
        if key not in self._spread:
            columns = [self.weights[k, :, None].expand(-1, rank) for k, rank in ranks]
            self._spread[key] = torch.cat(columns, 1).to(dtype)
        return self._spread[key]


@dataclass(frozen=True)
class Box:
    """The part of a convolution's output on which a LoRA acts."""

    pictures: tuple[int, ...] | None
    """Numbers of the pictures of the batch; None: all."""
    top: int
    bottom: int
    """Exclusive."""
    left: int
    right: int
    """Exclusive."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """The weights of K LoRAs for the output of a convolution."""

    weights: Tensor
    """Float32 ``[K, B, h', w']``; B may be 1 for all pictures alike, and h' and w' 1 for all places alike."""
    boxes: tuple[Box | None, ...]
    """For each LoRA the box outside which its weights are 0; None: they are 0 everywhere."""
    full: tuple[bool, ...]
    """For each LoRA whether all its weights are 1."""

    @classmethod
    def of(cls, weights: Tensor, device: torch.device | str = "cpu") -> Pixels:
        """Prepare weights ``[K, B, h', w']``."""
        return cls(
            weights.to(device), tuple(_box(w) for w in weights), tuple(bool((w == 1).all()) for w in weights)
        )


def _box(weights: Tensor) -> Box | None:
    pictures, rows, columns = weights.nonzero().T
    if not len(pictures):
        return None
    some = tuple(pictures.unique().tolist())
    return Box(
        None if len(some) == len(weights) else some,
        int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1,
    )  # fmt: skip


class Cut(NamedTuple):
    """What is computed along one axis of a convolution to get some of its outputs."""

    inputs: slice
    """The inputs that are read."""
    outputs: slice
    """The outputs that these inputs give; some at the ends are wrong, where zeros stand for inputs."""
    right: slice
    """The wanted outputs among them, which are right."""


@dataclass(frozen=True)
class Reach:
    """How a convolution's output depends on its input, each for height and width."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    """Zeros that it puts around the input, pixels."""
    dilation: tuple[int, int] = (1, 1)

    def cut(self, axis: int, first: int, last: int, length: int) -> Cut:
        """Return what is computed along an axis to get the outputs ``first`` to ``last`` (exclusive).

        Args:
            axis: 0 for height, 1 for width.
            first, last: outputs.
            length: number of inputs.
        """
        stride, padding = self.stride[axis], self.padding[axis]
        reach = self.dilation[axis] * (self.kernel[axis] - 1)
        before = min(first, -(-padding // stride))  # outputs that read zeros where the cut begins
        start = (first - before) * stride
        stop = min(length, max(start + reach + 1, (last - 1) * stride + reach - padding + 1))
        count = (stop - start + 2 * padding - reach - 1) // stride + 1
        return Cut(
            slice(start, stop), slice(first - before, first - before + count),
            slice(before, before + last - first),
        )  # fmt: skip


class _Plan(NamedTuple):
    """How the sum is computed on some rows."""

    acting: Sequence[tuple[int, Delta]]
    """The LoRAs that have a weight there."""
    together: bool
    """Whether all are computed on all rows, in few operations."""


@dataclass(eq=False)
class Adapted:
    """What the LoRAs of a run add to one module."""

    deltas: Sequence[tuple[int, Delta]]
    """The LoRAs that change the module: their numbers in the run, and what they add."""
    reach: Reach | None = None
    """For a convolution that may be computed in a box; None: only as a whole."""
    _stacked: tuple[Tensor, Tensor] | None = None
    _plans: dict[Rows, _Plan] = field(default_factory=dict)

    def to_rows(self, y: Tensor, x: Tensor, rows: Rows) -> Tensor:
        """Return a linear layer's output ``y`` ``[..., C']`` for input ``x`` ``[..., C]``, with the LoRAs added."""
        plan = self._plans.get(rows)
        if plan is None:
            plan = self._plans[rows] = self._plan(rows, x, y)
        if not plan.acting:
            return y
        flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        if plan.together:
            return self._together(flat_y, flat_x, rows).view_as(y)
        out = flat_y
        for k, delta in plan.acting:
            own = rows.chosen[k]
            if own is None:
                out = out + delta(flat_x, flat_y)
                continue
            added = delta(flat_x[own], flat_y[own])
            added = added * rows.shares[k].to(added.dtype)
            out = out.index_add(0, own, added) if out is flat_y else out.index_add_(0, own, added)
        return out.view_as(y)

    def to_pixels(self, y: Tensor, x: Tensor, pixels: Pixels) -> Tensor:
        """Return a convolution's output ``y`` ``[B, C', h', w']`` for input ``x`` ``[B, C, h, w]``, with the LoRAs
        added."""
        out = y
        for k, delta in self.deltas:
            box = pixels.boxes[k]
            if box is None:
                continue
            if pixels.full[k]:
                out = out + delta(x, y)
                continue
            out = y.clone() if out is y else out
            if self.reach is not None and y.shape[-2:] == pixels.weights.shape[-2:]:
                _add_in_box(out, x, y, delta, pixels.weights[k, :, None].to(y.dtype), box, self.reach)
            else:
                out += delta(x, y) * _over(pixels.weights[k], y)
        return out

    def _plan(self, rows: Rows, x: Tensor, y: Tensor) -> _Plan:
        """Return how the sum is computed on some rows: all LoRAs on all rows, if that takes less time than each on its
        own rows."""
        acting = [(k, delta) for k, delta in self.deltas if rows.count(k)]
        everywhere = len(acting) == 1 and rows.chosen[acting[0][0]] is None
        pairs = [(k, delta) for k, delta in self.deltas if isinstance(delta, LowRank)]
        if everywhere or not acting or len(pairs) < len(self.deltas):
            return _Plan(acting, False)
        count = x.numel() // x.shape[-1]
        apart = sum(rows.count(k) * len(delta.down) for k, delta in pairs)
        together = count * sum(len(delta.down) for _, delta in pairs)
        saved = (_CALLS_EACH * len(acting) - _CALLS_TOGETHER) * _CALL.get(x.device.type, _CALL["cuda"])
        return _Plan(acting, (together - apart) * (x.shape[-1] + y.shape[-1]) < saved)

    def _together(self, y: Tensor, x: Tensor, rows: Rows) -> Tensor:
        pairs = [(k, delta) for k, delta in self.deltas if isinstance(delta, LowRank)]
        if self._stacked is None:
            self._stacked = (
                torch.cat([d.down for _, d in pairs]).T,
                torch.cat([d.up * d.scale for _, d in pairs], 1).T,
            )
        down, up = self._stacked
        spread = rows.spread([(k, len(d.down)) for k, d in pairs], x.dtype)
        return torch.addmm(y, torch.mm(x, down).mul_(spread), up)


def _over(weights: Tensor, y: Tensor) -> Tensor:
    """Return weights ``[B, h', w']`` so that they broadcast over ``y`` ``[B', C', ..., h, w]``, or, if they are alike
    everywhere, over ``[B', C', N]``."""
    sides = weights.shape[-2:] if y.ndim > 3 else (1,)
    return weights.to(y.dtype).view(len(weights), *[1] * (y.ndim - 1 - len(sides)), *sides)


def _add_in_box(
    out: Tensor, x: Tensor, y: Tensor, delta: Delta, weights: Tensor, box: Box, reach: Reach
) -> None:
    """Add a LoRA to ``out`` ``[B, C', h', w']`` in place, in its box alone."""
    down = reach.cut(0, box.top, box.bottom, x.shape[2])
    across = reach.cut(1, box.left, box.right, x.shape[3])
    some = slice(None) if box.pictures is None else list(box.pictures)
    place = slice(box.top, box.bottom), slice(box.left, box.right)
    added = delta(x[some, :, down.inputs, across.inputs], y[some, :, down.outputs, across.outputs])
    shares = weights if len(weights) == 1 else weights[some]
    out[(some, slice(None), *place)] += added[:, :, down.right, across.right] * shares[(..., *place)]
