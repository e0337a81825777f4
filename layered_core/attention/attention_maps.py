"""Attention maps: record which pixels attend to a layer's words; heat maps and masks made from the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from ..canvas.masks import mask_pyramid
from ..canvas.placement import place
from ..canvas.resizing import resized
from ..document import Layer, LayerDocument
from ..formats.pictures import to_image


class AttentionMaps:
    """The mean share of attention that each layer's words got at each pixel, over all blocks and steps so
    far.

    As in DAAM (Tang et al., arXiv 2210.04885), cross-attention is summed over heads, blocks and steps at a
    common size.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Start an empty record for the layers called ``names``."""
        self.names = tuple(names)
        self.part: object = None
        """The host's note of which part of a picture the run samples; None: all of it."""
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._counts: dict[tuple[int, int], int] = {}

    def clear(self, part: object = None) -> None:
        """Empty the record before a new run over ``part`` of a picture."""
        self.part = part
        self._sums.clear()
        self._counts.clear()

    def add(self, size: tuple[int, int], shares: Tensor) -> None:
        """Add one cross-attention to the record: ``shares`` ``[B, L, h w]`` of a feature map of ``size`` (h,
        w)."""
        shares = shares.detach().float().cpu().view(*shares.shape[:2], *size)
        self._sums[size] = self._sums[size] + shares if size in self._sums else shares
        self._counts[size] = self._counts.get(size, 0) + 1

    def laid_out(self, size: tuple[int, int], lay: Callable[[Tensor], Tensor]) -> AttentionMaps:
        """Return a record of the whole picture: ``lay`` gets the mean ``[B, L, h, w]`` at ``size`` and returns
        it as a part of ``[B, L, H, W]``."""
        whole, out = lay(self.mean(size)), AttentionMaps(self.names)
        shape = whole.shape[-2], whole.shape[-1]
        out._sums[shape], out._counts[shape] = whole, 1
        return out

    def __bool__(self) -> bool:
        return bool(self._sums)

    def mean(self, size: tuple[int, int]) -> Tensor:
        """Return the mean ``[B, L, h, w]`` in 0..1 at ``size`` (h, w). Every cross-attention counts once;
        coarse ones are enlarged bilinearly."""
        total = sum(resized(s, *size) for s in self._sums.values())
        return torch.as_tensor(total) / sum(self._counts.values())


def heat_map(share: Tensor, backdrop: Tensor) -> Tensor:
    """Draw a map over a dimmed picture: transparent at 0, through red and yellow to white at the map's
    maximum.

    Args:
        share: the map ``[H, W]``, 0 or more.
        backdrop: RGB ``[H, W, 3]`` in 0..1.

    Returns:
        RGB ``[H, W, 3]`` in 0..1.
    """
    heat = share / share.max().clamp_min(1e-8)
    glow = torch.stack([(3 * heat).clamp(0, 1), (3 * heat - 1).clamp(0, 1), (3 * heat - 2).clamp(0, 1)], -1)
    veil = heat.clamp(0, 1).sqrt()[..., None]
    grey = backdrop.mean(-1, keepdim=True) * 0.6
    return grey * (1 - veil) + glow * veil


def heat_pictures(maps: AttentionMaps, pictures: Tensor, side: int = 512) -> Tensor:
    """Draw a labelled :func:`heat_map` for every layer of every picture, pictures in order, layers back to
    front.

    Args:
        maps: the record of a run.
        pictures: the pictures of the run, RGB ``[B, H, W, 3]`` in 0..1; pictures beyond the run's batch size
            are ignored.
        side: longer side of the result, pixels.

    Returns:
        ``[B L, H', W', 3]`` in 0..1.
    """
    height, width = (max(1, round(s * side / max(pictures.shape[1:3]))) for s in pictures.shape[1:3])
    shares = maps.mean((height, width))
    backdrops = resized(pictures.permute(0, 3, 1, 2), height, width).permute(0, 2, 3, 1)
    shown = [
        _labelled(heat_map(share, backdrop), f"{i + 1} {name}")
        for backdrop, layers in zip(backdrops, shares, strict=False)
        for i, (name, share) in enumerate(zip(maps.names, layers, strict=True))
    ]
    return torch.stack(shown)


def _labelled(picture: Tensor, text: str) -> Tensor:
    image = to_image(picture)
    size = max(10, image.height // 24)
    ImageDraw.Draw(image).text(
        (size // 2, size // 4),
        text,
        fill="white",
        font=ImageFont.load_default(size),
        stroke_width=2,
        stroke_fill="black",
    )
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def needs_mask(layer: Layer) -> bool:
    """Return whether a visible layer has a prompt but neither picture nor mask."""
    return layer.visible and bool(layer.prompt.strip()) and layer.image is None and layer.mask is None


def masks_from_attention(
    document: LayerDocument, maps: AttentionMaps, size: tuple[int, int], threshold: float, largest: bool
) -> tuple[LayerDocument, Tensor]:
    """Give every layer that :func:`needs_mask` a mask of the pixels that attended to its words, inside the
    cells that its box touches.

    Args:
        document: the document of the run; its layers are found in ``maps`` by name.
        maps: the record of the run; its first picture is used.
        size: h, w of the masks; the maps are no finer than the latents.
        threshold, largest: see :func:`mask_from_attention`.

    Returns:
        the document, in which these layers cover the whole canvas and have a mask; and these masks,
        ``[L', h, w]``, back to front.
    """
    shares = dict(zip(maps.names, maps.mean(size)[0], strict=True))
    layers, masks = list(document), []
    for i, layer in enumerate(document):
        if needs_mask(layer) and layer.name in shares:
            covered = place(layer.coverage[..., None], layer, document.width, document.height)[..., 0]
            masks.append(
                mask_from_attention(
                    shares[layer.name], mask_pyramid(covered, [size])[0] > 0, threshold, largest
                )
            )
            layers[i] = replace(
                layer, mask=masks[-1], x=0, y=0, width=document.width, height=document.height, rotation=0.0,
                flip_h=False, flip_v=False
            )  # fmt: skip
    return replace(document, layers=tuple(layers)), torch.stack(masks) if masks else torch.zeros(0, *size)


def mask_from_attention(share: Tensor, box: Tensor, threshold: float, largest: bool) -> Tensor:
    """Threshold a map inside a box: return float32 ``[H, W]``, 1 where the map reaches ``threshold``, else 0.

    Args:
        share: the map ``[H, W]``.
        box: bool ``[H, W]``, the cells that are considered.
        threshold: 0..1 between the map's least and greatest value in the box: 0 keeps the whole box, 1 only
            the maximum.
        largest: whether to keep only the largest connected patch.
    """
    if not bool(box.any()):
        return torch.zeros_like(share)
    low, high = share[box].min(), share[box].max()
    mask = box & ((share - low) >= threshold * (high - low))
    return (largest_patch(mask) if largest else mask).float()


def largest_patch(mask: Tensor) -> Tensor:
    """Return the largest eight-connected patch of a bool mask ``[H, W]``; of equal ones the first in reading
    order."""
    if not bool(mask.any()):
        return mask
    height, width = mask.shape
    # Pixels are numbered; the greatest number in a patch spreads over it. float32 is exact only up to 2**24.
    patch = torch.arange(height * width, 0, -1, dtype=torch.float64).view(height, width) * mask
    while True:
        spread = functional.max_pool2d(patch[None, None], 3, 1, 1)[0, 0] * mask
        if torch.equal(spread, patch):
            break
        patch = spread
    areas = torch.bincount(patch[mask].long())
    best = areas.flip(0).argmax()
    return patch == len(areas) - 1 - best
