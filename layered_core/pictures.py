"""Pictures on disk: PNG and what else Pillow reads, to and from float tensors."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .document import MAX_SIDE
from .errors import LayeredError, invalid


def read_picture(path: Path) -> Tensor:
    """Read a picture as RGBA float32 ``[H, W, 4]``, straight alpha, 0..1; one without alpha is opaque. Turned as its EXIF says.

    Raises:
        LayeredError: the file is missing, no picture, cut short, or larger than ``MAX_SIDE`` a side.
    """
    if not path.is_file():
        raise invalid("picture", str(path), "an existing file", "Paths are relative to the document's folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if max(picture.size) > MAX_SIDE:
                    raise invalid(f"size of picture {path.name}", f"{picture.width}x{picture.height}", f"at most {MAX_SIDE} pixels a side")
                pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGBA"))
    except LayeredError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise LayeredError(f"picture {str(path)!r} cannot be read: {error}. Save it again as PNG") from error
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def read_mask(path: Path) -> Tensor:
    """Read a mask as float32 ``[H, W]``, 1 where the layer is: alpha if any pixel is transparent, else brightness (the greatest channel)."""
    pixels = read_picture(path)
    if bool((pixels[..., 3] < 1).any()):
        return pixels[..., 3].clone()
    return pixels[..., :3].amax(-1)


def to_image(pixels: Tensor) -> Image.Image:
    """``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]`` in 0..1 to an 8-bit Pillow image, rounded."""
    return Image.fromarray((pixels.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def write_picture(pixels: Tensor, path: Path) -> None:
    """Write ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]`` in 0..1 as an 8-bit PNG; the file appears whole or not at all."""
    image = to_image(pixels)
    write_whole(path, lambda file: image.save(file, "PNG"))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` on a temporary file beside ``path``, then rename it, so that ``path`` is never half-written."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
