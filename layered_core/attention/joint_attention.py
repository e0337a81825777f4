"""Joint attention of a transformer in which each text acts on its own pixels only.

The picture's tokens read texts, the picture itself and references in one softmax. Two rules are known of what
a pixel with shares ``w_s`` of several texts s reads:

* mixture: ``sum_s w_s A(text_s, picture)``, whose shares are exact, as in ``regions`` on UNets;
* one softmax: ``A(all texts, picture)`` with ``log w_s`` added to the scores of text s (Chen et al., arXiv
  2411.02395; with weights of 0 and 1 only it is the rule of EliGen, arXiv 2501.01097).

A text reads itself, the pixels that read it, and references; the picture always reads all of the picture. Each
rule is computed in three ways with the same result: ``bias`` (masks of all pairs of tokens; the reference),
``gather`` (one call without a mask for each text's own pixels), ``lse`` (picture and texts apart, merged by
:mod:`.log_sum_exp`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cross_attention import CLOSED
from .log_sum_exp import fused_with_lse, has_fused_lse, merge, scores_of, scores_with_lse
from .spans import Spans, tokens

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Plain attention of heads: q ``[B, H, N, D]``, k and v ``[B, H, T, D]``, and an additive float bias that
broadcasts to ``[B, H, N, T]`` or None, to ``[B, H, N, D]``."""

Push = Callable[[Tensor], Tensor]
"""What is added to the scores ``[B, H, P, T]`` of a text: to ``[B, 1, P, T]``."""

WAYS = ("bias", "gather", "lse")

MOST_EXTRA = 1.1
"""How many times the picture's pixels ``gather`` may compute, all texts together, before ``lse`` is cheaper."""


@dataclass(frozen=True)
class Source:
    """A text, and the pixels that read it."""

    text: Tensor
    """Tokens of the text, int64 ``[T]``."""
    rows: Tensor
    """Places in :attr:`Reading.picture` of the tokens that read it, int64 ``[P]``."""
    share: Tensor
    """Weight w of the text for these tokens, more than 0, at most 1; float32 ``[P]``."""
    region: int | None
    """Number of the region whose own text it is; None: the text of the whole picture."""

    def to(self, device: torch.device) -> Source:
        """Return the same on a device."""
        return Source(self.text.to(device), self.rows.to(device), self.share.to(device), self.region)


@dataclass(frozen=True)
class Reading:
    """Who reads what in one sequence."""

    length: int
    """N, number of tokens."""
    picture: Tensor
    """Tokens of the picture, then references, int64 ``[I]``."""
    sources: tuple[Source, ...]
    """The text of the whole picture, then every region's own text that is read."""
    readers: tuple[tuple[Tensor, Tensor], ...]
    """Tokens of every text, and the tokens that they read."""
    one_softmax: bool
    """The rule, see the module."""
    groups: tuple[tuple[Tensor, Tensor], ...] | None
    """With one softmax and weights of 0 and 1 only: places in :attr:`picture` of tokens that read the same texts,
    and these texts. None otherwise."""
    hard: bool
    """Whether all weights are 0 or 1."""

    @property
    def extra(self) -> float:
        """How many times the picture's pixels are computed if each text's pixels are computed apart."""
        return sum(len(s.rows) for s in self.sources) / len(self.picture)

    def to(self, device: torch.device) -> Reading:
        """Return the same on a device."""

        def pairs(of: Sequence[tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], ...]:
            return tuple((a.to(device), b.to(device)) for a, b in of)

        return Reading(
            self.length, self.picture.to(device), tuple(s.to(device) for s in self.sources),
            pairs(self.readers), self.one_softmax, None if self.groups is None else pairs(self.groups), self.hard,
        )  # fmt: skip


def reading(
    spans: Spans, weights: Tensor, main: Tensor, *, one_softmax: bool, repeat: bool = False
) -> Reading:
    """Work out who reads what.

    Args:
        spans: where everything stands.
        weights: w of every region's own text ``[L, h' w']``, 0..1; 0 for a region without one.
        main: w of the text of the whole picture ``[h' w']``, 0..1. References read it with weight 1.
        one_softmax: the rule, see the module.
        repeat: whether references whose number of tokens is a multiple of the picture's read as the picture's
            pixels do. EliGen's rule.
    """
    others = spans.others()
    picture = torch.cat([tokens(spans.image), others])
    shares = torch.cat([main[None], weights]).float().cpu().repeat(1, spans.frames)
    copies, rest = divmod(len(others), shares.shape[1])
    if repeat and copies and not rest:
        shares = shares.repeat(1, copies + 1)
    else:
        of_others = torch.zeros(len(shares), len(others))
        of_others[0] = 1
        shares = torch.cat([shares, of_others], 1)
    texts = [tokens(spans.main, spans.pads), *(tokens(r) for r in spans.texts)]
    sources, readers = [], []
    for i, (text, share) in enumerate(zip(texts, shares, strict=True)):
        rows = share.nonzero()[:, 0]
        if not len(text):
            continue
        if len(rows):
            sources.append(Source(text, rows, share[rows], i - 1 if i else None))
        seen = picture if i == 0 else torch.cat([picture[rows[rows < len(spans.image)]], others])
        if i == 0 or len(rows):
            readers.append((text, torch.cat([text, seen])))
    hard = all(bool((s.share == 1).all()) for s in sources)
    groups = _groups(sources, len(picture)) if one_softmax and hard else None
    return Reading(spans.length, picture, tuple(sources), tuple(readers), one_softmax, groups, hard)


