"""Regional prompts on transformers, for any host: :mod:`.regional_attention` where texts and picture share one
attention.

A text of a region stands in the sequence beside the main prompt's. The host says where
(:class:`~.spans.Spans`) and calls :meth:`JointRegions.mix` at every joint attention.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..noise.guidance import FORMING
from .cross_attention import collage_push, paint_push, word_push
from .joint_attention import Attend, Push, Reading, attend_jointly, cheapest_way, pick_mask, reading
from .log_sum_exp import scores_of
from .parts import Part
from .regional_attention import RegionalAttention
from .regional_plan import Region
from .spans import Spans, patch_masks, tokens
from .tiles import region_weights

HIGHEST = 14.6
"""Greatest noise level, relative to the picture, with which words are pushed: the highest of the models that the
schedules of pushes were made for. A flow model begins at pure noise."""


@dataclass(frozen=True)
class _Stage:
    """What all blocks of one pass share."""

    read: Reading
    weights: Tensor
    """Share of attention that goes to each region's own text, ``[L, N]``."""
    push: Tensor | None
    """How much each token of the main prompt is pushed at each of the picture's tokens, ``[I, T]``."""
    own: tuple[Tensor | None, ...]
    """How much each token of every region's own text is pushed, ``[1, T_i]``; None for a region without a push."""


def relative_noise(sigma: float) -> float:
    """Return the standard deviation of the noise over that of the picture, for a flow model whose latents are
    ``(1 - sigma) x + sigma n``."""
    return sigma / (1 - sigma) if sigma < 1 else float("inf")


