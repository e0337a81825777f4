"""Masks of layers on the canvas: alpha, visible masks after occlusion, and masks at the resolutions of a
network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..document import Layer, LayerDocument
from ..progress import row_bands, steps
from .placement import place
from .soft_masks import grow


def layer_alphas(document: LayerDocument) -> Tensor:
    """Compute the alpha of every layer on the canvas, times its opacity, float32 ``[L, H, W]`` in 0..1; 0 for
    hidden layers.

    A layer without an image covers its mask, or else its box.
    """
    alphas = torch.zeros(len(document), document.height, document.width)
    for i, layer in steps(list(enumerate(document))):
        if layer.visible and layer.opacity > 0:
            alphas[i] = layer_alpha(layer, document)
    return alphas


def layer_alpha(layer: Layer, document: LayerDocument) -> Tensor:
    """Return the alpha ``[H, W]`` of a layer on the canvas, times its opacity, whether or not it is hidden."""
    placed = place(layer.coverage[..., None], layer, document.width, document.height)[..., 0]
    return (placed * layer.opacity).clamp_(0, 1)


def masks_from_front(document: LayerDocument) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the number, the alpha and the visible mask, both ``[H, W]``, of each layer that is not hidden, front to
    back. The masks are those of :func:`document_masks`, in the memory of a few of them.

    Args:
        document: any document; a layer's number is its index in it.
    """
    clear = torch.ones(document.height, document.width)
    for i, layer in steps(list(reversed(list(enumerate(document))))):
        if layer.visible and layer.opacity > 0:
            alpha = layer_alpha(layer, document)
            yield i, alpha, alpha * clear
            clear *= 1 - alpha


def visible_masks(alphas: Tensor) -> tuple[Tensor, Tensor]:
    """Compute how much of each pixel shows each layer: ``M_i = alpha_i * prod_{j above i} (1 - alpha_j)``.

    Soft edges stay soft; the masks and that of the background sum to 1 at every pixel. Collage Diffusion
    (arXiv 2303.00262) section 4 has the same quantity with hard compositing.

    Args:
        alphas: ``[L, H, W]`` in 0..1, back to front.

    Returns:
        visible masks ``[L, H, W]`` of the layers, and ``[H, W]`` of the background.
    """
    shown = torch.empty_like(alphas)
    return shown, _write_visible(alphas, shown)


def _write_visible(alphas: Tensor, shown: Tensor) -> Tensor:
    """Write :func:`visible_masks` of ``alphas`` into ``shown``, which may be the same tensor, and return that of the
    background."""
    count, height, width = alphas.shape
    rest = alphas.new_ones(height, width)
    for rows in steps(row_bands(height, width, count)) if count else ():
        part = alphas[:, rows]
        clear = (1 - part).flip(0).cumprod(0).flip(0)  # clear[i] = prod_{j >= i} (1 - alpha_j)
        shown[-1, rows] = part[-1]
        torch.mul(part[:-1], clear[1:], out=shown[:-1, rows])
        rest[rows] = clear[0]
    return rest


def document_masks(document: LayerDocument) -> tuple[Tensor, Tensor]:
    """Return :func:`visible_masks` of a document's layers: ``[L, H, W]``, and the background's ``[H, W]``."""
    alphas = layer_alphas(document)
    return alphas, _write_visible(alphas, alphas)


def grown_masks(masks: Tensor, pixels: int) -> Tensor:
    """Grow every layer's visible mask by ``pixels``, at the expense of larger layers and of the area without
    layers.

    Where smaller layers grow into a larger one, they share what the pixel showed of it; layers of the same
    size take nothing from each other. Sums over layers stay at most 1, and the result does not depend on the
    layers' order.

    Args:
        masks: ``[L, H, W]``, summing to at most 1.
        pixels: 0 or more. Neutral: 0.
    """
    if pixels == 0 or not len(masks):
        return masks
    rims = torch.stack([grow(m, pixels) for m in masks]) - masks
    owners = torch.cat([masks, 1 - masks.sum(0, keepdim=True)])
    sizes = torch.cat([masks.sum((1, 2)), masks.new_tensor([torch.inf])])
    takes = (sizes[:-1, None] < sizes).to(masks)  # [L, L + 1]: whether layer i takes from owner j
    claims = torch.einsum("ij,ihw->jhw", takes, rims)
    lost = owners * claims.clamp_max(1)
    shares = lost / claims.clamp_min(torch.finfo(masks.dtype).tiny)
    return masks - lost[:-1] + rims * torch.einsum("ij,jhw->ihw", takes, shares)


def mask_pyramid(masks: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Resize masks to the resolutions of a network, by area: each cell is the mean of the pixels that it
    covers.

    Any aspect ratio and any ratio of sizes is allowed; sums over layers are kept.

    Args:
        masks: ``[..., H, W]``.
        sizes: (height, width) of each level in cells.

    Returns:
        One tensor ``[..., height, width]`` for each level.
    """
    flat = masks.reshape(1, -1, *masks.shape[-2:])
    return [
        functional.adaptive_avg_pool2d(flat, size).reshape(*masks.shape[:-2], *size)
        if flat.shape[1]
        else masks.new_zeros(*masks.shape[:-2], *size)
        for size in sizes
    ]
