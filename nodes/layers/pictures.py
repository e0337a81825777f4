"""Check the shapes of the IMAGE and MASK that nodes are given. Every node takes the same ones.

ComfyUI's own nodes read a MASK of any number of dimensions, and other packs give them with a channel or
without a batch.
"""

from __future__ import annotations

from torch import Tensor

from ...layered_core.canvas.compositing import GREY, over_colour
from ...layered_core.errors import invalid

PICTURES = "[batch, height, width, 3 or 4]"
"""The shapes of an IMAGE: RGB, or RGBA with straight alpha."""

MASKS = "[batch, height, width], [height, width], or either with one channel"
"""The shapes of a MASK."""


def pictures(image: object, where: str = "image") -> Tensor:
    """Return an IMAGE ``[B, H, W, 3 or 4]`` as it is.

    Args:
        image: what was connected.
        where: the input, and the layer if there is one, for the error.

    Raises:
        LayeredError: it has another shape, or no pixel at all.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (3, 4) or not image.numel():
        raise invalid(
            f"{where}'s shape",
            _shape(image),
            PICTURES,
            "Give it three channels or four: a mask or grey picture becomes one with Convert Mask to Image",
        )
    return image


def opaque(
    image: object, where: str = "image", backdrop: Tensor | tuple[float, float, float] = GREY
) -> Tensor:
    """Return an IMAGE as ``[B, H, W, 3]`` float32: pictures with alpha are laid over ``backdrop``, a colour or colours
    ``[..., H, W, 3]``; others keep their pixels. Errors as :func:`pictures`."""
    pixels = pictures(image, where).float()
    return over_colour(pixels, backdrop) if pixels.shape[-1] == 4 else pixels


def masks(mask: object, where: str = "mask", least: int = 1) -> Tensor:
    """Return a MASK as ``[B, H, W]``.

    Args:
        mask: what was connected: ``[B, H, W]``, ``[H, W]``, ``[B, 1, H, W]`` or ``[B, H, W, 1]``.
        where: the input, and the layer if there is one, for the error.
        least: the least B.

    Raises:
        LayeredError: it has another shape, fewer masks than ``least``, or no pixel at all.
    """
    flat = mask
    if isinstance(mask, Tensor):
        if mask.ndim == 2:
            flat = mask[None]
        elif mask.ndim == 4 and 1 in (mask.shape[1], mask.shape[3]):
            flat = mask[:, 0] if mask.shape[1] == 1 else mask[..., 0]
    if not isinstance(flat, Tensor) or flat.ndim != 3 or len(flat) < least or not all(flat.shape[1:]):
        fix = "Take one channel of a picture with Convert Image to Mask"
        raise invalid(f"{where}'s shape", _shape(mask), MASKS, fix)
    return flat


def one_picture(image: object, where: str, fix: str, batch: str = "") -> Tensor:
    """Return the only picture of an IMAGE, ``[H, W, 3 or 4]``.

    Args:
        image: what was connected.
        where: the input, and the layer if there is one, for the error.
        fix: what to do with a batch.
        batch: what the error calls the number of pictures. Empty: "number of pictures" of ``where``.

    Raises:
        LayeredError: as :func:`pictures`, or there are several.
    """
    return _only(pictures(image, where), batch or f"{where}: number of pictures", fix)


def one_mask(mask: object, where: str = "mask", fix: str = "", batch: str = "") -> Tensor:
    """Return the only mask of a MASK, ``[H, W]`` float32 on the CPU; arguments and errors as
    :func:`one_picture`."""
    fix = fix or "Take one: Convert Mask to Image, Get Image from Batch, Convert Image to Mask"
    return _only(masks(mask, where), batch or f"{where}: number of masks", fix).detach().float().cpu()


def _only(batch: Tensor, where: str, fix: str) -> Tensor:
    if len(batch) != 1:
        raise invalid(where, len(batch), "1", fix)
    return batch[0]


def _shape(value: object) -> object:
    return list(value.shape) if isinstance(value, Tensor) else value
