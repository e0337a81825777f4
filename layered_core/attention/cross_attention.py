"""What a pixel's attention to words becomes when words have places: one function per published idea, all for
cross-attention.

Queries come as networks hand them over, heads side by side: ``q`` ``[B, N, C]`` with N = h w pixels of the
feature map; keys and values ``[B, T, C]`` with T tokens of words (T also counts prompts longer than one chunk
of 77). ``heads`` divides C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Plain attention: q ``[B, N, C]``, k and v ``[B, T, C]``, an additive float bias ``[N, T]`` or None, to
``[B, N, C]``."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "log log": lambda sigma: math.log(math.log(sigma + 1.01) + 1),
    "log": lambda sigma: math.log(sigma + 1.01),
    "constant": lambda sigma: 1.0,
}
"""How much words are pushed at noise level sigma (standard deviation of the noise over that of the picture):
Collage Diffusion's own ``f``, its variant after eDiff-I, and none. The first two go to 0 with the noise."""

CLOSED = -1e4
"""Additive bias of a token that a pixel must not see: finite, as some attention kernels turn infinity into
NaN."""


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
        return merge_heads(
            functional.scaled_dot_product_attention(
                q, k, v, attn_mask=None if bias is None else bias.to(q.dtype)
            )
        )

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
    """How much of each pixel's attention goes to ``words`` (0 or 1, ``[T]``), mean over heads, ``[B, N]`` in
    0..1."""
    return (s.softmax(-1) @ words.to(s)).mean(1)


def word_push(
    masks: Tensor,
    words: Sequence[Sequence[int]],
    tokens: int,
    inside: Sequence[float],
    outside: Sequence[float],
) -> Tensor:
    """How each pixel's attention to each token is pushed:
    ``sum_i [k in words_i] (M_i inside_i - (1 - M_i) outside_i)``, ``[N, T]``.

    Layers that have the very same tokens count as one there, so that none is pushed out of the others.

    Args:
        masks: visible masks M ``[L, N]``, 0..1.
        words: for every layer the indices of its tokens in the prompt; empty for a layer that is not named
            there.
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

    Source: arXiv 2303.00262 section 4.2 and the authors' code, without its faults. There a negative ``m_k``
    turns inside and outside around; here it counts as 0 unless ``flip_negative``.

    Args:
        s: :func:`scores` ``[B, heads, N, T]``.
        push: ``[N, T]``, see :func:`word_push`.
        amount: f(sigma), see ``SCHEDULES``.
    """
    peak = s.amax((1, 2), keepdim=True)
    return s + amount * push * (peak if flip_negative else peak.clamp_min(0))


def paint_with_words(s: Tensor, push: Tensor, amount: float) -> Tensor:
    """eDiff-I's scores: ``(q kT + W) / sqrt(d)`` with ``W = push f(sigma) max(q kT)``, the maximum over
    everything in a picture.

    Source: arXiv 2211.01324 section 5. Words are only pushed into their masks there, never out: ``push`` has
    no negative values.

    Args:
        s: :func:`scores` ``[B, heads, N, T]``.
        push: ``[N, T]``.
        amount: f(sigma).
    """
    return s + amount * push * s.amax((1, 2, 3), keepdim=True).clamp_min(0)


def joint(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weights: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    heads: int,
    attend: Attend | None = None,
) -> Tensor:
    """One softmax over the tokens of all prompts together, those of layer i with the bias ``log W_i``: masked
    joint attention.

    Weights of 1 leave the concatenated prompts as they are, weights of 0 hide a prompt. Shares follow the
    scores, not the weights. Regional masks in one attention call are in Chen et al., arXiv 2411.02395 (FLUX),
    there with hard masks.

    Args:
        q: ``[B, N, C]``; k, v: the global prompt's ``[B, T, C]``.
        weights: of the global prompt and then of every layer, ``[1 + L, N]``, 0..1.
        keys, values: of every layer, ``[T_i, C]``.
    """
    batch = len(q)
    k, v = (
        torch.cat([x, *(y.to(x.dtype).expand(batch, *y.shape) for y in more)], 1)
        for x, more in ((k, keys), (v, values))
    )
    lengths = torch.tensor([k.shape[1] - sum(len(y) for y in keys), *(len(y) for y in keys)], device=q.device)
    bias = weights.float().log().clamp_min(CLOSED).T.repeat_interleave(lengths, 1)
    return (attend or plain(heads))(q, k, v, bias)
