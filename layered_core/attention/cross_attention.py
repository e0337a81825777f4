"""Cross-attention in which words act in a region only: one function per published method.

Queries have the layout of networks, heads side by side: ``q`` ``[B, N, C]`` with N = h w pixels of the
feature map; keys and values are ``[B, T, C]`` with T tokens, of all chunks if the prompt is longer than one
chunk of 77. ``heads`` divides C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Plain attention: q ``[B, N, C]``, k and v ``[B, T, C]``, and an additive float bias ``[N, T]`` or None, to
``[B, N, C]``."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "log log": lambda sigma: math.log(math.log(sigma + 1.01) + 1),
    "log": lambda sigma: math.log(sigma + 1.01),
    "constant": lambda sigma: 1.0,
}
"""f(sigma), the amount by which words are pushed at sigma (standard deviation of the noise over that of the
picture). ``log log`` is Collage Diffusion's own, ``log`` its variant after eDiff-I; both go to 0 with the
noise. ``constant`` is always 1."""

CLOSED = -1e4
"""Additive bias of a token that a pixel must not attend to. It is finite, because some attention kernels turn
infinity into NaN."""


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return ``[B, N, C]`` as ``[B, heads, N, C / heads]``."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Return ``[B, heads, N, D]`` as ``[B, N, heads D]``."""
    return x.transpose(1, 2).flatten(2)


def plain(heads: int) -> Attend:
    """Return PyTorch's own attention with ``heads`` heads."""

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (split_heads(x, heads) for x in (q, k, v))
        return merge_heads(
            functional.scaled_dot_product_attention(
                q, k, v, attn_mask=None if bias is None else bias.to(q.dtype)
            )
        )

    return attend


def scores(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Compute the scores ``S = q kT / sqrt(d)`` before the softmax, float32 ``[B, heads, N, T]``."""
    q, k = split_heads(q, heads), split_heads(k, heads)
    found: Tensor = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    return found.float()


def weigh(s: Tensor, v: Tensor, heads: int) -> Tensor:
    """Compute ``softmax(S) v``: scores ``[B, heads, N, T]`` and values ``[B, T, C]`` to ``[B, N, C]``."""
    return merge_heads(s.softmax(-1).to(v.dtype) @ split_heads(v, heads))


def word_shares(s: Tensor, words: Tensor) -> Tensor:
    """Return the share of each pixel's attention that goes to ``words`` (0 or 1, ``[T]``), mean over heads,
    ``[B, N]`` in 0..1."""
    return (s.softmax(-1) @ words.to(s)).mean(1)


def word_push(
    masks: Tensor,
    words: Sequence[Sequence[int]],
    tokens: int,
    inside: Sequence[float],
    outside: Sequence[float],
) -> Tensor:
    """Compute how much each pixel's attention to each token is pushed:
    ``sum_i [k in words_i] (M_i inside_i - (1 - M_i) outside_i)``, ``[N, T]``.

    Layers with exactly the same tokens count as one layer, so that none is pushed out of the others.

    Args:
        masks: visible masks M ``[L, N]``, 0..1.
        words: for every layer the indices of its tokens in the prompt; empty if the prompt does not contain
            them.
        tokens: T.
        inside, outside: strengths of every layer, 0 or more.
    """
    push = masks.new_zeros(masks.shape[1], tokens)
    for own in {tuple(x) for x in words if len(x)}:
        same = [i for i, x in enumerate(words) if tuple(x) == own]
        into = sum(masks[i] * inside[i] for i in same)
        out_of = (1 - masks[same].sum(0)).clamp_min(0) * max(outside[i] for i in same)
        push[:, list(own)] += (into - out_of)[:, None]
    return push


def collage_push(s: Tensor, push: Tensor, amount: float, *, flip_negative: bool = False) -> Tensor:
    """Compute what :func:`collage` adds to the scores, ``[B, 1, N, T]``."""
    peak = s.amax((1, 2), keepdim=True)
    return amount * push * (peak if flip_negative else peak.clamp_min(0))


def collage(s: Tensor, push: Tensor, amount: float, *, flip_negative: bool = False) -> Tensor:
    """Compute Collage Diffusion's scores: ``S + f(sigma) push m`` with ``m_k = max S[..., k]`` over heads and
    pixels.

    Source: arXiv 2303.00262 section 4.2 and the authors' code, without its faults. In that code a negative
    ``m_k`` exchanges inside and outside; here it counts as 0 unless ``flip_negative``.

    Args:
        s: :func:`scores` ``[B, heads, N, T]``.
        push: ``[N, T]``, see :func:`word_push`.
        amount: f(sigma), see ``SCHEDULES``.
    """
    return s + collage_push(s, push, amount, flip_negative=flip_negative)


def paint_push(s: Tensor, push: Tensor, amount: float) -> Tensor:
    """Compute what :func:`paint_with_words` adds to the scores, ``[B, 1, N, T]``."""
    return amount * push * s.amax((1, 2, 3), keepdim=True).clamp_min(0)


def paint_with_words(s: Tensor, push: Tensor, amount: float) -> Tensor:
    """Compute eDiff-I's scores: ``(q kT + W) / sqrt(d)`` with ``W = push f(sigma) max(q kT)``, the maximum
    over heads, pixels and tokens of each picture.

    Source: arXiv 2211.01324 section 5. There words are only pushed into their masks, never out of the rest:
    ``push`` has no negative values.

    Args:
        s: :func:`scores` ``[B, heads, N, T]``.
        push: ``[N, T]``.
        amount: f(sigma).
    """
    return s + paint_push(s, push, amount)


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
    """Masked joint attention: one softmax over the tokens of all prompts, those of layer i with the bias
    ``log W_i``.

    Weights of 1 leave the concatenated prompts unchanged, weights of 0 hide a prompt. The share that each
    prompt gets follows from the scores, not from the weights alone. Chen et al., arXiv 2411.02395 (FLUX),
    also use regional masks in one attention call, with hard masks.

    Args:
        q: queries ``[B, N, C]``.
        k, v: keys and values of the main prompt, ``[B, T, C]``.
        weights: of the main prompt, then of every layer, ``[1 + L, N]``, 0..1.
        keys, values: of every layer, ``[T_i, C]``, or ``[B, T_i, C]`` if they differ from picture to picture.
        heads: number of heads.
        attend: the host's plain attention; by default PyTorch's.
    """
    batch = len(q)
    k, v = (
        torch.cat([x, *(y.to(x.dtype).expand(batch, *y.shape[-2:]) for y in more)], 1)
        for x, more in ((k, keys), (v, values))
    )
    own = [y.shape[-2] for y in keys]
    lengths = torch.tensor([k.shape[1] - sum(own), *own], device=q.device)
    bias = weights.float().log().clamp_min(CLOSED).T.repeat_interleave(lengths, 1)
    return (attend or plain(heads))(q, k, v, bias)
