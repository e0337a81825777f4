"""Cut a region with its surroundings out of a picture, at a size that suits the model, and put it back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import LayeredError, check_number, check_whole, invalid

LEAST_ASPECT = 0.5
"""A crop is widened, if the picture is large enough, until its shorter side is this share of the longer:
models sample thin strips badly."""


@dataclass(frozen=True)
class Crop:
    """A rectangle of a picture and the size at which it is sampled."""

    left: int
    """Left edge in the picture, pixels."""
    top: int
    """Top edge in the picture, pixels."""
    right: int
    """Right edge in the picture, pixels, exclusive."""
    bottom: int
    """Bottom edge in the picture, pixels, exclusive."""
    width: int
    """Width that the rectangle is scaled to, pixels; at least ``right - left``."""
    height: int
    """Height that the rectangle is scaled to, pixels; at least ``bottom - top``."""
    padded_width: int
    """Width after padding to a multiple that the model needs, pixels; the padding repeats the edge."""
    padded_height: int
    """Height after padding, pixels."""

    def cut(self, pictures: Tensor, mode: str = "bicubic") -> Tensor:
        """Return the crop of ``[..., H, W]`` as ``[..., padded_height, padded_width]``; pixels are exact if
        nothing is scaled. ``mode`` is torch's interpolation mode for scaling up."""
        part = pictures[..., self.top : self.bottom, self.left : self.right]
        flat = _resized(part.reshape(1, -1, *part.shape[-2:]), self.height, self.width, mode)
        flat = functional.pad(
            flat, (0, self.padded_width - self.width, 0, self.padded_height - self.height), mode="replicate"
        )
        return flat.reshape(*pictures.shape[:-2], *flat.shape[-2:])

    def cut_scaled(self, pictures: Tensor, width: int, height: int) -> Tensor:
        """Return the crop of pictures or masks ``[..., H', W']`` in 0..1 that show the picture of ``width`` x
        ``height`` pixels at another size, as :meth:`cut` does; bilinear, and clamped to 0..1."""
        across, down = pictures.shape[-1] / width, pictures.shape[-2] / height
        part = replace(
            self,
            left=math.floor(self.left * across),
            top=math.floor(self.top * down),
            right=math.ceil(self.right * across),
            bottom=math.ceil(self.bottom * down),
        )
        return part.cut(pictures, "bilinear").clamp(0, 1)

    def is_whole(self, width: int, height: int) -> bool:
        """Return whether the crop is all of a picture of that size, not scaled."""
        return (self.left, self.top, self.right, self.bottom) == (0, 0, width, height) == (
            0, 0, self.width, self.height
        )  # fmt: skip

    def place(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float] | None:
        """Return where a box (left, top, right, bottom) of the picture lies in the cut-out, pixels before
        padding; None if it lies outside."""
        across, down = self.width / (self.right - self.left), self.height / (self.bottom - self.top)
        left, top = (max(box[0], self.left) - self.left) * across, (max(box[1], self.top) - self.top) * down
        right = (min(box[2], self.right) - self.left) * across
        bottom = (min(box[3], self.bottom) - self.top) * down
        return (left, top, right, bottom) if left < right and top < bottom else None

    def put_back(self, part: Tensor, pictures: Tensor) -> Tensor:
        """Return ``pictures`` ``[..., H, W]`` with the sampled ``part``
        ``[..., padded_height, padded_width]`` scaled back into its rectangle.

        Raises:
            LayeredError: ``part`` has another size than the crop.
        """
        if tuple(part.shape[-2:]) != (self.padded_height, self.padded_width):
            got, allowed = f"{part.shape[-1]}x{part.shape[-2]}", f"{self.padded_width}x{self.padded_height}"
            raise invalid(
                "size of the sampled picture",
                got,
                allowed,
                "Decode the latents that were sampled for this crop, without scaling them",
            )
        inner = part[..., : self.height, : self.width]
        flat = _resized(
            inner.reshape(1, -1, *inner.shape[-2:]), self.bottom - self.top, self.right - self.left, "bicubic"
        )
        out = pictures.clone()
        out[..., self.top : self.bottom, self.left : self.right] = flat.reshape(
            *part.shape[:-2], *flat.shape[-2:]
        ).clamp(0, 1)
        return out


def plan_crop(mask: Tensor, *, context: float = 0.5, side: int = 0, unit: int = 8) -> Crop:
    """Choose the crop in which a region is sampled.

    Args:
        mask: ``[H, W]``, above 0 in the region.
        context: how much of the surroundings is included on every side, as a fraction of the region's longer
            side, 0..16.
        side: the picture side that the model was trained at, pixels: a smaller crop is scaled up to an area
            of ``side * side``, a larger one keeps its scale. 0: the whole picture, not scaled.
        unit: sides are padded to a multiple of this, pixels: the VAE's downscale.

    Raises:
        LayeredError: the mask touches no pixel, or a number is out of range.
    """
    check_number("context", context, 0, 16)
    check_whole("size", side, 0, 16_384)
    height, width = mask.shape[-2:]
    rows, columns = ((mask > 0).any(d).nonzero()[:, 0] for d in (1, 0))
    if not len(rows):
        raise LayeredError(
            "mask is 0 everywhere on the picture, so there is nothing to repaint. Name a layer that is seen, "
            "or move the mask"
        )
    if side == 0:
        return _scaled((0, 0, width, height), 1.0, unit)
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    longest = max(right - left, bottom - top)
    around = math.ceil(context * longest)
    least = math.ceil(LEAST_ASPECT * (longest + 2 * around))
    left, right = _widened(left, right, around, least, width)
    top, bottom = _widened(top, bottom, around, least, height)
    return _scaled(
        (left, top, right, bottom), max(1.0, side / math.sqrt((right - left) * (bottom - top))), unit
    )


def _widened(low: int, high: int, around: int, least: int, limit: int) -> tuple[int, int]:
    """Return ``low..high`` extended by ``around`` at both ends and to a length of at least ``least``, moved
    and cut to fit into ``0..limit``."""
    more = max(around, math.ceil((least - (high - low)) / 2))
    low, high = low - more, high + more
    if low < 0:
        low, high = 0, high - low
    if high > limit:
        low, high = low - (high - limit), limit
    return max(low, 0), high


def _scaled(box: tuple[int, int, int, int], scale: float, unit: int) -> Crop:
    width, height = round((box[2] - box[0]) * scale), round((box[3] - box[1]) * scale)
    return Crop(*box, width, height, -(-width // unit) * unit, -(-height // unit) * unit)


def _resized(pictures: Tensor, height: int, width: int, mode: str) -> Tensor:
    if pictures.shape[-2:] == (height, width):
        return pictures
    if not torch.is_floating_point(pictures):
        pictures = pictures.float()
    return functional.interpolate(pictures, (height, width), mode=mode, antialias=True)
