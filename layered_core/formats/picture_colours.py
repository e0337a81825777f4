"""The colours of pictures that Pillow opens: all bits that the file has, and the space that it states."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from ..canvas.colour import srgb_to_linear
from ..errors import LayeredError
from .colour_spaces import CMYK, LAB_8, Conversion, of_primaries, of_profile, tell
from .icc_profiles import D65, SRGB, Curve, Point, gamma_curve, primaries_matrix

_LOWER = {
    f"{kind};16{order}": f"{kind};16{other}"
    for kind in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
"""Pillow's names for colours of 16 bits, of which it reads the upper 8, to the names by which it reads the lower 8 of
the same bytes."""

_GREY_AND_ALPHA = "LA;16B"

_PHOTOMETRIC, _BITS, _PLANES = 262, 258, 284
"""Tags of a TIFF: how its numbers are meant (0: grey, and 0 is white), the bits of each channel, and whether each
channel lies apart (2)."""

_INTEROPERABILITY = 0xA005
"""The part of the EXIF data in which cameras state Adobe RGB, as R03 (DCF 2.0)."""

_PRIMARIES: dict[int, tuple[Point, Point, Point]] = {
    1: SRGB,
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),
    12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
}
"""Primaries under D65 by their number in ITU-T H.273: of BT.709, BT.2020 and Display P3."""
_CURVES: dict[int, Curve] = {4: gamma_curve(2.2), 8: gamma_curve(1), 13: srgb_to_linear}
"""Curves by the number of their transfer characteristics in ITU-T H.273."""
_ADOBE_RGB: tuple[Point, Point, Point] = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))

_GREY_MODES = ("1", "L", "LA", "I", "F")
"""Pillow's modes of grey, without what follows a semicolon."""


def deep_numbers(
    picture: Image.Image, file: BinaryIO, name: str, warnings: list[str] | None
) -> tuple[Tensor, int] | None:
    """Read a picture that Pillow itself would cut to 8 bits or convert to RGB without its profile; None if it is no
    such.

    Args:
        picture: the picture, not yet decoded.
        file: the file that it was opened from.
        name: its name in errors.
        warnings: a line is added to it if 8 of 16 bits are read.

    Returns:
        ``[H, W, C + 1]``, 0..1: grey as three equal channels, RGB, CMYK (1 is full ink) or Lab, then alpha; and the
        bits of a channel, where 32 is floating point.

    Raises:
        LayeredError: the white of the numbers is not known.
    """
    if picture.mode.startswith(("I", "F")):
        return _deep_grey(picture, name), 32 if picture.mode == "F" else 16
    tiles = picture.tile if isinstance(picture, ImageFile.ImageFile) else []
    kinds = {_kind(tile.args) for tile in tiles}
    if kinds == {_GREY_AND_ALPHA}:
        values = _levels(picture, file, {_GREY_AND_ALPHA: "RGBA"})  # the bytes as they lie in the file
        grey, alpha = values[..., 0] * 256 + values[..., 1], values[..., 2] * 256 + values[..., 3]
        return torch.from_numpy(np.stack([grey, grey, grey, alpha], -1)) / 65535, 16
    wide = picture.format == "TIFF" and max(_tags(picture).get(_BITS, (8,))) > 8
    apart = wide and _tags(picture).get(_PLANES) == 2
    if apart and kinds <= {"R", "G", "B", "A", "X", "C", "M", "Y", "K"}:
        raise LayeredError(
            f"picture {name!r} has 16 bits a channel and each channel apart, without compression, which Pillow reads "
            f"wrongly. Save it as PNG"
        )
    if kinds and kinds <= _LOWER.keys() and not apart:
        values = _levels(picture, file, _LOWER)
        values += np.asarray(ImageOps.exif_transpose(picture)) * np.float32(256)
        alpha = values[..., 3:] if values.shape[-1] == 4 else 65535 * _opaque(values, picture)
        return torch.from_numpy(np.concatenate([values[..., :3], alpha], -1)) / 65535, 16
    if warnings is not None and wide:
        tell(warnings, f"picture {Path(name).name!r} has more than 8 bits a channel, of which 8 are read")
    if picture.format == "PSD" and picture.mode == "1":  # 1 is black there, which Pillow does not heed
        values = 1 - np.asarray(picture).astype(np.float32)
        return torch.from_numpy(np.stack([values, values, values, np.ones_like(values)], -1)), 8
    if picture.mode in ("CMYK", "LAB"):
        # Of a whole Lab picture Pillow gives a and b as signed numbers.
        values = np.stack([np.asarray(band) for band in ImageOps.exif_transpose(picture).split()], -1)
        return torch.from_numpy(np.concatenate([values, np.full_like(values[..., :1], 255)], -1)) / 255, 8
    return None


def _kind(args: object) -> object:
    return args[0] if isinstance(args, tuple) and args else args


def _renamed(args: object, kinds: Mapping[Any, str]) -> Any:
    return (kinds[args[0]], *args[1:]) if isinstance(args, tuple) else kinds[args]


def _tags(picture: Image.Image) -> Mapping[int, Any]:
    return picture.tag_v2  # type: ignore[attr-defined,no-any-return]  # every TIFF has it


def _levels(picture: Image.Image, file: BinaryIO, kinds: Mapping[Any, str]) -> np.ndarray[Any, Any]:
    """Decode the picture's file again, with other names of how its bytes are meant: float32 of 0..255."""
    picture.load()
    file.seek(0)
    with Image.open(file, formats=[picture.format or ""]) as again:
        assert isinstance(again, ImageFile.ImageFile)
        again.tile = [tile._replace(args=_renamed(tile.args, kinds)) for tile in again.tile]
        return np.asarray(ImageOps.exif_transpose(again)).astype(np.float32)


