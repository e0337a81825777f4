"""What a pixel's attention to words becomes when words have places: one function per published idea, all for cross-attention.

Queries come as networks hand them over, heads side by side: ``q`` ``[B, N, C]`` with N = h w pixels of the feature map; keys and
values ``[B, T, C]`` with T tokens of words (T also counts prompts longer than one chunk of 77). ``heads`` divides C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Plain attention: q ``[B, N, C]``, k and v ``[B, T, C]``, an additive float bias ``[N, T]`` or None, to ``[B, N, C]``."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "log log": lambda sigma: math.log(math.log(sigma + 1.01) + 1),
    "log": lambda sigma: math.log(sigma + 1.01),
    "constant": lambda sigma: 1.0,
}
"""How much words are pushed at noise level sigma (standard deviation of the noise over that of the picture): Collage Diffusion's own
``f``, its variant after eDiff-I, and none. The first two go to 0 with the noise."""

CLOSED = -1e4
"""Additive bias of a token that a pixel must not see: finite, as some attention kernels turn infinity into NaN."""

LEAST_WEIGHT = 1 / 255
"""Smaller weights of a region count as 0: a tenth of a grey level is not worth a query."""


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, N, C]`` to ``[B, heads, N, C / heads]``."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``[B, heads, N, D]`` to ``[B, N, heads D]``."""
    return x.transpose(1, 2).flatten(2)


def plain(heads: int) -> Attend:
    """PyTorch's own attention with ``heads`` heads."""

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (split_heads(x, heads) for x in (q, k, v))
        return merge_heads(functional.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype)))

    return attend


