"""Tiles: the picture cut so that each query attends only to the prompts of its own region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cross_attention import Attend, plain, scores, weigh

LEAST_WEIGHT = 1 / 255
"""Weights of a region below this count as 0: they would change about a tenth of a grey level."""


def region_weights(masks: Tensor, strength: Sequence[float]) -> Tensor:
    """Compute the share of every pixel's attention that goes to every layer's own prompt,
    ``W_i = M_i strength_i``, ``[L, N]``.

    The rest up to 1 goes to the main prompt. Weights below ``LEAST_WEIGHT`` are 0.

    Args:
        masks: visible masks M ``[L, N]``, summing to at most 1.
        strength: of every layer, 0 (the main prompt alone) to 1.
    """
    weights = masks * masks.new_tensor(list(strength))[:, None]
    return torch.where(weights >= LEAST_WEIGHT, weights, 0.0)


@dataclass(frozen=True)
class Tiles:
    """The pixels whose attention is computed, in tiles of equal length that each belong to one layer. N
    pixels cost about as much as N queries, for any number of layers."""

    layers: tuple[int, ...]
    """The layers of this group, whose prompts have the same number of tokens."""
    owner: Tensor
    """Index in ``layers`` of each tile's layer, int64 ``[R]`` for R tiles."""
    rows: Tensor
    """Index of the pixel in every slot, int64 ``[R, P]`` for P slots a tile; spare slots repeat a pixel of
    the same layer."""
    weight: Tensor
    """Weight of every slot, float32 ``[R, P]``; 0 in spare slots."""
    rounds: tuple[Tensor, ...]
    """Flat slot indices, in groups in which no pixel occurs twice. Adding group by group has a fixed order,
    so every run gives the same bits."""


