"""Read and write pictures: PNG and other formats that Pillow reads, to and from float tensors."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import LayeredError, invalid
from ..progress import row_bands, watched
from .colour_spaces import to_srgb
from .icc_profiles import SRGB_PROFILE
from .limits import Budget, Limits
from .part_files import part_file
from .picture_colours import deep_numbers, stated_conversion
from .pixel_numbers import to_numbers, write_values

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "TGA", "AVIF", "PSD")
"""Formats that are read, by Pillow's names. Others of Pillow's are left out, as some start other programs."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError)
"""What Pillow raises on broken files."""

SINGLE = ("MPO", "PSD")
"""Formats in which the first picture is the whole one; the others are previews, views or layers of it."""


def read_picture(
    source: Path, budget: Budget | None = None, warnings: list[str] | None = None, managed: bool = True
) -> Tensor:
    """Read a picture as sRGB with alpha, float32 ``[H, W, 4]``, straight alpha, 0..1, rotated as its EXIF data say.
    Other colours are converted by the picture's profile. A picture without alpha is opaque. Of an animation or a file
    of several pages the first picture is read. Lines about what is left out or converted are added to ``warnings``.

    ``managed``: whether the profile counts; if not, the numbers are taken as they are.

    Raises:
        LayeredError: the file is missing, no picture or cut short, has numbers whose white is not known, or exceeds
            the limits of ``budget``.
    """
    if not os.path.isfile(source):
        raise LayeredError(
            f"picture {str(source)!r} was not found. Give the path of an existing file, relative to the "
            f"document's folder"
        )
    return decode_picture(source, str(source), budget or Budget(Limits()), FORMATS, warnings, managed)


def decode_picture(
    source: Path | BinaryIO,
    name: str,
    budget: Budget,
    formats: tuple[str, ...] = FORMATS,
    warnings: list[str] | None = None,
    managed: bool = True,
) -> Tensor:
    """Read a picture as :func:`read_picture` does, from a path or an open file, in one of ``formats``; errors
    call it ``name``."""
    Image.init()
    try:
        if isinstance(source, Path):
            # From a path, Pillow maps TIFF files into memory and garbles those that lie on a side.
            with watched(source.open("rb"), source.stat().st_size) as file:
                return decode_picture(file, name, budget, formats, warnings, managed)
        with catch_warnings():
            simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source, formats=[f for f in formats if f in Image.OPEN]) as picture:
                budget.take(f"picture {Path(name).name}", *picture.size)
                if (
                    warnings is not None
                    and picture.format not in SINGLE
                    and getattr(picture, "is_animated", False)
                ):
                    warnings.append(
                        f"picture {Path(name).name!r} has several frames or pages; only the first is read"
                    )
                numbers, bits = deep_numbers(picture, source, name, warnings) or (_numbers(picture), 8)
                conversion = stated_conversion(picture, source, warnings, managed)
                return to_srgb(numbers, conversion, bits, warnings)
    except LayeredError:
        raise
    except UnidentifiedImageError:
        raise LayeredError(
            f"picture {name!r} cannot be read: it is damaged, or none of {', '.join(formats)}. Save it again as PNG"
        ) from None
    except _BROKEN as error:
        raise LayeredError(f"picture {name!r} cannot be read: {error}. Save it again as PNG") from error


def picture_size(path: Path) -> tuple[int, int] | None:
    """Return the width and height that a picture file states; None if it cannot be read, of which
    :func:`read_picture` tells."""
    Image.init()
    try:
        with catch_warnings():
            simplefilter("ignore", Image.DecompressionBombWarning)
            with (
                path.open("rb") as file,
                Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN]) as picture,
            ):
                return picture.size
    except (*_BROKEN, UnidentifiedImageError):
        return None


def read_mask(path: Path, budget: Budget | None = None, warnings: list[str] | None = None) -> Tensor:
    """Read a mask as float32 ``[H, W]``, 1 where the layer is: the alpha if any pixel is transparent, else
    the brightness (the greatest channel), whatever profile the picture has."""
    pixels = read_picture(path, budget, warnings, managed=False)
    if bool((pixels[..., 3] < 1).any()):
        return pixels[..., 3].clone()
    return pixels[..., :3].amax(-1)


def _numbers(picture: Image.Image) -> Tensor:
    ImageOps.exif_transpose(picture, in_place=True)
    return from_image(picture)


def from_image(image: Image.Image) -> Tensor:
    """Convert a Pillow image to RGBA float32 ``[H, W, 4]``, 0..1; opaque if it has no alpha."""
    out = np.empty((image.height, image.width, 4), np.float32)
    for rows in row_bands(image.height, image.width, 4):
        whole = rows.stop - rows.start == image.height
        part = image if whole else image.crop((0, rows.start, image.width, rows.stop))
        write_values(np.asarray(part if part.mode == "RGBA" else part.convert("RGBA")), out[rows])
    return torch.from_numpy(out)


def to_image(pixels: Tensor) -> Image.Image:
    """Convert ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]`` in 0..1 to an 8-bit Pillow image, rounded."""
    return Image.fromarray(to_numbers(pixels, "u1"))


def save_png(image: Image.Image, file: BinaryIO, **options: Any) -> None:
    """Save a Pillow image as PNG, if it has colours with the profile of sRGB; ``options`` are Pillow's."""
    profile = None if image.mode == "L" else SRGB_PROFILE
    image.save(file, "PNG", icc_profile=profile, **options)


def write_picture(pixels: Tensor, path: Path) -> None:
    """Write ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]`` in 0..1 as an 8-bit PNG; the file appears complete or
    not at all."""
    image = to_image(pixels)
    write_whole(path, lambda file: save_png(image, file))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` with a temporary file beside ``path``, then rename that file, so that ``path`` is never
    incomplete.

    Raises:
        LayeredError: the path is a folder or cannot be a file's, or writing fails, as on a full disk.
    """
    check_output(path)
    try:
        with part_file(path) as file:
            write(watched(file))
    except OSError as error:  # its text may name the temporary file
        raise unwritable("file", path, error) from None


def check_output(path: Path, folder: bool = False) -> None:
    """Raise :class:`LayeredError` if a file cannot have this path, or, unless it is to be a ``folder``, a
    folder has it."""
    try:
        os.lstat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            why = getattr(error, "strerror", None) or "it has characters that no file name has"
            raise LayeredError(
                f"output {path.name[:40]!r} cannot be a file's name: {why}. Give another"
            ) from None
    if not folder and os.path.isdir(path):
        raise invalid(
            "output file", str(path), "a name that no folder has", "Give a file name in that folder"
        )


def unwritable(what: str, path: Path, error: OSError) -> LayeredError:
    """Return the error for a file or folder that the system refuses to write; it does not name temporary
    files."""
    fix = {
        errno.ENOSPC: "Free some space, or write to another disk",
        errno.EACCES: "Write to a folder in which you may write",
    }
    text = f"{what} {str(path)!r} cannot be written: {error.strerror or error}"
    return LayeredError(text + (f". {fix[error.errno]}" if error.errno in fix else ""))
