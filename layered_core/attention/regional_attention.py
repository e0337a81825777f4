"""Regional prompts in a sampling run, for any host.

A host makes a :class:`~.regional_plan.Plan` of the document, encodes its texts, makes one
:class:`RegionalAttention` for cond and one for uncond, and calls them at every cross-attention.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.masks import grown_masks, mask_pyramid
from ..errors import invalid
from ..noise.guidance import FORMING, region_factor, rescaling
from ..noise.window import ALWAYS, Window
from .attention_maps import AttentionMaps
from .cross_attention import Attend, collage, joint, paint_with_words, scores, weigh, word_push, word_shares
from .parts import Part
from .regional_plan import Region, Settings
from .tiles import LEAST_WEIGHT, Tiles, attend_regions, not_none, region_weights, tile

ProjectWords = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The key and value projections of a block: encoded text ``[L, T, C']`` to keys and values ``[L, T, C]``, or
``[L, B, T, C]`` if they differ from picture to picture. A host's patches may change the number of tokens."""


ChangeWords = Callable[[Sequence[int], Tensor, Tensor], tuple[Tensor, Tensor]]
"""Changes keys and values ``[L, T, C]`` or ``[L, B, T, C]`` of the regions with the given numbers, as learnt words
ask: :func:`layered_core.learning.word_values.with_values`."""


KeysAndValues = tuple[list[Tensor | None], list[Tensor | None]]
"""Keys and values of every region, ``[T_i, C]`` or ``[B, T_i, C]``; None for a region without its own text."""


@dataclass(frozen=True)
class _Level:
    """Masks and weights that all blocks of one resolution share."""

    masks: Tensor
    """Visible masks, ``[L, N]``."""
    weights: Tensor
    """Share of attention that goes to each region's own prompt, ``[L, N]``."""
    tiles: list[Tiles]
    """The tiles of ``weights``."""
    push: Tensor | None
    """How much each token of the main prompt is pushed at each pixel, ``[N, T]``; None if no token is."""


