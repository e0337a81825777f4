"""Convert colours of other spaces to sRGB: by ICC profiles, by chromaticities and gamma, from Lab and CMYK.

Colours are converted relative to white, with black point compensation, as Photoshop and Krita do. RGB and grey
profiles of curves and primaries are computed in floating point; others by Little CMS with 8 bits a channel.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..canvas.colour import linear_to_srgb
from ..progress import pause
from .file_layers import clean_text
from .icc_profiles import SRGB_MATRIX, SRGB_PROFILE, Curve, Matrix, read_profile

if TYPE_CHECKING:
    from PIL import ImageCms

_LITTLE_CMS = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour spaces of profiles that are read, and Pillow's names of them."""

_MAX_PROFILE_BYTES = 2**24
_AT_ONCE = 2**15
"""Pixels that are converted at once: as many as stay in a processor's cache."""


@dataclass(frozen=True)
class Conversion:
    """A conversion of the colours of one space to sRGB."""

    told: str
    """One line that tells the user of it."""
    to_srgb: Callable[[Tensor], Tensor]
    """A function from ``[C, N]``, 0..1, to sRGB ``[3, N]``, which exceeds 0..1 for colours that sRGB lacks. Grey has
    three equal channels; CMYK is ink, and 1 is full ink."""
    exact: bool = True
    """Whether it is computed in floating point; else with 8 bits a channel."""
    linear: bool = False
    """Whether the numbers are proportional to light."""


def to_srgb(pixels: Tensor, conversion: Conversion | None, bits: int, warnings: list[str] | None) -> Tensor:
    """Convert ``[H, W, C + 1]``, 0..1, whose last channel is alpha, to sRGB ``[H, W, 4]`` of the same depth; alpha is
    unchanged.

    Args:
        pixels: float32, contiguous; may be changed.
        conversion: None: the colours are sRGB, and the pixels are returned as they are.
        bits: depth of the pixels, 8 or 16, or 32 for floating point. The result has that depth.
        warnings: a line is added to it for what is lost, unless it has that line already. None: no matter.
    """
    if conversion is None:
        return pixels
    height, width, channels = pixels.shape
    out = pixels if channels == 4 else pixels.new_empty(height, width, 4)
    top, clipped = 2**bits - 1, False
    sources, targets = pixels.reshape(-1, channels), out.reshape(-1, 4)
    for start in range(0, height * width, _AT_ONCE):
        pause()
        source, target = sources[start : start + _AT_ONCE], targets[start : start + _AT_ONCE]
        alpha, colours = source[:, -1], conversion.to_srgb(source[:, :-1].T.contiguous())
        outside = (colours - 0.5).abs_().amax(0) > 0.5 + 1 / 255
        clipped = clipped or bool((outside & (alpha > 0)).any())
        colours.clamp_(0, 1)
        target[:, 3] = alpha
        target[:, :3] = (colours if bits == 32 else (colours * top).round_() / top).T
    if warnings is not None:
        rounded = "" if conversion.exact or bits == 8 else ", with 8 bits a channel"
        tell(warnings, conversion.told + rounded)
        if clipped:
            tell(warnings, f"{conversion.told}: colours that sRGB cannot show are clipped")
    return out


def tell(warnings: list[str], line: str) -> None:
    """Add a line unless it is there already."""
    if line not in warnings:
        warnings.append(line)


@lru_cache(maxsize=4)
def of_profile(data: bytes, space: str) -> Conversion | None:
    """Return the conversion from an ICC profile; None if it equals sRGB within 1/255.

    Args:
        data: the profile.
        space: the colours of the picture: ``RGB``, ``GRAY`` (three equal channels) or ``CMYK``. A grey picture may
            have an RGB profile.

    Raises:
        ValueError: the profile is damaged, or for other colours; the text says so.
    """
    from PIL import ImageCms  # takes memory that few files need

    if data == SRGB_PROFILE and space != "CMYK":
        return None
    if len(data) > _MAX_PROFILE_BYTES:
        raise ValueError(f"it has {len(data):,} bytes")
    try:
        cms = ImageCms.ImageCmsProfile(io.BytesIO(data))
        name = cms.profile.profile_description or ""
        stated = cms.profile.xcolor_space.strip()
    except (OSError, TypeError, ValueError) as error:
        raise ValueError("it is damaged") from error
    if stated not in _LITTLE_CMS or (space != stated and (space, stated) != ("GRAY", "RGB")):
        raise ValueError(f"it is for {clean_text(stated)} colours, and the picture has {space}")
    try:
        profile = read_profile(data)
        convert = _by_tables(cms, stated) if profile is None else _by_curves(profile.curves, profile.matrix)
    except (ValueError, ImageCms.PyCMSError) as error:
        raise ValueError(f"it is damaged: {error}") from error
    told = f"the colours are converted from the profile {clean_text(name)[:60].strip()!r} to sRGB"
    found = Conversion(told, convert, profile is not None, profile is not None and _is_linear(profile.curves))
    return found if stated == "CMYK" else _unless_srgb(found, stated == "GRAY")