class JointRegions(RegionalAttention):
    """The regions of cond or of uncond in one run of a transformer.

    Made as :class:`RegionalAttention`, with sigmas and window in :func:`relative_noise` for flow models. Where
    a transformer has cross-attention, call it as that class.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._stages: dict[Hashable, _Stage] = {}

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spans: Spans,
        *,
        latent: tuple[int, int],
        patch: int,
        sigma: float,
        attend: Attend,
        part: Part | None = None,
        mask: Tensor | None = None,
        fused: bool = True,
        way: str | None = None,
    ) -> Tensor:
        """Return the output of one joint attention with the regions applied, ``[B, H, N, D]``.

        Args:
            q, k, v: of all tokens, ``[B, H, N, D]``.
            spans: where texts and picture stand. Without the regions' texts nothing acts but is recorded.
            latent: height and width of the latents of this pass.
            patch: side of a patch, latent cells.
            sigma: the current noise level.
            attend: the host's plain attention.
            part: the part of the sampled picture that the pass is over; None: all of it.
            mask: the host's own additive mask, which broadcasts to ``[B, H, N, N]``.
            fused: whether PyTorch's kernels may be used instead of ``attend``.
            way: one of :data:`~.joint_attention.WAYS`; None: the cheapest that is exact.
        """
        acting = self.acts(sigma)
        stage = self._stage(spans, latent, patch, sigma > FORMING, q.device, part, acting)
        amount = self.amount(sigma) if acting else 0.0
        pushes = self._pushes(stage, amount)
        if self.maps is not None and part is None:
            self.maps.add(spans.grid, self._read_shares(q, k, spans, stage, amount))
        if not acting:
            return attend(q, k, v, mask)
        pushed = any(p is not None for p in pushes)
        way = way or cheapest_way(stage.read, q, pushed=pushed, masked=mask is not None, fused=fused)
        return attend_jointly(q, k, v, stage.read, way, attend, pushes=pushes, mask=mask)

    def amount(self, sigma: float) -> float:
        """Return f(sigma), the amount by which words are pushed."""
        return self.settings.amount(min(sigma, HIGHEST))

    def refine(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, attend: Attend, mask: Tensor | None = None
    ) -> Tensor:
        """Return the attention of texts to themselves, ``[B, H, T, D]``, each apart from the others.

        Args:
            q, k, v: of the text tokens, ``[B, H, T, D]``.
            spans: where they stand; a text's place among the text tokens is its place in the sequence less
                that of the first of them.
            attend: the host's plain attention.
            mask: the host's own additive mask, which broadcasts to ``[B, H, T, T]``.
        """
        ranges = [r for r in (spans.main, *spans.texts, spans.pads, spans.closed) if r]
        first = min(r.start for r in ranges)
        out = torch.zeros_like(q)
        for text in (tokens(spans.main, spans.pads), *(tokens(r) for r in spans.texts)):
            if len(text):
                rows = (text - first).to(q.device)
                own_q, own_k, own_v = (x.index_select(2, rows) for x in (q, k, v))
                out.index_copy_(2, rows, attend(own_q, own_k, own_v, pick_mask(mask, rows, rows)))
        return out

    def _stage(
        self, spans: Spans, latent: tuple[int, int], patch: int, forming: bool, device: torch.device,
        part: Part | None, acting: bool,
    ) -> _Stage:  # fmt: skip
        key = spans, latent, patch, forming, device, part, acting
        if key not in self._stages:
            whole = self._forming_masks if forming else self._masks
            masks = patch_masks(whole if part is None else part.cut(whole), latent, patch).flatten(1)
            own = [r.strength if t else 0.0 for r, t in zip(self.regions, spans.texts, strict=True)]
            weights = region_weights(masks, own if acting else [0.0] * len(own))
            main = (1 - weights.sum(0)).clamp(0, 1)
            if self.settings.mode == "eligen":
                weights, main = (weights > 0).float(), torch.ones_like(main)
            one_softmax = self.settings.mode in ("joint", "eligen")
            read = reading(
                spans, weights, main, one_softmax=one_softmax, repeat=self.settings.mode == "eligen"
            )
            pushed = [_own_push(r, len(t)) for r, t in zip(self.regions, spans.texts, strict=True)]
            self._stages[key] = _Stage(
                read.to(device), weights.to(device), self._push_of(spans, masks, read, device),
                tuple(None if p is None else p.to(device) for p in pushed),
            )  # fmt: skip
        return self._stages[key]

    def _push_of(self, spans: Spans, masks: Tensor, read: Reading, device: torch.device) -> Tensor | None:
        """Return how much each token of the main prompt's text and padding is pushed at each token of the
        picture and references, ``[I, T]``."""
        inside, outside = [r.inside for r in self.regions], [r.outside for r in self.regions]
        push = word_push(masks, [r.words for r in self.regions], len(spans.main), inside, outside)
        if not bool(push.any()):
            return None
        push = push.repeat(spans.frames, 1)
        rest = len(read.picture) - len(push)
        return torch.nn.functional.pad(push, (0, len(spans.pads), 0, rest)).to(device)

    def _pushes(self, stage: _Stage, amount: float) -> list[Push | None]:
        """Return for every source of the reading what is added to its scores."""
        if not amount:
            return [None] * len(stage.read.sources)
        pushes: list[Push | None] = []
        for source in stage.read.sources:
            if source.region is None:
                pushes.append(_main_push(stage.push, source.rows, amount, self.settings.mode))
            else:
                pushes.append(_collage_push(stage.own[source.region], amount))
        return pushes

    def _read_shares(self, q: Tensor, k: Tensor, spans: Spans, stage: _Stage, amount: float) -> Tensor:
        """Return the share of each pixel's attention to text that goes to each layer's words, in the main prompt
        and in the layer's own, ``[B, L, N]``, the mean over frames."""
        image = tokens(spans.image).to(q.device)
        queries = q.index_select(2, image)
        push = stage.push if amount else None
        if push is not None:
            push = push[: len(image), : len(spans.main)]
        rows = torch.arange(len(image), device=q.device)
        words = [r.words for r in self.regions]
        of_main = _word_shares(
            queries, k, spans.main, words, _main_push(push, rows, amount, self.settings.mode)
        )
        weights = stage.weights.repeat(1, spans.frames)
        rest = (1 - weights.sum(0)).clamp_min(0)
        shares = []
        for region, text, weight, share, own in zip(
            self.regions, spans.texts, weights, of_main, stage.own, strict=True
        ):
            share = share * rest
            if text and region.own and bool(weight.any()):
                push_own = _collage_push(own if amount else None, amount)
                share = share + _word_shares(queries, k, text, [region.own], push_own)[0] * weight
            shares.append(share)
        found = torch.stack(shares, 1)
        return found.view(*found.shape[:2], spans.frames, -1).mean(2)


def _main_push(push: Tensor | None, rows: Tensor, amount: float, mode: str) -> Push | None:
    if push is None:
        return None
    own, of_mode = push[rows], paint_push if mode == "paint with words" else collage_push
    return lambda s: of_mode(s, own, amount)


def _collage_push(push: Tensor | None, amount: float) -> Push | None:
    return None if push is None else lambda s: collage_push(s, push, amount)


def _own_push(region: Region, count: int) -> Tensor | None:
    """Return how much each token of a region's own text of ``count`` tokens is pushed, ``[1, T]``."""
    if not count or not region.own or not region.inside:
        return None
    push = torch.zeros(1, count)
    push[:, list(region.own)] = region.inside
    return push


def _word_shares(
    q: Tensor, k: Tensor, text: range, words: Sequence[Sequence[int]], push: Push | None
) -> list[Tensor]:
    """Return for each group of ``words``, places in ``text``, its share of attention to the text, the mean over
    heads, ``[B, N]``."""
    scores = scores_of(q, k[:, :, text.start : text.stop])
    if push is not None:
        scores = scores + push(scores)
    probabilities = scores.softmax(-1).mean(1)
    return [probabilities[..., list(own)].sum(-1) for own in words]