def scores(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """``S = q kT / sqrt(d)`` before the softmax, float32 ``[B, heads, N, T]``."""
    q, k = split_heads(q, heads), split_heads(k, heads)
    found: Tensor = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    return found.float()


def weigh(s: Tensor, v: Tensor, heads: int) -> Tensor:
    """``softmax(S) v``: scores ``[B, heads, N, T]`` and values ``[B, T, C]`` to ``[B, N, C]``."""
    return merge_heads(s.softmax(-1).to(v.dtype) @ split_heads(v, heads))


def word_shares(s: Tensor, words: Tensor) -> Tensor:
    """How much of each pixel's attention goes to ``words`` (0 or 1, ``[T]``), mean over heads, ``[B, N]`` in 0..1."""
    return (s.softmax(-1) @ words.to(s)).mean(1)


def word_push(masks: Tensor, words: Sequence[Sequence[int]], tokens: int, inside: Sequence[float], outside: Sequence[float]) -> Tensor:
    """How each pixel's attention to each token is pushed: ``sum_i [k in words_i] (M_i inside_i - (1 - M_i) outside_i)``, ``[N, T]``.

    Layers that have the very same tokens count as one there, so that none is pushed out of the others.

    Args:
        masks: visible masks M ``[L, N]``, 0..1.
        words: for every layer the indices of its tokens in the prompt; empty for a layer that is not named there.
        tokens: T.
        inside, outside: strengths of every layer, 0 and more.
    """
    push = masks.new_zeros(masks.shape[1], tokens)
    for own in {tuple(x) for x in words if len(x)}:
        same = [i for i, x in enumerate(words) if tuple(x) == own]
        into = sum(masks[i] * inside[i] for i in same)
        out_of = (1 - masks[same].sum(0)).clamp_min(0) * max(outside[i] for i in same)
        push[:, list(own)] += (into - out_of)[:, None]
    return push


def collage(s: Tensor, push: Tensor, amount: float, *, flip_negative: bool = False) -> Tensor:
    """Collage Diffusion's scores: ``S + f(sigma) push m`` with ``m_k = max S[..., k]`` over heads and pixels.

    Source: arXiv 2303.00262 section 4.2 and the authors' code, without its faults. There a negative ``m_k`` turns inside and outside
    around; here it counts as 0 unless ``flip_negative``.

    Args:
        s: :func:`scores` ``[B, heads, N, T]``.
        push: ``[N, T]``, see :func:`word_push`.
        amount: f(sigma), see ``SCHEDULES``.
    """
    peak = s.amax((1, 2), keepdim=True)
    return s + amount * push * (peak if flip_negative else peak.clamp_min(0))


def paint_with_words(s: Tensor, push: Tensor, amount: float) -> Tensor:
    """eDiff-I's scores: ``(q kT + W) / sqrt(d)`` with ``W = push f(sigma) max(q kT)``, the maximum over everything in a picture.

    Source: arXiv 2211.01324 section 5. Words are only pushed into their masks there, never out: ``push`` has no negative values.

    Args:
        s: :func:`scores` ``[B, heads, N, T]``.
        push: ``[N, T]``.
        amount: f(sigma).
    """
    return s + amount * push * s.amax((1, 2, 3), keepdim=True).clamp_min(0)


def region_weights(masks: Tensor, strength: Sequence[float]) -> Tensor:
    """Share of every pixel's attention that goes to every layer's own prompt, ``W_i = M_i strength_i`` ``[L, N]``.

    What is left to 1, so all of it where no layer is, goes to the global prompt. Weights under ``LEAST_WEIGHT`` are 0.

    Args:
        masks: visible masks ``[L, N]``, summing to at most 1.
        strength: of every layer, 0 (the global prompt alone) to 1.
    """
    weights = masks * masks.new_tensor(list(strength))[:, None]
    return torch.where(weights >= LEAST_WEIGHT, weights, 0.0)


@dataclass(frozen=True)
class Tiles:
    """Pixels to compute, cut into tiles of equal length that each belong to one layer: N rows cost about N, however many layers share them."""

    layers: tuple[int, ...]
    """The layers of this group, whose prompts have the same number of tokens."""
    owner: Tensor
    """Position in ``layers`` of each tile's layer, int64 ``[R]``."""
    rows: Tensor
    """Pixel of every slot, int64 ``[R, P]``; spare slots repeat a pixel of the same layer."""
    weight: Tensor
    """Weight of every slot, float32 ``[R, P]``; 0 in spare slots."""
    rounds: tuple[Tensor, ...]
    """Flat slot indices in groups in which no pixel occurs twice, so that adding them up has one order: same bits on every run."""


def tile(weights: Tensor, tokens: Sequence[int]) -> list[Tiles]:
    """Cut the pixels where ``weights`` ``[L, N]`` are above 0 into :class:`Tiles`, one group for every prompt length in ``tokens`` ``[L]``.

    A tile is as long as the mean region, so there are at most two tiles a layer and at most twice the slots that are needed.
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


def regions(
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
    """Every pixel attends to the prompts of the layers that are seen there: ``(1 - sum_i W_i) base + sum_i W_i A(q, K_i, V_i)``.

    The layers' outputs are mixed after attention, as in Attention Couple (laksjdjf, 2023), so shares are exact. Unlike there a layer's
    attention is computed for its own pixels alone. With ``emphasis``, a layer's attention is Collage Diffusion's (:func:`collage`)
    with its own words pushed inside, the maximum taken over its own pixels.

    Args:
        q: ``[B, N, C]``.
        base: attention to the global prompt, ``[B, N, C]``.
        tiles: from :func:`tile` of W (:func:`region_weights`).
        keys, values: of every layer ``[T_i, C]``, None where no tile needs them.
        share: factor on W, 0..1; 0 returns ``base`` itself.
        emphasis: for every layer the push of its tokens ``[T_i]``, or None for no emphasis.
        amount: f(sigma) of the emphasis.
        attend: plain attention of the host; by default PyTorch's.
    """
    if share == 0 or not tiles:
        return base
    batch, channels = len(q), q.shape[-1]
    parts = []
    rest = torch.ones(q.shape[1], dtype=torch.float32, device=q.device)
    for group in tiles:
        k, v = (torch.stack([_have(x[i]) for i in group.layers])[group.owner].to(q.dtype) for x in (keys, values))
        count, size = group.rows.shape
        own = q[:, group.rows.flatten()].view(batch * count, size, channels)
        k, v = (x.expand(batch, *x.shape).flatten(0, 1) for x in (k, v))
        if emphasis is not None and amount:
            push = torch.stack([_have(emphasis[i]) for i in group.layers])
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


def joint(
    q: Tensor, k: Tensor, v: Tensor, weights: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], heads: int, attend: Attend | None = None
) -> Tensor:
    """One softmax over the tokens of all prompts together, those of layer i with the bias ``log W_i``: masked joint attention.

    Weights of 1 leave the concatenated prompts as they are, weights of 0 hide a prompt. Shares follow the scores, not the weights.
    Regional masks in one attention call are in Chen et al., arXiv 2411.02395 (FLUX), there with hard masks.

    Args:
        q: ``[B, N, C]``; k, v: the global prompt's ``[B, T, C]``.
        weights: of the global prompt and then of every layer, ``[1 + L, N]``, 0..1.
        keys, values: of every layer, ``[T_i, C]``.
    """
    batch = len(q)
    k, v = (torch.cat([x, *(y.to(x.dtype).expand(batch, *y.shape) for y in more)], 1) for x, more in ((k, keys), (v, values)))
    lengths = torch.tensor([k.shape[1] - sum(len(y) for y in keys), *(len(y) for y in keys)], device=q.device)
    bias = weights.float().log().clamp_min(CLOSED).T.repeat_interleave(lengths, 1)
    return (attend or plain(heads))(q, k, v, bias)


def _emphasised(s: Tensor, push: Tensor, amount: float, group: Tiles) -> Tensor:
    """:func:`collage` for tiles: ``s`` ``[B R, heads, P, T]``, ``push`` ``[layers, T]``; the maximum is taken over a layer's tiles together."""
    peak = s.amax((1, 2)).view(-1, len(group.owner), s.shape[-1])
    owner = group.owner[None, :, None].expand_as(peak)
    of_layer = peak.new_full((len(peak), len(push), peak.shape[-1]), -torch.inf).scatter_reduce(1, owner, peak, "amax")
    return s + (amount * push * of_layer.clamp_min(0))[:, group.owner].flatten(0, 1)[:, None, None]


def _rounds(rows: Tensor, used: Tensor) -> tuple[Tensor, ...]:
    """Indices of the used slots in groups in which no pixel of ``rows`` occurs twice."""
    slots = used.nonzero()[:, 0]
    slots = slots[rows[slots].argsort(stable=True)]
    ordered = rows[slots]
    index = torch.arange(len(slots), device=rows.device)
    first = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    turn = index - torch.where(first, index, 0).cummax(0).values
    return tuple(slots[turn == t] for t in range(int(turn.max()) + 1))


def _have(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
