"""Draw the vector masks of a PSD: paths of Bézier curves, whose points are fractions of the canvas.

Format: Adobe Photoshop File Formats Specification, "Path resource format"; the operations of sub-paths as in
psd-tools (``psd_tools.psd.vector.Subpath``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from psd_tools.psd.layer_and_mask import LayerRecord
from psd_tools.psd.vector import InitialFillRule, Knot, Subpath
from torch import Tensor

from .limits import Budget
from .psd_masks import PixelMask, Rectangle
from .psd_records import VECTOR_MASKS

_FINE = 16
"""Lines of samples a row of pixels."""
_STEPS = np.linspace(0, 1, 24, endpoint=False)[:, None]
"""Where a curve is cut into straight lines."""
_FIXED = 1e-3
"""Pixels by which fixed-point numbers may miss a pixel's edge."""
_XOR, _OR, _WITHOUT, _AND = 0, 1, 2, 3


def vector_mask(record: LayerRecord, size: tuple[int, int], budget: Budget, where: str) -> PixelMask | None:
    """Return the layer's vector mask on a canvas of ``size`` (width, height); None if it has none or it is switched
    off.

    Raises:
        LayeredError: a limit is exceeded.
    """
    blocks = record.tagged_blocks
    setting = next((blocks.get_data(tag) for tag in VECTOR_MASKS if tag in blocks), None)
    if setting is None or setting.disable or setting.path is None:
        return None
    groups: list[list[np.ndarray]] = []
    operations: list[int] = []
    for item in setting.path:
        if isinstance(item, Subpath):
            if item.operation != -1 or not groups:  # -1: another contour of the same shape
                groups.append([])
                operations.append(item.operation)
            line = _flattened(item, size)
            if len(line) > 2:
                groups[-1].append(line)
    full = bool(operations) and operations[0] in (_WITHOUT, _AND)
    if not operations:
        full = any(isinstance(item, InitialFillRule) and item.value for item in setting.path)
    box = _box([line for group in groups for line in group], size)
    budget.take(f"the vector mask of {where}", max(1, box[2]), max(1, box[3]), 1)
    values, outside = torch.full((box[3], box[2]), float(full)), torch.tensor(float(full))
    for group, operation in zip(groups, operations, strict=True):
        values = _combined(values, _coverage(group, box), operation)
        outside = _combined(outside, torch.tensor(0.0), operation)
    if setting.invert:
        values, outside = 1 - values, 1 - outside
    return PixelMask(box[0], box[1], values, float(outside))


def _flattened(path: Subpath, size: tuple[int, int]) -> np.ndarray:
    """Return the points of a sub-path, ``[n, 2]``, x and y in canvas pixels; an open one is closed by a line."""
    knots = [item for item in path if isinstance(item, Knot)]
    scale = np.array(size, np.float64)
    pieces = []
    for first, second in zip(knots, knots[1:] + knots[:1], strict=True):
        a, b, c, d = (
            np.array(p[::-1]) * scale for p in (first.anchor, first.leaving, second.preceding, second.anchor)
        )
        if second is knots[0] and not path.is_closed():
            pieces.append(a[None])
            continue
        t, s = _STEPS, 1 - _STEPS
        pieces.append(s**3 * a + 3 * s**2 * t * b + 3 * s * t**2 * c + t**3 * d)
    return np.concatenate(pieces) if pieces else np.zeros((0, 2))


def _box(lines: Sequence[np.ndarray], size: tuple[int, int]) -> Rectangle:
    """Return the part of the canvas that contains all points."""
    if not lines:
        return 0, 0, 0, 0
    points = np.concatenate(list(lines))
    low, high = points.min(0), points.max(0)
    left, top = (min(max(0, math.floor(v + _FIXED)), s) for v, s in zip(low, size, strict=True))
    right, bottom = (min(max(0, math.ceil(v - _FIXED)), s) for v, s in zip(high, size, strict=True))
    return left, top, max(0, right - left), max(0, bottom - top)


def _coverage(lines: Sequence[np.ndarray], box: Rectangle) -> Tensor:
    """Return how much of each pixel of ``box`` the contours enclose by the even-odd rule, ``[h, w]``, 0..1: exact along
    each of ``_FINE`` lines a row."""
    left, top, width, height = box
    starts = np.concatenate([line - (left, top) for line in lines] or [np.zeros((0, 2))])
    ends = np.concatenate([np.roll(line, -1, 0) - (left, top) for line in lines] or [np.zeros((0, 2))])
    # The lines of samples, at (k + 0.5) / _FINE, that each edge crosses.
    low, high = (
        np.ceil(v * _FINE - 0.5) for v in (np.minimum(starts, ends)[:, 1], np.maximum(starts, ends)[:, 1])
    )
    low, high = (v.clip(0, height * _FINE).astype(np.int64) for v in (low, high))
    edge = np.repeat(np.arange(len(starts)), high - low)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(high - low) - (high - low), high - low) + low[edge]
    share = ((line + 0.5) / _FINE - starts[edge, 1]) / (ends[edge, 1] - starts[edge, 1])
    x = (starts[edge, 0] + share * (ends[edge, 0] - starts[edge, 0])).clip(0, width)
    order = np.lexsort((x, line))
    line, x = line[order], x[order]
    # Every line has an even number of crossings, so that entering and leaving alternate over all of them.
    sign = np.where(np.arange(len(line)) % 2 == 0, 1.0, -1.0) / _FINE
    column = np.floor(x).astype(np.int64)
    changes = np.zeros((height, width + 2))
    np.add.at(changes, (line // _FINE, column), sign * (1 - x + column))
    np.add.at(changes, (line // _FINE, column + 1), sign * (x - column))
    return torch.from_numpy(changes.cumsum(1)[:, :width].clip(0, 1)).float()


def _combined(values: Tensor, shape: Tensor, operation: int) -> Tensor:
    if operation == _XOR:
        return values + shape - 2 * values * shape
    if operation == _WITHOUT:
        return (values - shape).clamp_min(0)
    if operation == _AND:
        return values * shape
    return values + shape - values * shape