def of_primaries(told: str, curve: Curve, matrix: Matrix) -> Conversion | None:
    """Return the conversion from RGB with a curve and primaries, a ``matrix`` of
    :func:`~.icc_profiles.primaries_matrix`; None if it equals sRGB within 1/255.

    Raises:
        ValueError: the curve gives no finite numbers.
    """
    found = Conversion(told, _by_curves((curve,), matrix), linear=_is_linear((curve,)))
    return _unless_srgb(found, grey=False)


def _by_curves(curves: tuple[Curve, ...], matrix: Matrix | None) -> Callable[[Tensor], Tensor]:
    """Return a conversion by curves, one for each channel or one for all, and a matrix to XYZ; None: grey."""
    numbers = np.eye(3)
    if matrix is not None:
        numbers = np.linalg.solve(SRGB_MATRIX, matrix)
        white = numbers.sum(1, keepdims=True)
        if (abs(white - 1) < 0.005).all():  # rounded numbers of the profile; white stays white
            numbers = numbers / white
        if (abs(numbers - np.eye(3)) < 1e-4).all():
            numbers = np.eye(3)  # the primaries of sRGB, rounded
    change = torch.from_numpy(numbers.astype(np.float32))
    dark = torch.stack([curve(torch.zeros(1)) for curve in curves]).expand(3, 1)
    # The darkest colour becomes black, as grey of its luminance: black point compensation.
    black = float(dark[1]) if matrix is None else float(matrix[1] @ dark[:, 0].numpy())
    if not 0 <= black < 0.5:
        raise ValueError("its curves do not begin at black")

    def convert(values: Tensor) -> Tensor:
        if len(curves) == 1:
            linear = curves[0](values)
        else:
            linear = torch.stack([curve(row) for curve, row in zip(curves, values, strict=True)])
        linear = linear if matrix is None else change @ linear
        return linear_to_srgb((linear - black) / (1 - black) if black else linear)

    return convert


def _by_tables(cms: ImageCms.ImageCmsProfile, space: str) -> Callable[[Tensor], Tensor]:
    """Return a conversion by Little CMS, which computes with 8 bits a channel."""
    from PIL import ImageCms

    mode = _LITTLE_CMS[space]
    transform = ImageCms.buildTransform(
        cms,
        ImageCms.ImageCmsProfile(io.BytesIO(SRGB_PROFILE)),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )

    def convert(values: Tensor) -> Tensor:
        numbers = (values[:1] if mode == "L" else values).clamp(0, 1).mul(255).round().to(torch.uint8)
        image = Image.frombytes(mode, (numbers.shape[1], 1), numbers.T.numpy().tobytes())
        made = torch.frombuffer(bytearray(transform.apply(image).tobytes()), dtype=torch.uint8)
        return made.reshape(-1, 3).T / 255

    return convert


def _unless_srgb(found: Conversion, grey: bool) -> Conversion | None:
    """Return the conversion; None if it changes no colour by more than 1/255."""
    steps = torch.linspace(0, 1, 256)
    colours = steps.expand(3, 256)
    if not grey:
        axis = torch.linspace(0, 1, 16)
        colours = torch.cat([colours, torch.cartesian_prod(axis, axis, axis).T], 1)
    made = found.to_srgb(colours)
    if not bool(torch.isfinite(made).all()):
        raise ValueError("its curves give no finite numbers")
    return None if bool(((made - colours).abs() <= 1 / 255).all()) else found


def _is_linear(curves: tuple[Curve, ...]) -> bool:
    steps = torch.linspace(0, 1, 256)
    return all(bool(((curve(steps) - steps).abs() < 0.01).all()) for curve in curves)


def _lab_to_srgb(values: Tensor, neutral: float) -> Tensor:
    """Convert CIELAB under D50, ``[3, N]``: L 0..1 is 0..100, and a and b are 0 at ``neutral`` and -128 at 0."""
    luminance = (values[0] * 100 + 16) / 116
    a, b = (values[1:] / neutral - 1) * 128
    f = torch.stack([luminance + a / 500, luminance, luminance - b / 200])
    return linear_to_srgb(_WHITE_TO_SRGB @ torch.where(f > 6 / 29, f**3, (f - 4 / 29) * (3 * (6 / 29) ** 2)))


_WHITE_TO_SRGB = torch.from_numpy(
    np.linalg.solve(SRGB_MATRIX, np.diag(SRGB_MATRIX.sum(1))).astype(np.float32)
)
"""From XYZ in which white is 1, 1, 1, to linear sRGB."""

LAB_8 = Conversion("the colours are converted from Lab to sRGB", lambda v: _lab_to_srgb(v, 128 / 255))
LAB_16 = Conversion(LAB_8.told, lambda v: _lab_to_srgb(v, 32768 / 65535))
"""Of 8 and 16 bits, as Photoshop stores them: a and b are 0 at 128 and at 32768."""

CMYK = Conversion(
    "the CMYK colours have no profile: they are converted to sRGB approximately, as ideal inks",
    lambda v: (1 - v[:3]) * (1 - v[3]),
)

LINEAR = Conversion("the colours are converted from linear light to sRGB", linear_to_srgb, linear=True)
