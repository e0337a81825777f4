"""Plan the repainting of a region: the crop to sample, how far each latent cell may change, and the paste of
the result."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.masks import document_masks
from ..canvas.soft_masks import feather, grow
from ..document import LayerDocument
from ..errors import LayeredError, check_number, check_whole, invalid
from ..noise.change_map import noise_map, seen_noises
from .cropping import Crop, plan_crop
from .pasting import BLENDS, match_colours, paste


@dataclass(frozen=True, eq=False)
class Repaint:
    """A region of a picture that is to be sampled again."""

    picture: Tensor
    """The picture before repainting, ``[3, H, W]`` in 0..1."""
    mask: Tensor
    """``[H, W]``, 1 where only the sampled picture is shown, 0 where the picture stays exactly equal, soft
    between."""
    change: Tensor
    """The change map in pixels, ``[H, W]`` in 0..1. See :mod:`~layered_core.noise.change_map`."""
    crop: Crop
    """The part of the picture that is sampled."""

    @property
    def is_whole(self) -> bool:
        """Whether the whole picture is sampled, not scaled."""
        return self.crop.is_whole(self.picture.shape[-1], self.picture.shape[-2])

    def cut(self) -> Tensor:
        """Return the picture for the VAE to encode: ``[3, padded_height, padded_width]`` in 0..1."""
        return self.crop.cut(self.picture).clamp(0, 1)

    def cut_mask(self) -> Tensor:
        """Return the mask that belongs to :meth:`cut`, ``[padded_height, padded_width]``, for inpainting
        models."""
        return self.crop.cut(self.mask, "bilinear").clamp(0, 1)

    def cut_layout(self, pictures: Tensor) -> Tensor:
        """Return the same part of masks or pictures ``[..., H', W']`` in 0..1 that are laid out on the whole
        picture, at any size."""
        return self.crop.cut_scaled(pictures, self.picture.shape[-1], self.picture.shape[-2])

    def cut_regions(self, masks: Tensor) -> Tensor:
        """Return the same part of the masks ``[L, H', W']`` of words. Those that lie wholly where the picture
        may not change are 0: the picture itself says what is there."""
        part = self.cut_layout(masks)
        return part * (part * self.cut_mask().to(part) > 0).flatten(1).any(1)[:, None, None]

    def cells(self, height: int, width: int) -> Tensor:
        """Return the change map of the latents, ``[height, width]`` in 0..1: each cell is the mean of its
        pixels."""
        change = self.crop.cut(self.change, "bilinear").clamp(0, 1)
        return functional.adaptive_avg_pool2d(change[None], (height, width))[0]

    def paste(self, sampled: Tensor, blend: str = "gradient", colours: bool = True) -> Tensor:
        """Paste the sampled part into the picture.

        Args:
            sampled: ``[..., 3, padded_height, padded_width]`` in 0..1, decoded.
            blend: how it is blended with its surroundings, one of :data:`~.pasting.BLENDS`.
            colours: whether to match its colours to the picture's first, measured where both should be equal.

        Returns:
            ``[..., 3, H, W]``; exactly ``picture`` where ``mask`` is 0.

        Raises:
            LayeredError: ``sampled`` has another size than :meth:`cut` returned, or ``blend`` is unknown.
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
    """Plan the repainting of a region.

    Args:
        picture: ``[3, H, W]`` in 0..1.
        region: ``[H, W]`` in 0..1, 1 where the picture is to change.
        noise: how far the region may change, 0 (not at all) to 1.
        widen: pixels by which the region grows, -1024..1024; negative shrinks it.
        soften: width of the soft border around the region, pixels, 0..1024. Nothing changes beyond it.
        context, side, unit: see :func:`~.cropping.plan_crop`.

    Raises:
        LayeredError: the region has another size than the picture, values outside 0..1, or is 0 everywhere;
            or a number is out of range.
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
    # With noise 0 nothing may change, not even by encoding and decoding with the VAE.
    return Repaint(picture, mask if noise > 0 else torch.zeros_like(mask), noise * mask, crop)


def plan_document(
    picture: Tensor, document: LayerDocument, *, background: float = 1.0, blur: float = 0.0, unit: int = 8
) -> Repaint:
    """Plan the repainting of a document's composite, each layer as far as its noise says. Layers with noise 0
    stay exactly equal.

    Args:
        picture: the composite, ``[3, H, W]`` in 0..1.
        document: its layers have the noise.
        background, blur: see :func:`~layered_core.noise.change_map.noise_map`.
        unit: sides are padded to a multiple of this, pixels.
    """
    change = noise_map(document, background, blur)
    # Where a frozen layer covers a part of a pixel, only the other part of it may change.
    least = min((n for n in seen_noises(document, background)[1].tolist() if n > 0), default=1.0)
    return Repaint(
        picture, (change / least).clamp(0, 1), change, plan_crop(torch.ones_like(change), unit=unit)
    )


def region_of(document: LayerDocument, names: list[str]) -> Tensor:
    """Return where the layers called ``names`` are visible, ``[H, W]`` in 0..1.

    Raises:
        LayeredError: ``names`` is empty, a name does not exist (the error lists those that do), or none of
            the layers is visible on the canvas.
    """
    if not names:
        existing = ", ".join(repr(x.name) for x in document)
        raise LayeredError(f"names of layers to redo: none was given. Give at least one of {existing}")
    wanted = [document.layer(name) for name in names]
    shown, _ = document_masks(document)
    region = sum(
        (m for x, m in zip(document, shown, strict=True) if x in wanted),
        torch.zeros(document.height, document.width),
    ).clamp(0, 1)
    if not bool((region > 0).any()):
        raise LayeredError(
            f"layer {names[0]!r} has no visible pixel: it is hidden, off the canvas or wholly covered. Show "
            f"it, or redo the layer that covers it"
        )
    return region


def tighten(region: Tensor, pixels: int) -> tuple[int, int]:
    """Return ``widen`` and ``soften`` for :func:`plan_repaint` such that the soft border lies inside the
    region.

    The border is ``pixels`` wide, or less if the region is so small that nothing else would be left of it.
    """
    while pixels and not bool((grow(region, -pixels) > 0.5).any()):
        pixels //= 2
    return -pixels, pixels
