"""ICC profiles: the curves and primaries of RGB and grey ones, and the sRGB profile that files are written with.

Source: ICC.1:2010 (profiles of version 4.3), whose curves include those of version 2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Curve = Callable[[Tensor], Tensor]
"""A function from the stored numbers of a channel, 0..1, to linear light, 0..1."""

_PARAMETERS = {0: "g", 1: "gab", 2: "gabe", 3: "gabcd", 4: "gabcdef"}
"""The parameters of each type of parametric curve, in the order of the file."""

Matrix = np.ndarray[Any, Any]
"""A matrix, ``[3, 3]`` float64."""

Point = tuple[float, float]
"""CIE xy chromaticity."""

D65: Point = (0.3127, 0.329)
SRGB: tuple[Point, Point, Point] = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))
"""The chromaticities of red, green and blue in sRGB (IEC 61966-2-1)."""
_D50 = np.array([0.9642, 1.0, 0.8249])
"""XYZ of the white of the profiles' connection space."""
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@dataclass(frozen=True)
class Profile:
    """The part of a profile from which colours are computed without a table of colours."""

    curves: tuple[Curve, ...]
    """One for each channel: three of RGB, one of grey."""
    matrix: Matrix | None
    """Linear RGB to XYZ relative to D50, ``[3, 3]`` float64; None of a grey profile."""


def read_profile(data: bytes) -> Profile | None:
    """Return the curves and primaries of an RGB or grey profile; None if it is computed by tables, or for other
    colours.

    Raises:
        ValueError: a part that is needed is damaged.
    """
    try:
        count = struct.unpack_from(">I", data, 128)[0]
        entries = [struct.unpack_from(">4sII", data, 132 + 12 * k) for k in range(min(count, 200))]
        tags = {name: data[start : start + size] for name, start, size in entries}
        space, connection = data[16:20], data[20:24]
        if connection != b"XYZ " or any(name[1:] in (b"2B0", b"2B1") for name in tags):
            return None
        if space == b"RGB ":
            columns = [_xyz(tags[name]) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
            curves = [_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")]
            return Profile(tuple(curves), np.array(columns).T)
        return Profile((_curve(tags[b"kTRC"]),), None) if space == b"GRAY" else None
    except (struct.error, KeyError) as error:
        raise ValueError("a part is missing") from error


def _xyz(tag: bytes) -> tuple[float, ...]:
    return tuple(value / 65536 for value in struct.unpack_from(">3i", tag, 8))


def _curve(tag: bytes) -> Curve:
    """Return the curve of a ``curv`` or ``para`` tag."""
    if tag[:4] == b"curv":
        count = struct.unpack_from(">I", tag, 8)[0]
        if count == 0:
            return gamma_curve(1.0)
        if count == 1:
            return gamma_curve(struct.unpack_from(">H", tag, 12)[0] / 256)
        if len(tag) < 12 + 2 * count:
            raise ValueError("a curve is cut short")
        return sampled_curve(np.frombuffer(tag, ">u2", count, 12).astype(np.float32) / 65535)
    kind = struct.unpack_from(">H", tag, 8)[0]
    if tag[:4] != b"para" or kind not in _PARAMETERS:
        raise ValueError("a curve is of an unknown type")
    names = _PARAMETERS[kind]
    values = struct.unpack_from(f">{len(names)}i", tag, 12)
    p = {name: value / 65536 for name, value in zip(names, values, strict=True)}
    if kind in (1, 2):  # the power begins where its base does; below lies the constant
        p["d"], p["f"] = -p["b"] / p["a"] if p["a"] else 0.0, p.get("e", 0.0)
    return parametric_curve(p)


def gamma_curve(gamma: float) -> Curve:
    """Return the curve ``y = x ** gamma``."""
    return parametric_curve({"g": gamma})


def parametric_curve(p: Mapping[str, float]) -> Curve:
    """Return the curve ``y = (a x + b) ** g + e`` from ``x = d`` on, and ``y = c x + f`` below. ICC calls the
    parameters so; missing ones are 0, and ``a`` 1."""
    g, a, b, c, d, e, f = (p.get(name, 1.0 if name == "a" else 0.0) for name in "gabcdef")

    def curve(values: Tensor) -> Tensor:
        power = values if g == 1 and a == 1 and b == 0 else (values * a + b).clamp_min(0).pow(g)
        return torch.where(values >= d, power + e, values * c + f)

    return curve


def sampled_curve(samples: np.ndarray[Any, Any]) -> Curve:
    """Return the curve through equally spaced samples, float32 ``[N]``, linear between them and constant beyond
    0..1."""
    table = torch.from_numpy(samples)

    def curve(values: Tensor) -> Tensor:
        place = values.clamp(0, 1) * (len(table) - 1)
        lower = place.long().clamp_max(len(table) - 2)
        return torch.lerp(table[lower], table[lower + 1], place - lower)

    return curve


def primaries_matrix(white: Point, red: Point, green: Point, blue: Point) -> Matrix:
    """Return the matrix from linear RGB to XYZ relative to D50, ``[3, 3]`` float64, of chromaticities; the white is
    adapted by Bradford's method, as ICC does.

    Raises:
        ValueError: the chromaticities span no colours.
    """
    x, y = np.array([red, green, blue, white]).T
    if not (y > 1e-4).all():
        raise ValueError("a chromaticity is not of any colour")
    xyz = np.stack([x / y, np.ones_like(x), (1 - x - y) / y])
    if abs(np.linalg.det(xyz[:, :3])) < 1e-6:
        raise ValueError("the chromaticities lie on one line")
    matrix = xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])
    adapted: Matrix = _adaptation(white) @ matrix
    return adapted


