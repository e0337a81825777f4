"""Decode a picture and its latent to RGBA at any size, with rotated passes, tiles and batches within a memory
limit.

Source: the decoder of sd-forge-layerdiffuse and LayerDiffuse_DiffusersCLI (padding, tiles and batches are our
additions); algorithms.md §2.5 [V].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import LayeredError, invalid
from ..progress import step
from .transparent_networks import CELL, AttendPixels, TransparentDecoder, attend_with_torch, from_file_order

PASSES = ((False, 0), (True, 0), (False, 2), (True, 2), (False, 1), (True, 1), (False, 3), (True, 3))
"""The passes of the network: whether the picture is mirrored left to right, then its quarter turns to the
left."""

AUGMENTATIONS = (1, 2, 4, 8)
"""Allowed numbers of passes; the first ones of :data:`PASSES` are used."""

COMBINE = ("median", "mean")
"""How passes are combined, element by element: ``median``, the lower of the two middle values, or
``mean``."""


@torch.no_grad()
def decode(
    decoder: TransparentDecoder,
    pixels: Tensor,
    latent: Tensor | None,
    *,
    augmentations: int = 8,
    combine: str = "median",
    tile: int = 2048,
    overlap: int = 256,
    batch: int = 1,
    attend: AttendPixels = attend_with_torch,
) -> Tensor:
    """Decode to straight RGBA ``[B, 4, H, W]`` in float32, 0..1, on the device of ``pixels``; colours
    continue under alpha 0.

    Sides that are no multiples of 64 are padded by mirroring at the right and lower edge, and cut again. A
    picture with a side above ``tile`` is decoded in overlapping tiles that fade into one another.

    Args:
        decoder: of any floating dtype, on any device; ``pixels`` and ``latent`` are moved there in parts.
        pixels: the picture that any VAE decoded, ``[B, 3, H, W]``; clipped to 0..1.
        latent: the latent that it was decoded from, ``[B or 1, C, H/8, W/8]`` in the VAE's space; None:
            zeros.
        augmentations: number of passes over mirrored and rotated pictures, 1, 2, 4 or 8; more are more stable
            and take proportionally longer.
        combine: ``median`` or ``mean`` of the passes.
        tile: greatest side that is decoded at once, pixels, a multiple of 64.
        overlap: overlap of neighbouring tiles, pixels, at most half a tile.
        batch: number of pictures in one pass; see :func:`pictures_at_once`.
        attend: the host's attention.

    Raises:
        LayeredError: a value is not allowed, or the latent does not fit the picture or the decoder.
    """
    check_augmentations(augmentations)
    if combine not in COMBINE:
        raise invalid("combine", combine, " or ".join(COMBINE))
    stride = decoder.STRIDE
    if tile < stride or tile % stride:
        raise invalid("tile size", tile, f"a multiple of {stride} pixels, at least {stride}")
    if not 0 <= overlap <= tile // 2:
        raise invalid("tile overlap", overlap, f"0..{tile // 2} pixels, half a tile")
    _check_latent(decoder, pixels, latent)
    height, width = pixels.shape[2:]
    rows, columns = (_starts(side, tile, overlap) for side in (height, width))
    total = len(rows) * len(columns) * -(-len(pixels) // batch) * augmentations
    done = 0
    result = torch.zeros(len(pixels), 4, height, width, device=pixels.device)
    for first in range(0, len(pixels), batch):
        chosen = slice(first, first + batch)
        cells = None if latent is None else latent[chosen] if len(latent) > 1 else latent
        for y in rows:
            for x in columns:
                area = slice(y, min(y + tile, height)), slice(x, min(x + tile, width))
                part, code = _prepared(decoder, pixels[(chosen, slice(None), *area)], cells, area)
                passes = []
                for mirrored, turns in PASSES[:augmentations]:
                    passes.append(_one_pass(decoder, part, code, mirrored, turns, attend))
                    done += 1
                    step(done, total)
                shown = _combined(passes, combine)[:, :, : area[0].stop - y, : area[1].stop - x].to(
                    result.device
                )
                fade = _fade(rows, y, height, tile)[:, None] * _fade(columns, x, width, tile)
                result[(chosen, slice(None), *area)] += shown * fade.to(result.device)
    return result


def check_augmentations(augmentations: int) -> int:
    """Return ``augmentations``; raise :class:`LayeredError` if it is not in ``AUGMENTATIONS``."""
    if augmentations not in AUGMENTATIONS or isinstance(augmentations, bool):
        raise invalid("augmentations", augmentations, "1, 2, 4 or 8 passes")
    return augmentations


def bytes_needed(
    decoder: TransparentDecoder, height: int, width: int, *, tile: int, augmentations: int
) -> tuple[int, int]:
    """Estimate the memory in bytes that :func:`decode` takes for one picture: on the decoder's device in
    addition to its weights, and on the device of the result.

    The peak is at the full side, in the first resnet of the last block. It holds a skip connection (``w0``
    channels), the block's input (``w1``) concatenated with another skip, the shortcut, a convolution's
    output, and the picture twice, or three times on CPUs that compute bfloat16 in single precision. Some wide
    convolutions copy their weights. Measured memory is 0.7 to 1.0 of the estimate
    (``tests/core/transparency/test_transparent_decode.py``, and in the published widths
    ``python -m benchmarks.transparent_decode``).
    """
    side = decoder.STRIDE
    area = min(-(-height // side) * side, tile) * min(-(-width // side) * side, tile)
    weight = next(decoder.parameters())
    copies = 2 * max(p.numel() for p in decoder.parameters())
    network = (area * (4 * decoder.widths[0] + decoder.widths[1] + 3 * 3) + copies) * weight.element_size()
    passes = area * 4 * 4 * (augmentations + 2)
    return network + passes, height * width * 4 * 4


def pictures_at_once(needed: int, free: int, count: int) -> int:
    """Return how many of ``count`` pictures fit into one pass if each takes ``needed`` bytes; a fifth of the
    ``free`` bytes is kept in reserve."""
    return max(1, min(count, int(0.8 * free / needed)))


def _check_latent(decoder: TransparentDecoder, pixels: Tensor, latent: Tensor | None) -> None:
    if latent is None:
        return
    if latent.ndim != 4 or latent.shape[1] != decoder.latent_channels:
        allowed = f"[batch, {decoder.latent_channels}, height, width], as the decoder was made for"
        raise invalid(
            "latent's shape", list(latent.shape), allowed, "Choose the decoder of this model's family"
        )
    cells = tuple(latent.shape[2:])
    if tuple(pixels.shape[2:]) != tuple(side * CELL for side in cells):
        raise LayeredError(
            f"image has {pixels.shape[3]}x{pixels.shape[2]} pixels beside a latent of {cells[1]}x{cells[0]}; "
            f"allowed: {cells[1] * CELL}x{cells[0] * CELL} pixels, {CELL} a side for each latent cell. Give "
            f"the picture that was decoded from this latent, before any scaling, or leave the latent away to "
            f"decode from the picture alone"
        )
    if len(latent) not in (1, len(pixels)):
        raise invalid("latent's batch", len(latent), f"1 or {len(pixels)}, as many as pictures")


def _prepared(
    decoder: TransparentDecoder, part: Tensor, latent: Tensor | None, area: tuple[slice, slice]
) -> tuple[Tensor, Tensor]:
    """Return a tile's pixels and latent on the decoder's device and in its dtype, padded by mirroring to
    sides that the decoder takes."""
    weight = next(decoder.parameters())
    height, width = (-(-side // decoder.STRIDE) * decoder.STRIDE for side in part.shape[2:])
    cells = (height // CELL, width // CELL)
    if latent is None:
        code = torch.zeros(len(part), decoder.latent_channels, *cells)
    else:
        rows, columns = (slice(s.start // CELL, s.stop // CELL) for s in area)
        code = _mirrored(latent[:, :, rows, columns], *cells).expand(len(part), -1, -1, -1)
    # The memory format channels-last halves the time of the convolutions on CPUs and newer GPUs.
    picture = _mirrored(part, height, width).to(weight).clamp(0, 1)
    return picture.contiguous(memory_format=torch.channels_last), code.to(weight)


def _mirrored(x: Tensor, height: int, width: int) -> Tensor:
    """Pad ``[B, C, h, w]`` to the right and downwards with its mirror image. Edge pixels are repeated, which
    keeps latent cells aligned with their pixels."""
    for axis, side in ((2, height), (3, width)):
        length = x.shape[axis]
        if side > length:
            index = torch.arange(side, device=x.device) % (2 * length)
            x = x.index_select(axis, torch.where(index < length, index, 2 * length - 1 - index))
    return x


def _one_pass(
    decoder: TransparentDecoder,
    picture: Tensor,
    code: Tensor,
    mirrored: bool,
    turns: int,
    attend: AttendPixels,
) -> Tensor:
    """Decode one mirrored and rotated pass; return RGBA in 0..1, float32, rotated and mirrored back."""
    a, b = (t.flip(3) if mirrored else t for t in (picture, code))
    a, b = (t.rot90(turns, (2, 3)) for t in (a, b))
    result = decoder(a.contiguous(memory_format=torch.channels_last), b, attend)
    result = from_file_order(result, decoder.latent_channels).float().clamp(0, 1).rot90(-turns, (2, 3))
    return result.flip(3) if mirrored else result


def _combined(passes: Sequence[Tensor], combine: str) -> Tensor:
    """Combine the passes; the median is computed by comparisons alone, which every device supports."""
    if combine == "mean":
        return torch.stack(list(passes)).mean(0)
    sorted_ = list(passes)
    for end in range(len(sorted_) - 1, (len(sorted_) - 1) // 2 - 1, -1):
        for i in range(end):
            sorted_[i], sorted_[i + 1] = (
                torch.minimum(sorted_[i], sorted_[i + 1]),
                torch.maximum(sorted_[i], sorted_[i + 1]),
            )
    return sorted_[(len(sorted_) - 1) // 2]


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles start along a side, in pixels, multiples of 8; the last tile reaches the end of the
    side."""
    if side <= tile:
        return [0]
    count = -(-(side - overlap) // (tile - overlap))
    last = -(-(side - tile) // CELL) * CELL
    return [round(i * last / (count - 1) / CELL) * CELL for i in range(count)]


def _fade(starts: Sequence[int], start: int, side: int, tile: int) -> Tensor:
    """Return the weight of the tile at ``start`` along its side, ``[n]``; the weights of all tiles sum to 1
    at every pixel."""
    places = torch.arange(side) + 0.5
    shares = []
    for s in starts:
        end = min(s + tile, side)
        rise = torch.ones(side) if s == 0 else (places - s) / tile
        fall = torch.ones(side) if end == side else (end - places) / tile
        shares.append(torch.minimum(rise, fall).clamp(0, 1) * (places > s) * (places < end))
    own = shares[list(starts).index(start)] / torch.stack(shares).sum(0)
    return own[start : min(start + tile, side)]
