"""Regional prompting of a whole run: what the two halves of guidance attend to, whatever the host.

A host makes a :class:`Plan` of the document, encodes its texts, and calls :class:`RegionalAttention` at every
cross-attention.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.masks import grown_masks, mask_pyramid
from ..errors import invalid
from ..noise.guidance import FORMING, region_factor
from ..noise.window import ALWAYS, Window
from .attention_maps import AttentionMaps
from .cross_attention import Attend, collage, joint, paint_with_words, scores, weigh, word_push, word_shares
from .regional_plan import Region, Settings
from .tiles import Tiles, attend_regions, not_none, region_weights, tile

ProjectWords = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A block's projections of encoded words: ``[L, T, C']`` to keys and values ``[L, T, C]``."""


@dataclass(frozen=True)
class _Level:
    """What all blocks of one resolution share."""

    masks: Tensor
    """``[L, N]``."""
    weights: Tensor
    """Share of every region's own prompt, ``[L, N]``."""
    tiles: list[Tiles]
    """Of ``weights``."""
    push: Tensor | None
    """Of the main prompt's words, ``[N, T]``; None where none is pushed."""


class RegionalAttention:
    """One half of guidance in one run: call it at every cross-attention. It remembers what does not change
    from step to step."""

    def __init__(
        self,
        regions: Sequence[Region],
        settings: Settings,
        contexts: Sequence[Tensor | None],
        tokens: int,
        window: tuple[float, float] = ALWAYS,
        maps: AttentionMaps | None = None,
        length: int | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            regions: of this half, at least one.
            settings: see the class.
            contexts: encoded text of every region ``[T_i, C']``, None where it has no text of its own.
            tokens: T of the main prompt.
            window: the noise levels at which the regions act, a :class:`~layered_core.noise.window.Window`.
            maps: where to record what the layers' words attend to.
            length: T and what others have appended to the main prompt's tokens, which no layer pushes. None:
                T.

        Raises:
            LayeredError: ``length`` is less than T.
        """
        self.regions, self.settings, self.contexts, self.tokens, self.maps = (
            regions,
            settings,
            contexts,
            tokens,
            maps,
        )
        self.length = tokens if length is None else length
        if self.length < tokens:
            raise invalid(
                "tokens of the prompt that has regions",
                self.length,
                f"{tokens} and more",
                "Connect it as it was encoded",
            )
        self.window = Window(*window)
        self._masks = torch.stack([r.mask for r in regions])
        self._forming_masks = grown_masks(self._masks, round(settings.growth * min(self._masks.shape[-2:])))
        self._levels: dict[tuple[tuple[int, int], bool, torch.device], _Level] = {}
        self._projected: dict[Hashable, tuple[list[Tensor | None], list[Tensor | None]]] = {}

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        base: Tensor,
        *,
        size: tuple[int, int],
        sigma: float,
        heads: int,
        block: Hashable,
        project: ProjectWords,
        attend: Attend,
    ) -> Tensor:
        """What the pixels attend to, ``[B, N, C]``.

        Args:
            q: ``[B, N, C]``; k, v: the main prompt's ``[B, K, C]``, K its ``length``, or a multiple of that
                where the host repeats its tokens.
            base: attention to the main prompt, ``[B, N, C]``; returned as it is where nothing acts.
            size: h, w of the feature map, h w = N.
            sigma: noise level.
            heads: of this cross-attention.
            block: names it, for as long as its weights stay the same; None: they may change at any step.
            project: its projections.
            attend: the host's plain attention.

        Raises:
            LayeredError: K is no multiple of ``length``.
        """
        acting = self.window.acts(sigma) and any(r.acts for r in self.regions)
        if not acting and self.maps is None:
            return base
        level = self._level(size, sigma > FORMING, q.device)
        keys, values = (
            self._keys_and_values(block, q, project) if acting else ([None] * len(self.regions),) * 2
        )
        amount = self.settings.amount(sigma) if acting else 0.0
        push = self._as_keys(level.push, k) if level.push is not None and amount else None
        if self.maps is not None:
            self.maps.add(size, self._word_shares(level, q, k, keys, push, amount, heads))
        if not acting:
            return base
        if self.settings.mode == "joint" and any(x is not None for x in keys):
            own = [i for i, x in enumerate(keys) if x is not None]
            # A token that the host repeats must not count as often.
            rest = (1 - level.weights.sum(0, keepdim=True)) / self._repeats(k)
            weights = torch.cat([rest, level.weights[own]])
            return joint(
                q,
                k,
                v,
                weights,
                [not_none(keys[i]) for i in own],
                [not_none(values[i]) for i in own],
                heads,
                attend,
            )
        if push is not None:
            base = weigh(self._pushed(scores(q, k, heads), push, amount), v, heads)
        emphasis = None
        if amount and any(r.own and r.inside for r in self.regions):
            emphasis = [
                None if x is None else _marked(r.own, len(x), q.device) * r.inside
                for r, x in zip(self.regions, keys, strict=True)
            ]
        return attend_regions(
            q, base, level.tiles, keys, values, heads, emphasis=emphasis, amount=amount, attend=attend
        )

    def guidance(self, size: tuple[int, int], sigma: float) -> Tensor:
        """Factor on the guidance scale of every pixel of the latent, ``[h, w]`` on the CPU; ones where
        nothing acts."""
        factor = self.settings.guidance if self.window.acts(sigma) else 1.0
        return region_factor(
            mask_pyramid(self._masks, [size])[0], [r.guided for r in self.regions], factor, sigma
        )

    def _level(self, size: tuple[int, int], forming: bool, device: torch.device) -> _Level:
        if (size, forming, device) not in self._levels:
            masks = (
                mask_pyramid(self._forming_masks if forming else self._masks, [size])[0].flatten(1).to(device)
            )
            weights = region_weights(
                masks,
                [
                    r.strength if c is not None else 0.0
                    for r, c in zip(self.regions, self.contexts, strict=True)
                ],
            )
            tiles = tile(weights, [0 if c is None else len(c) for c in self.contexts])
            inside, outside = [r.inside for r in self.regions], [r.outside for r in self.regions]
            push = word_push(masks, [r.words for r in self.regions], self.tokens, inside, outside)
            self._levels[size, forming, device] = _Level(
                masks, weights, tiles, push if bool(push.any()) else None
            )
        return self._levels[size, forming, device]

    def _keys_and_values(
        self, block: Hashable, q: Tensor, project: ProjectWords
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Of every region ``[T_i, C]``; regions of equal length are projected together."""
        if block is not None and block in self._projected:
            return self._projected[block]
        keys: list[Tensor | None] = [None] * len(self.regions)
        values = list(keys)
        for length in {len(c) for c in self.contexts if c is not None}:
            same = [i for i, c in enumerate(self.contexts) if c is not None and len(c) == length]
            k, v = project(torch.stack([not_none(self.contexts[i]) for i in same]).to(q.device, q.dtype))
            for n, i in enumerate(same):
                keys[i], values[i] = k[n], v[n]
        if block is not None:
            self._projected[block] = keys, values
        return keys, values

    def _pushed(self, scores: Tensor, push: Tensor, amount: float) -> Tensor:
        push_words = paint_with_words if self.settings.mode == "paint with words" else collage
        return push_words(scores, push, amount)

    def _as_keys(self, x: Tensor, k: Tensor) -> Tensor:
        """What is said of the main prompt's tokens, ``[..., T]``, of all keys ``[..., K]``: 0 of appended
        ones, again where they are repeated."""
        return torch.cat([functional.pad(x, (0, self.length - self.tokens))] * self._repeats(k), -1)

    def _repeats(self, k: Tensor) -> int:
        """How often the host has the main prompt in ``k`` ``[B, K, C]``."""
        times, rest = divmod(k.shape[1], self.length)
        if rest:
            allowed = f"{self.length}, or a multiple of it"
            raise invalid(
                "tokens of the prompt in a cross-attention",
                k.shape[1],
                allowed,
                "Take off the patch that adds or drops tokens there",
            )
        return times

    def _word_shares(
        self,
        level: _Level,
        q: Tensor,
        k: Tensor,
        keys: Sequence[Tensor | None],
        push: Tensor | None,
        amount: float,
        heads: int,
    ) -> Tensor:
        """How much of each pixel's attention goes to each layer's words, in the main prompt and in its own,
        ``[B, L, N]``."""
        found = scores(q, k, heads)
        if push is not None:
            found = self._pushed(found, push, amount)
        own = [x is not None for x in keys]
        rest = 1 - (level.weights * level.weights.new_tensor(own)[:, None]).sum(0)
        shares = []
        for region, weight, key in zip(self.regions, level.weights, keys, strict=True):
            share = word_shares(found, self._as_keys(_marked(region.words, self.tokens, q.device), k)) * rest
            if key is not None:
                mine = scores(q, key.expand(len(q), *key.shape), heads)
                share = share + word_shares(mine, _marked(region.own, len(key), q.device)) * weight
            shares.append(share)
        return torch.stack(shares, 1)


def _marked(indices: Sequence[int], length: int, device: torch.device) -> Tensor:
    """1 at ``indices`` and 0 elsewhere, ``[length]``."""
    marks = torch.zeros(length, device=device)
    marks[list(indices)] = 1
    return marks
