"""Convert pixels in 0..1 to the whole numbers that files hold, and back, a few rows at a time, so that what lies in
between stays in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..progress import pause

Numbers = np.ndarray[Any, Any]
"""Pixels as a file has them: unsigned whole numbers of 8 or 16 bits, or floats."""

TYPES: dict[str, Any] = {"u1": np.dtype("u1"), "u2": np.dtype("<u2"), "f4": np.dtype("<f4")}
"""The types of stored pixels by their names in files."""

SCALE = {"u1": 255.0, "u2": 65535.0}
"""The number that stands for 1."""

_BAND = 2**17
"""Number of values that are converted at a time."""


def pixel_type(values: Tensor) -> str:
    """Return the smallest of the types ``u1``, ``u2`` and ``f4`` that holds the values exactly."""
    array = _array(values)
    for name, white in SCALE.items():
        if all(_is_exact(array[rows], np.float32(white)) for rows in _bands(array)):
            return name
    return "f4"


def _is_exact(values: Numbers, white: np.float32) -> bool:
    numbers = values * white
    np.rint(numbers, out=numbers)
    numbers /= white
    return np.array_equal(numbers, values)


def to_numbers(values: Tensor, kind: str) -> Numbers:
    """Return values in 0..1 as numbers of a type, rounded and cut to what the type holds, in the same shape."""
    array = _array(values)
    if kind not in SCALE:
        return array.astype(TYPES[kind])
    out, white = np.empty(array.shape, TYPES[kind]), np.float32(SCALE[kind])
    for rows in _bands(array):
        part = array[rows] * white
        np.rint(part, out=part)
        out[rows] = np.clip(part, 0, white, out=part)
    return out


def to_values(numbers: Numbers) -> Tensor:
    """Return numbers as float32 values in 0..1, in the same shape; floats are taken as they are."""
    out = np.empty(
        numbers.shape, np.float32
    )  # of large pages, unlike torch's, so that it is filled in half the time
    for rows in _bands(out):
        write_values(numbers[rows], out[rows])
    return torch.from_numpy(out)


def write_values(numbers: Numbers, out: Numbers) -> None:
    """Write numbers as values in 0..1 into floats of the same shape."""
    np.divide(numbers, _white(numbers), out=out, dtype=np.float32)


def interleaved(planes: Sequence[Numbers | None]) -> Tensor:
    """Return planes of numbers, ``[H, W]``, as one picture of values in 0..1, ``[H, W, len(planes)]``; None is a plane
    of ones."""
    first = next(plane for plane in planes if plane is not None)
    white = _white(first)
    out = np.empty((*first.shape, len(planes)), np.float32)
    for rows in _bands(out):
        part = np.empty(out[rows].shape, first.dtype.newbyteorder("="))
        for place, plane in enumerate(planes):
            part[..., place] = white if plane is None else plane[rows]
        write_values(part, out[rows])
    return torch.from_numpy(out)


def _white(numbers: Numbers) -> np.float32:
    """Return the number that stands for 1."""
    return np.float32(1 if numbers.dtype.kind == "f" else 2 ** (8 * numbers.dtype.itemsize) - 1)


def _array(values: Tensor) -> Numbers:
    array: Numbers = values.detach().float().cpu().numpy()
    return array


def _bands(array: Numbers) -> Iterator[slice]:
    """Yield the rows of an array, as many at a time as a band has."""
    height = array.shape[0]
    step = max(1, _BAND * height // max(array.size, 1))
    for top in range(0, height, step):
        pause()
        yield slice(top, top + step)