class RegionalAttention:
    """The regions of cond or of uncond in one run; call it at every cross-attention. It caches whatever does
    not change from step to step."""

    def __init__(
        self,
        regions: Sequence[Region],
        settings: Settings,
        contexts: Sequence[Tensor | None],
        tokens: int,
        window: tuple[float, float] = ALWAYS,
        maps: AttentionMaps | None = None,
        length: int | None = None,
        cut: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            regions: the regions of cond or of uncond, at least one.
            settings: see :class:`~.regional_plan.Settings`.
            contexts: encoded text of every region ``[T_i, C']``; None for a region without its own text.
            tokens: T, number of tokens of the main prompt.
            window: sigmas at which the regions act, a :class:`~layered_core.noise.window.Window`.
            maps: records what the layers' words attend to, if given.
            length: number of keys of the main prompt, including tokens that other nodes appended, which no
                layer pushes. None: T.
            cut: cuts masks ``[L, H, W]`` of the canvas as the sampled picture was cut out of it. None: the
                whole canvas is sampled.

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
                "number of tokens of the prompt that has regions",
                self.length,
                f"{tokens} and more",
                "Connect the conditioning as it was encoded, not shortened",
            )
        self.window = Window(*window)
        self._masks = torch.stack([r.mask for r in regions])
        self._forming_masks = grown_masks(self._masks, round(settings.growth * min(self._masks.shape[-2:])))
        if cut is not None:
            self._masks, self._forming_masks = cut(self._masks), cut(self._forming_masks)
        self._levels: dict[tuple[tuple[int, int], bool, torch.device, Part | None], _Level] = {}
        self._projected: dict[Hashable, KeysAndValues] = {}

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
        part: Part | None = None,
        texts: KeysAndValues | None = None,
        change: ChangeWords | None = None,
    ) -> Tensor:
        """Return the output of one cross-attention with the regions applied, ``[B, N, C]``.

        Args:
            q: queries ``[B, N, C]``.
            k, v: keys and values of the main prompt, ``[B, K, C]``. K is ``length``, or a multiple of it if
                the host repeats the prompt's tokens.
            base: attention to the main prompt, ``[B, N, C]``; returned unchanged if nothing acts.
            size: h, w of the feature map, h w = N.
            sigma: the current noise level.
            heads: number of heads of this cross-attention.
            block: key under which the projected texts are cached, as long as the block's weights stay the
                same. None: the weights may change at any step, so nothing is cached.
            project: the block's key and value projections.
            attend: the host's plain attention.
            part: the part of the sampled picture that the feature map shows; None: all of it. Parts are not
                recorded.
            texts: keys and values of every region, if the host has them already; nothing is projected then.
            change: changes the projected keys and values of the regions; None: no region has a learnt word.

        Raises:
            LayeredError: K is no multiple of ``length``.
        """
        acting = self.acts(sigma)
        maps = self.maps if part is None else None
        if not acting and maps is None:
            return base
        level = self._level(size, sigma > FORMING, q.device, part)
        nothing: KeysAndValues = [None] * len(self.regions), [None] * len(self.regions)
        keys, values = (texts or self._keys_and_values(block, q, project, change)) if acting else nothing
        amount = self.amount(sigma) if acting else 0.0
        push = self._spread_over_keys(level.push, k) if level.push is not None and amount else None
        if maps is not None:
            maps.add(size, self._word_shares(level, q, k, keys, push, amount, heads))
        if not acting:
            return base
        if self.settings.mode == "joint" and any(x is not None for x in keys):
            own = [i for i, x in enumerate(keys) if x is not None]
            # The host may repeat the prompt's tokens; together they must count only once.
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
            base = weigh(self._push_scores(scores(q, k, heads), push, amount), v, heads)
        emphasis = None
        if amount and any(r.own and r.inside for r in self.regions):
            emphasis = [
                None if x is None else _indicator(r.own, x.shape[-2], q.device) * r.inside
                for r, x in zip(self.regions, keys, strict=True)
            ]
        return attend_regions(
            q, base, level.tiles, keys, values, heads, emphasis=emphasis, amount=amount, attend=attend
        )

    def regions_of_length(self, length: int) -> list[int]:
        """Return the numbers of the regions whose own text has so many tokens; they are projected together, in this
        order."""
        return [i for i, c in enumerate(self.contexts) if c is not None and len(c) == length]

    def acts(self, sigma: float) -> bool:
        """Return whether any region changes attention at this noise level."""
        return self.window.acts(sigma) and any(r.acts for r in self.regions)

    def amount(self, sigma: float) -> float:
        """Return f(sigma), the amount by which words are pushed."""
        return self.settings.amount(sigma)

    def unseen(self, size: tuple[int, int]) -> list[str]:
        """Return the names of the layers with words that reach no cell of a map of ``size`` (h, w): they are too
        small to act."""
        weights = mask_pyramid(self._forming_masks, [size])[0].amax((1, 2))
        return [
            r.name for r, most in zip(self.regions, weights, strict=True) if r.acts and most < LEAST_WEIGHT
        ]

    def guidance(self, size: tuple[int, int], sigma: float) -> Tensor:
        """Return the factor on the guidance scale of every latent cell, ``[h, w]`` on the CPU; 1 if nothing
        acts."""
        factor = self.settings.guidance if self.window.acts(sigma) else 1.0
        return region_factor(
            mask_pyramid(self._masks, [size])[0], [r.guided for r in self.regions], factor, sigma
        )

    def rescaling(self, guided: Tensor, cond: Tensor, empty: Tensor | float, sigma: float) -> Tensor:
        """Return what rescaling the layers adds to the guided prediction ``[B, ..., h, w]``, 0 if nothing acts. See
        :func:`~layered_core.noise.guidance.rescaling`."""
        if not self.window.acts(sigma):
            return torch.zeros_like(guided)
        masks = mask_pyramid(self._masks, [(guided.shape[-2], guided.shape[-1])])[0]
        amounts = [self.settings.rescale * r.guided for r in self.regions]
        return rescaling(guided, cond, empty, masks, amounts)

    def _level(self, size: tuple[int, int], forming: bool, device: torch.device, part: Part | None) -> _Level:
        key = size, forming, device, part
        if key not in self._levels:
            whole = self._forming_masks if forming else self._masks
            shown = whole if part is None else part.cut(whole)
            masks = mask_pyramid(shown, [size])[0].flatten(1).to(device)
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
            self._levels[key] = _Level(masks, weights, tiles, push if bool(push.any()) else None)
        return self._levels[key]

    def _keys_and_values(
        self, block: Hashable, q: Tensor, project: ProjectWords, change: ChangeWords | None
    ) -> KeysAndValues:
        """Return keys and values of every region; texts of equal length are projected together."""
        if block is not None and block in self._projected:
            return self._projected[block]
        keys: list[Tensor | None] = [None] * len(self.regions)
        values = list(keys)
        for length in {len(c) for c in self.contexts if c is not None}:
            same = self.regions_of_length(length)
            k, v = project(torch.stack([not_none(self.contexts[i]) for i in same]).to(q.device, q.dtype))
            if change is not None:
                k, v = change(same, k, v)
            for n, i in enumerate(same):
                keys[i], values[i] = k[n], v[n]
        if block is not None:
            self._projected[block] = keys, values
        return keys, values

    def _push_scores(self, scores: Tensor, push: Tensor, amount: float) -> Tensor:
        push_words = paint_with_words if self.settings.mode == "paint with words" else collage
        return push_words(scores, push, amount)

    def _spread_over_keys(self, x: Tensor, k: Tensor) -> Tensor:
        """Spread per-token values ``[..., T]`` over all keys ``[..., K]``: appended tokens get 0, repeated
        tokens the same values again."""
        return torch.cat([functional.pad(x, (0, self.length - self.tokens))] * self._repeats(k), -1)

    def _repeats(self, k: Tensor) -> int:
        """Return how many times the host repeats the main prompt in ``k`` ``[B, K, C]``.

        Raises:
            LayeredError: K is no multiple of ``length``.
        """
        times, rest = divmod(k.shape[1], self.length)
        if rest:
            allowed = f"{self.length}, or a multiple of it"
            raise invalid(
                "number of tokens of the prompt in a cross-attention",
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
        """Return the share of each pixel's attention that goes to each layer's words, in the main prompt and
        in the layer's own, ``[B, L, N]``."""
        found = scores(q, k, heads)
        if push is not None:
            found = self._push_scores(found, push, amount)
        own = [x is not None for x in keys]
        rest = 1 - (level.weights * level.weights.new_tensor(own)[:, None]).sum(0)
        shares = []
        for region, weight, key in zip(self.regions, level.weights, keys, strict=True):
            share = (
                word_shares(found, self._spread_over_keys(_indicator(region.words, self.tokens, q.device), k))
                * rest
            )
            if key is not None:
                mine = scores(q, key.expand(len(q), *key.shape[-2:]), heads)
                share = share + word_shares(mine, _indicator(region.own, key.shape[-2], q.device)) * weight
            shares.append(share)
        return torch.stack(shares, 1)


def _indicator(indices: Sequence[int], length: int, device: torch.device) -> Tensor:
    """Return ``[length]`` with 1 at ``indices`` and 0 elsewhere."""
    marks = torch.zeros(length, device=device)
    marks[list(indices)] = 1
    return marks