def _adaptation(white: Point) -> Matrix:
    """Return Bradford's matrix from XYZ under ``white`` to XYZ under D50."""
    x, y = white
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ np.array([x / y, 1, (1 - x - y) / y]))
    change: Matrix = np.linalg.solve(_BRADFORD, scale[:, None] * _BRADFORD)
    return change


SRGB_MATRIX = primaries_matrix(D65, *SRGB)


def _write_profile() -> bytes:
    """Return a profile of sRGB of version 4; its date is fixed, so that equal files have equal bytes."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    def text(words: str) -> bytes:
        # UTF-16 without Python's codec, which would be one more module to load.
        letters = b"".join(b"\0" + bytes([letter]) for letter in words.encode("ascii"))
        return struct.pack(">4s4xII2s2sII", b"mluc", 1, 12, b"en", b"US", len(letters), 28) + letters

    curve = (
        b"para" + bytes(4) + struct.pack(">Hxx", 3) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    )
    parts: dict[bytes, bytes] = {
        b"desc": text("sRGB"),
        b"cprt": text("No copyright, use freely"),
        b"wtpt": b"XYZ " + bytes(4) + fixed(*_D50.tolist()),
        b"chad": b"sf32" + bytes(4) + fixed(*_adaptation(D65).flatten().tolist()),
        **{
            name: b"XYZ " + bytes(4) + fixed(*column.tolist())
            for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), SRGB_MATRIX.T, strict=True)
        },
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    start, places, table, body = 132 + 12 * len(parts), dict[bytes, int](), b"", b""
    for name, part in parts.items():
        if part not in places:  # the three curves are stored once
            places[part] = start + len(body)
            body += part + bytes(-len(part) % 4)
        table += struct.pack(">4sII", name, places[part], len(part))
    header = struct.pack(
        ">I4xI4s4s4s6H4s28x12s48x", start + len(body), 0x04300000, b"mntr", b"RGB ", b"XYZ ", 2000, 1, 1, 0, 0, 0,
        b"acsp", fixed(*_D50.tolist()),
    )  # fmt: skip
    return header + struct.pack(">I", len(parts)) + table + body


SRGB_PROFILE = _write_profile()
"""A profile of sRGB."""
