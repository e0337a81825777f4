"""Repaint a region of a picture: what is cut out, how far each latent cell may change, and how the result is
pasted back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.masks import document_masks
from ..canvas.soft_masks import feather, grow
from ..document import LayerDocument
from ..errors import check_number, check_whole, invalid
from ..noise.change_map import noise_map, seen_noises
from .cropping import Crop, plan_crop
from .pasting import BLENDS, match_colours, paste


@dataclass(frozen=True, eq=False)
class Repaint:
    """A region of a picture that is to be sampled anew."""

    picture: Tensor
    """The picture before, ``[3, H, W]`` in 0..1."""
    mask: Tensor
    """``[H, W]``, 1 where the new shows whole, 0 where the picture stays equal to the bit, soft between."""
    change: Tensor
    """``[H, W]`` in 0..1: the change map in pixels. See :mod:`.noise`."""
    crop: Crop
    """The part of the picture that is sampled."""

    def cut(self) -> Tensor:
        """What goes to the VAE: ``[3, padded_height, padded_width]`` in 0..1."""
        return self.crop.cut(self.picture).clamp(0, 1)

    def cut_mask(self) -> Tensor:
        """The mask of what goes to the VAE, ``[padded_height, padded_width]``, for inpainting models."""
        return self.crop.cut(self.mask, "bilinear").clamp(0, 1)

    def cells(self, height: int, width: int) -> Tensor:
        """The change map of the latents, ``[height, width]`` in 0..1: each cell the mean of its pixels."""
        change = self.crop.cut(self.change, "bilinear").clamp(0, 1)
        return functional.adaptive_avg_pool2d(change[None], (height, width))[0]

    def paste(self, sampled: Tensor, blend: str = "gradient", colours: bool = True) -> Tensor:
        """The picture with what was sampled in place.

        Args:
            sampled: ``[..., 3, padded_height, padded_width]`` in 0..1, decoded.
            blend: how it joins its surroundings, one of :data:`~.blending.BLENDS`.
            colours: bring it, before that, to the colours of the picture, as measured where both show the
                same.

        Returns:
            ``[..., 3, H, W]``; where ``mask`` is 0, ``picture`` to the bit.

        Raises:
            LayeredError: ``sampled`` has another size than what was cut, or there is no such blend.
        """
        if blend not in BLENDS:
            raise invalid("blend", blend, ", ".join(BLENDS))
        flat = sampled.reshape(-1, *sampled.shape[-3:])
        picture, mask = self.picture.to(flat), self.mask.to(flat)
        box = (..., slice(self.crop.top, self.crop.bottom), slice(self.crop.left, self.crop.right))
        kept = picture.expand(len(flat), *picture.shape)
        changed = self.crop.put_back(flat, kept)
        if colours:
            same = (1 - mask[box]) * (self.change.to(flat)[box] == 0)
            changed[box] = torch.stack([match_colours(x, picture[box], same) for x in changed[box]])
        out = kept.clone()
        out[box] = paste(changed[box], kept[box], mask[box], blend)
        return out.reshape(*sampled.shape[:-2], *picture.shape[-2:])


def plan_repaint(
    picture: Tensor,
    region: Tensor,
    *,
    noise: float = 1.0,
    widen: int = 0,
    soften: int = 8,
    context: float = 0.5,
    side: int = 0,
    unit: int = 8,
) -> Repaint:
    """How a region of a picture is repainted.

    Args:
        picture: ``[3, H, W]`` in 0..1.
        region: ``[H, W]`` in 0..1, 1 where something new is wanted.
        noise: how far the region may change, 0 (nothing does) to 1.
        widen: pixels by which the region grows, -1024..1024; shrinks where negative.
        soften: width of the soft border around it, pixels, 0..1024. Beyond it nothing changes.
        context, side, unit: see :func:`~.cropping.plan_crop`.

    Raises:
        LayeredError: the region has another size than the picture, values that are not 0..1, or no pixel; or
            a number is out of range.
    """
    check_number("noise", noise, 0, 1)
    check_whole("grow", widen, -1024, 1024)
    check_whole("feather", soften, 0, 1024)
    if region.shape != picture.shape[-2:]:
        got, allowed = (
            f"{region.shape[-1]}x{region.shape[-2]}",
            f"the picture's, {picture.shape[-1]}x{picture.shape[-2]}",
        )
        raise invalid("mask size", got, allowed, "Scale one to the other's size first")
    if not bool(((region >= 0) & (region <= 1)).all()):
        raise invalid(
            "mask values",
            f"{float(region.min())}..{float(region.max())}",
            "0..1 and no NaN, 1 where the picture may change",
        )
    mask = feather(grow(region, widen), soften).clamp(0, 1)
    crop = plan_crop(mask, context=context, side=side, unit=unit)
    # With no noise nothing changes, not even by the way through the VAE.
    return Repaint(picture, mask if noise > 0 else torch.zeros_like(mask), noise * mask, crop)


def plan_document(
    picture: Tensor, document: LayerDocument, *, background: float = 1.0, blur: float = 0.0, unit: int = 8
) -> Repaint:
    """How a document's composite is repainted, each layer as far as its noise says: what is of noise 0 stays
    equal to the bit.

    Args:
        picture: the composite, ``[3, H, W]`` in 0..1.
        document: gives the noise of each layer.
        background, blur: see :func:`~.noise.noise_map`.
        unit: sides are padded to a multiple of this, pixels.
    """
    change = noise_map(document, background, blur)
    # A pixel that a frozen layer covers in part shows as much of the new.
    least = min((n for n in seen_noises(document, background)[1].tolist() if n > 0), default=1.0)
    return Repaint(
        picture, (change / least).clamp(0, 1), change, plan_crop(torch.ones_like(change), unit=unit)
    )


def region_of(document: LayerDocument, names: list[str]) -> Tensor:
    """Where the layers called ``names`` are seen, ``[H, W]`` in 0..1.

    Raises:
        LayeredError: no names, or one that is not there (the names there are, are said), or none of them is
            seen on the canvas.
    """
    if not names:
        raise invalid(
            "names of layers to redo", names, "at least one of " + ", ".join(repr(x.name) for x in document)
        )
    wanted = [document.layer(name) for name in names]
    shown, _ = document_masks(document)
    region = sum(
        (m for x, m in zip(document, shown, strict=True) if x in wanted),
        torch.zeros(document.height, document.width),
    ).clamp(0, 1)
    if not bool((region > 0).any()):
        raise invalid(
            f"layer {names[0]!r}: seen pixels",
            0,
            "at least one",
            "It is hidden, off the canvas or wholly covered: show it or redo what covers it",
        )
    return region


def tighten(region: Tensor, pixels: int) -> tuple[int, int]:
    """``widen`` and ``soften`` for :func:`plan_repaint` that keep the soft border inside the region, at most
    ``pixels`` wide.

    Less where the region is so small that nothing would be left of it.
    """
    while pixels and not bool((grow(region, -pixels) > 0.5).any()):
        pixels //= 2
    return -pixels, pixels