def tile(weights: Tensor, tokens: Sequence[int]) -> list[Tiles]:
    """Cut the pixels with ``weights`` ``[L, N]`` above 0 into :class:`Tiles`, one group for every prompt
    length in ``tokens`` ``[L]``.

    A tile is as long as the mean region, so the number of tiles is at most twice the number of layers, and
    the number of slots at most twice what is needed.
    """
    groups = []
    counts = (weights > 0).sum(1).tolist()
    for length in sorted({t for t, n in zip(tokens, counts, strict=True) if n}):
        layers = tuple(i for i, (t, n) in enumerate(zip(tokens, counts, strict=True)) if t == length and n)
        size = -(-sum(counts[i] for i in layers) // len(layers))
        owner, rows, weight, spare = [], [], [], []
        for position, i in enumerate(layers):
            own = weights[i].nonzero()[:, 0]
            tiles = -(-len(own) // size)
            padded = torch.cat([own, own[:1].expand(tiles * size - len(own))])
            owner += [position] * tiles
            rows.append(padded.view(tiles, size))
            spare.append((torch.arange(tiles * size, device=own.device) >= len(own)).view(tiles, size))
            weight.append(weights[i][padded].view(tiles, size).float())
        unused = torch.cat(spare)
        pixels = torch.cat(rows)
        groups.append(
            Tiles(
                layers,
                torch.tensor(owner, device=weights.device),
                pixels,
                torch.cat(weight).masked_fill(unused, 0),
                _rounds(pixels.flatten(), ~unused.flatten()),
            )
        )
    return groups


def attend_regions(
    q: Tensor,
    base: Tensor,
    tiles: Sequence[Tiles],
    keys: Sequence[Tensor | None],
    values: Sequence[Tensor | None],
    heads: int,
    *,
    share: float = 1.0,
    emphasis: Sequence[Tensor | None] | None = None,
    amount: float = 0.0,
    attend: Attend | None = None,
) -> Tensor:
    """Let every pixel attend to the prompts of the layers that are visible there: return
    ``(1 - sum_i W_i) base + sum_i W_i A(q, K_i, V_i)``, ``[B, N, C]``.

    The layers' outputs are mixed after attention, as in Attention Couple (laksjdjf, 2023), so the shares are
    exact. Unlike in Attention Couple, a layer's attention is computed for its own pixels only. With
    ``emphasis``, a layer's attention is Collage Diffusion's (:func:`~.cross_attention.collage`) with the
    layer's own words pushed; the maximum is taken over the layer's own pixels.

    Args:
        q: ``[B, N, C]``.
        base: attention to the main prompt, ``[B, N, C]``.
        tiles: from :func:`tile` of W (:func:`region_weights`).
        keys, values: of every layer ``[T_i, C]``, or ``[B, T_i, C]`` if they differ from picture to picture;
            None for a layer without tiles.
        heads: number of heads.
        share: factor on W, 0..1; 0 returns ``base`` itself.
        emphasis: for every layer the push of its tokens ``[T_i]``; None for no emphasis.
        amount: f(sigma), the amount of the emphasis.
        attend: the host's plain attention; by default PyTorch's.
    """
    if share == 0 or not tiles:
        return base
    batch, channels = len(q), q.shape[-1]
    parts = []
    rest = torch.ones(q.shape[1], dtype=torch.float32, device=q.device)
    for group in tiles:
        k, v = (
            torch.stack([not_none(x[i]) for i in group.layers])[group.owner].to(q.dtype)
            for x in (keys, values)
        )
        count, size = group.rows.shape
        own = q[:, group.rows.flatten()].view(batch * count, size, channels)
        k, v = (_for_batch(x, batch) for x in (k, v))
        if emphasis is not None and amount:
            push = torch.stack([not_none(emphasis[i]) for i in group.layers])
            out = weigh(_emphasised(scores(own, k, heads), push, amount, group), v, heads)
        else:
            out = (attend or plain(heads))(own, k, v, None)
        flat = group.weight.flatten()
        parts.append((group, out.view(batch, count * size, channels) * (share * flat).to(q.dtype)[:, None]))
        for slots in group.rounds:
            rest.index_add_(0, group.rows.flatten()[slots], flat[slots], alpha=-share)
    mixed = base * rest[:, None].to(q.dtype)
    for group, out in parts:
        rows = group.rows.flatten()
        for slots in group.rounds:
            mixed.index_add_(1, rows[slots], out[:, slots])
    return mixed


def _for_batch(x: Tensor, batch: int) -> Tensor:
    """Return keys or values of tiles, ``[R, T, C]`` or ``[R, B, T, C]``, as ``[B R, T, C]``."""
    return (x.transpose(0, 1) if x.ndim == 4 else x.expand(batch, *x.shape)).flatten(0, 1)


def _emphasised(s: Tensor, push: Tensor, amount: float, group: Tiles) -> Tensor:
    """Apply :func:`~.cross_attention.collage` to tiles: ``s`` ``[B R, heads, P, T]``, ``push``
    ``[layers, T]``. The maximum is taken over all tiles of a layer."""
    peak = s.amax((1, 2)).view(-1, len(group.owner), s.shape[-1])
    owner = group.owner[None, :, None].expand_as(peak)
    of_layer = peak.new_full((len(peak), len(push), peak.shape[-1]), -torch.inf).scatter_reduce(
        1, owner, peak, "amax"
    )
    return s + (amount * push * of_layer.clamp_min(0))[:, group.owner].flatten(0, 1)[:, None, None]


def _rounds(rows: Tensor, used: Tensor) -> tuple[Tensor, ...]:
    """Return the indices of the used slots, in groups in which no pixel of ``rows`` occurs twice."""
    slots = used.nonzero()[:, 0]
    slots = slots[rows[slots].argsort(stable=True)]
    ordered = rows[slots]
    index = torch.arange(len(slots), device=rows.device)
    first = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    turn = index - torch.where(first, index, 0).cummax(0).values
    return tuple(slots[turn == t] for t in range(int(turn.max()) + 1))


def not_none(x: Tensor | None) -> Tensor:
    """Return ``x``, which the caller knows is not None; for the type checker."""
    assert x is not None
    return x