def _groups(sources: Sequence[Source], count: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return the sets of texts that some of the ``count`` tokens of the picture read together: the tokens, and the
    texts' tokens."""
    reads = torch.zeros(len(sources), count, dtype=torch.bool)
    for i, source in enumerate(sources):
        reads[i, source.rows] = True
    sets, which = torch.unique(reads, dim=1, return_inverse=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    return tuple(
        (
            (which == i).nonzero()[:, 0],
            torch.cat([nothing, *(s.text for s, member in zip(sources, members, strict=True) if member)]),
        )
        for i, members in enumerate(sets.T.tolist())
    )


def cheapest_way(read: Reading, q: Tensor, *, pushed: bool, masked: bool, fused: bool = True) -> str:
    """Return the way of ``WAYS`` that is exact and cheap.

    Args:
        read: who reads what.
        q: queries ``[B, H, N, D]``, for their device and data type.
        pushed: whether scores of texts are changed.
        masked: whether the host has a mask of its own.
        fused: whether PyTorch's kernels may be used instead of the host's plain attention.
    """
    if not pushed and (read.hard if read.one_softmax else read.extra <= MOST_EXTRA):
        return "gather"
    if fused and not masked and has_fused_lse(q):
        return "lse"
    return "bias" if read.one_softmax and not read.hard else "gather"


def attend_jointly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    read: Reading,
    way: str,
    attend: Attend,
    *,
    pushes: Sequence[Push | None] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the joint attention ``[B, H, N, D]``. Tokens that nobody reads get 0.

    Args:
        q, k, v: ``[B, H, N, D]``.
        read: who reads what, on the device of ``q``.
        way: one of ``WAYS``.
        attend: the host's plain attention.
        pushes: for every source what is added to its scores; None for nothing.
        mask: the host's own additive mask, which broadcasts to ``[B, H, N, N]``; not with ``lse``.

    Raises:
        ValueError: ``lse`` with a mask.
    """
    if way == "lse" and mask is not None:
        raise ValueError("parts of an attention are computed without masks: take another way")
    out = torch.zeros_like(q)
    for rows, keys in read.readers:
        picked = pick_mask(mask, rows, keys)
        out.index_copy_(2, rows, attend(_at(q, rows), _at(k, keys), _at(v, keys), picked))
    pushes = [None] * len(read.sources) if pushes is None else pushes
    compute = {
        ("bias", False): _mixture_by_bias,
        ("bias", True): _softmax_by_bias,
        ("gather", False): _mixture_by_gather,
        ("gather", True): _softmax_by_bias if read.groups is None else _softmax_by_gather,
        ("lse", False): _by_lse,
        ("lse", True): _by_lse,
    }[way, read.one_softmax]
    picture = compute(q, k, v, read, attend, pushes, mask)
    return out.index_copy_(2, read.picture, picture)


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(2, index)


def pick_mask(mask: Tensor | None, rows: Tensor, keys: Tensor) -> Tensor | None:
    """Return the host's mask for some queries and keys."""
    if mask is None:
        return None
    if mask.shape[-2] > 1:
        mask = mask.index_select(-2, rows)
    return mask.index_select(-1, keys)


def _mixture_by_gather(
    q: Tensor, k: Tensor, v: Tensor, read: Reading, attend: Attend, pushes: Sequence[Push | None],
    mask: Tensor | None,
) -> Tensor:  # fmt: skip
    out = q.new_zeros(*q.shape[:2], len(read.picture), q.shape[-1])
    for source, push in zip(read.sources, pushes, strict=True):
        rows, keys = read.picture[source.rows], torch.cat([source.text, read.picture])
        bias = _with_push(q, k, source, rows, push, len(keys), pick_mask(mask, rows, keys))
        part = attend(_at(q, rows), _at(k, keys), _at(v, keys), bias)
        out.index_add_(2, source.rows, part * source.share[:, None].to(part.dtype))
    return out


def _softmax_by_gather(
    q: Tensor, k: Tensor, v: Tensor, read: Reading, attend: Attend, pushes: Sequence[Push | None],
    mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """Compute the rule of one softmax where all weights are 0 or 1: one call for every set of texts that some
    pixels read together."""
    out = q.new_zeros(*q.shape[:2], len(read.picture), q.shape[-1])
    for own, texts in read.groups or ():
        rows, keys = read.picture[own], torch.cat([texts, read.picture])
        out.index_copy_(2, own, attend(_at(q, rows), _at(k, keys), _at(v, keys), pick_mask(mask, rows, keys)))
    return out


def _by_lse(
    q: Tensor, k: Tensor, v: Tensor, read: Reading, attend: Attend, pushes: Sequence[Push | None],
    mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """Compute either rule from the picture's attention to itself and to every text, each computed once."""
    own = _at(q, read.picture)
    base, base_lse = _fused(own, _at(k, read.picture), _at(v, read.picture))
    out = base if read.one_softmax else torch.zeros_like(base)
    for source, push in zip(read.sources, pushes, strict=True):
        queries, keys, values = _at(own, source.rows), _at(k, source.text), _at(v, source.text)
        if push is None:
            part, lse = _fused(queries, keys, values)
        else:
            scores = scores_of(queries, keys)
            part, lse = scores_with_lse(scores + push(scores), values)
        before, before_lse = _at(out if read.one_softmax else base, source.rows), _at(base_lse, source.rows)
        if read.one_softmax:
            merged, merged_lse = merge(before, before_lse, part, lse + source.share.log())
            out.index_copy_(2, source.rows, merged)
            base_lse.index_copy_(2, source.rows, merged_lse)
        else:
            merged, _ = merge(before, before_lse, part, lse)
            out.index_add_(2, source.rows, merged * source.share[:, None].to(merged.dtype))
    return out


def _mixture_by_bias(
    q: Tensor, k: Tensor, v: Tensor, read: Reading, attend: Attend, pushes: Sequence[Push | None],
    mask: Tensor | None,
) -> Tensor:  # fmt: skip
    out = q.new_zeros(*q.shape[:2], len(read.picture), q.shape[-1])
    for source, push in zip(read.sources, pushes, strict=True):
        bias = q.new_full((1, 1, read.length, read.length), CLOSED)
        bias[..., source.text] = 0
        bias[..., read.picture] = 0
        rows = torch.arange(read.length, device=q.device)
        bias = bias if mask is None else bias + mask
        if push is not None:
            added = push(scores_of(_at(q, read.picture[source.rows]), _at(k, source.text)))
            bias = bias.expand(len(q), 1, *bias.shape[-2:]).clone()
            places = read.picture[source.rows][:, None], source.text[None]
            bias[:, :, places[0], places[1]] += added.to(bias.dtype)
        part = _at(attend(_at(q, rows), k, v, bias), read.picture)
        share = q.new_zeros(len(read.picture)).index_copy(0, source.rows, source.share.to(q.dtype))
        out += part * share[:, None]
    return out


def _softmax_by_bias(
    q: Tensor, k: Tensor, v: Tensor, read: Reading, attend: Attend, pushes: Sequence[Push | None],
    mask: Tensor | None,
) -> Tensor:  # fmt: skip
    bias = q.new_full((len(read.picture), read.length), CLOSED)
    bias[:, read.picture] = 0
    for source in read.sources:
        bias[source.rows[:, None], source.text[None]] = source.share.log().to(bias.dtype)[:, None]
    everyone = torch.arange(read.length, device=q.device)
    picked = pick_mask(mask, read.picture, everyone)
    whole = bias[None, None] if picked is None else bias + picked
    for source, push in zip(read.sources, pushes, strict=True):
        if push is not None:
            added = push(scores_of(_at(q, read.picture[source.rows]), _at(k, source.text)))
            whole = whole.expand(len(q), *whole.shape[1:]).clone()
            whole[:, :, source.rows[:, None], source.text[None]] += added.to(whole.dtype)
    return attend(_at(q, read.picture), k, v, whole)


def _with_push(
    q: Tensor, k: Tensor, source: Source, rows: Tensor, push: Push | None, count: int, bias: Tensor | None
) -> Tensor | None:
    """Return the bias of a text's pixels on the text's tokens and then the picture's, ``count`` in all."""
    if push is None:
        return bias
    added = push(scores_of(_at(q, rows), _at(k, source.text)))
    padded = torch.nn.functional.pad(added, (0, count - added.shape[-1])).to(q.dtype)
    return padded if bias is None else padded + bias


def _fused(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    found = fused_with_lse(q, k, v)
    return scores_with_lse(scores_of(q, k), v) if found is None else found