def _deep_grey(picture: Image.Image, name: str) -> Tensor:
    """Read grey of 16 bits or floating point, which Pillow's own conversion cuts off at whole numbers up to 255."""
    values = np.asarray(ImageOps.exif_transpose(picture)).astype(np.float32)[..., None]
    white, kind = (1.0, "floating point") if picture.mode == "F" else (65535.0, "more than 16 bits")
    least, most = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if picture.mode == "F" and not -1e-3 <= least <= most <= 1 + 1e-3 or most > white * (1 + 1e-3):
        raise LayeredError(
            f"picture {name!r} has grey values of {kind}, from {least:g} to {most:g}; allowed: 0..{white:g}, where "
            f"{white:g} is white. Scale them, or save it as PNG with 8 or 16 bits"
        )
    grey = (values / white).clip(0, 1)
    if picture.format == "TIFF" and _tags(picture).get(_PHOTOMETRIC) == 0:
        grey = 1 - grey  # Pillow inverts such pictures with 8 bits itself
    return torch.from_numpy(np.concatenate([grey, grey, grey, _opaque(values, picture)], -1))


def _opaque(values: np.ndarray[Any, Any], picture: Image.Image) -> np.ndarray[Any, Any]:
    """Return an alpha of 1, and 0 where ``values``, ``[H, W, C]``, are the one colour that a PNG calls transparent."""
    clear = picture.info.get("transparency")
    if not isinstance(clear, (int, tuple)):
        return np.ones_like(values[..., :1])
    return np.where((values == np.array(clear)).all(-1, keepdims=True), 0, 1).astype(np.float32)


def stated_conversion(
    picture: Image.Image, file: BinaryIO, warnings: list[str] | None, managed: bool = True
) -> Conversion | None:
    """Return the conversion to sRGB from the space that a decoded picture states; None if that is sRGB, or nothing is
    stated.

    Known are ICC profiles, of a PNG also cICP, gAMA and cHRM, and of a photograph the mark of Adobe RGB in its EXIF
    data. Those that are damaged are left out, and a line is added to ``warnings``. If the colours are not ``managed``,
    only those other than grey and RGB are converted.
    """
    plain = {"CMYK": CMYK, "LAB": LAB_8}.get(picture.mode)
    space = (
        "CMYK" if picture.mode == "CMYK" else "GRAY" if picture.mode.split(";")[0] in _GREY_MODES else "RGB"
    )
    try:
        if picture.mode == "LAB" or not managed:
            return plain
        coded = _chunk(file, b"cICP") if picture.format == "PNG" else None
        if coded is not None:
            return _of_code_points(coded)
        if "icc_profile" in picture.info:
            data = picture.info["icc_profile"]
            if not isinstance(data, bytes):
                raise ValueError("it is damaged")
            return of_profile(data, space) if data else plain
        if picture.format == "PNG":
            return None if "srgb" in picture.info else _of_gamma(picture.info)
        if plain is None and picture.format in ("JPEG", "MPO", "TIFF") and _is_adobe_rgb(picture):
            matrix = primaries_matrix(D65, *_ADOBE_RGB)
            return of_primaries(
                "the colours are converted from Adobe RGB to sRGB", gamma_curve(563 / 256), matrix
            )
    except ValueError as error:
        if warnings is not None:
            tell(warnings, f"the colour profile is left out: {error}")
    return plain


def _chunk(file: BinaryIO, wanted: bytes) -> bytes | None:
    """Return the first bytes of a chunk of a PNG that lies before the pixels; None if there is none."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == wanted:
            return file.read(min(length, 100))
        if kind == b"IDAT":
            break
        file.seek(length + 4, 1)
    return None


def _of_code_points(data: bytes) -> Conversion | None:
    """Return the conversion of a cICP chunk: primaries, curve, matrix, full range."""
    if len(data) < 4 or data[0] not in _PRIMARIES or data[1] not in _CURVES or data[2:4] != b"\0\1":
        raise ValueError(
            f"its numbers {', '.join(map(str, data[:4]))} are not known (high dynamic range, for one)"
        )
    matrix = primaries_matrix(D65, *_PRIMARIES[data[0]])
    told = f"the colours are converted from cICP {data[0]}, {data[1]} to sRGB"
    return of_primaries(told, _CURVES[data[1]], matrix)


def _of_gamma(info: Mapping[Any, Any]) -> Conversion | None:
    """Return the conversion of a PNG's gAMA and cHRM chunks. A gamma of 1 / 2.2 stands for the curve of sRGB, as in
    libpng and most programs that write it."""
    if "gamma" not in info and "chromaticity" not in info:
        return None
    gamma, places = info.get("gamma", 1 / 2.2), info.get("chromaticity", ())
    if not 0.1 <= gamma <= 4 or len(places) not in (0, 8):
        raise ValueError(f"its gamma of {gamma:g} and {len(places)} chromaticities cannot be meant")
    curve = srgb_to_linear if abs(gamma * 2.2 - 1) < 0.01 else gamma_curve(1 / gamma)
    matrix = (
        primaries_matrix(*zip(places[::2], places[1::2], strict=True))
        if places
        else primaries_matrix(D65, *SRGB)
    )
    words = f"gamma {gamma:g}" + " and chromaticities of its own" * bool(places)
    return of_primaries(f"the colours are converted from {words} to sRGB", curve, matrix)


def _is_adobe_rgb(picture: Image.Image) -> bool:
    try:
        return picture.getexif().get_ifd(_INTEROPERABILITY).get(1) == "R03"
    except Exception:  # Pillow raises any exception for broken EXIF data
        return False
