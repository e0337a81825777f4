"""Regional prompting of a whole run: what the two halves of guidance attend to, whatever the host.

A host makes a :class:`Plan` of the document, encodes its texts, and calls :class:`RegionalAttention` at every cross-attention.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.masks import grown_masks, layer_alphas, mask_pyramid, visible_masks
from ..document import Layer, LayerDocument
from ..errors import check_number, invalid
from ..noise.guidance import FORMING, region_factor
from ..noise.window import ALWAYS, Window
from . import cross_attention as attention
from .attention_maps import AttentionMaps
from .cross_attention import LEAST_WEIGHT, SCHEDULES, Attend, Tiles
from .words import Match, Tokenise, find_words, join, layer_words, negative_texts

MODES = ("regions", "joint", "collage", "paint with words")
"""``regions``: every layer has its own prompt and its share of the attention where it is seen. ``joint``: the same prompts in one softmax.
``collage`` and ``paint with words``: one prompt, in which a layer's words are pushed into its mask (Collage Diffusion, eDiff-I)."""

PAINT_WITH_WORDS = 0.1
"""Weight of a layer of strength 1 in ``paint with words``: the factor of cloneofsimo/paint-with-words-sd."""

Project = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A block's projections of encoded words: ``[L, T, C']`` to keys and values ``[L, T, C]``."""


@dataclass(frozen=True)
class Settings:
    """How words act where their layers are."""

    mode: str = "regions"
    """One of ``MODES``."""
    schedule: str = "auto"
    """How the push of words follows the noise: a name of ``SCHEDULES``, or ``auto``: ``log log`` in ``collage``, else ``log``."""
    strength: float = 1.0
    """Factor on every layer's strengths, 0..1. Neutral: 0, the plain prompt."""
    start: float = 0.0
    """Share of the sampling at which regions begin to act, 0..1. Neutral: 0."""
    end: float = 1.0
    """Share of the sampling at which they cease, ``start``..1. Neutral: 1."""
    global_weight: float = 0.2
    """Share of attention that the global prompt keeps where a layer is, 0..1; ``regions`` and ``joint``. Neutral: 0."""
    emphasis: float = 0.5
    """How much a layer's own words are pushed inside beyond their share, 0..2; ``regions``. Neutral: 0."""
    guidance: float = 1.0
    """Factor on classifier-free guidance where layers are, while what is where is being decided, 1..10; see
    :func:`~layered_core.noise.guidance.region_factor`. Neutral: 1."""
    growth: float = 0.0
    """How much wider layers are for their words while what is where is being decided, share of the canvas's shorter side, 0..0.25; see
    :func:`~layered_core.canvas.masks.grown_masks`. Neutral: 0."""
    auto_negative: bool = False
    """Whether a layer's prompt is negative outside the layer. Neutral: False."""
    append: bool = False
    """Whether words that the prompt lacks are appended to it, instead of an error; ``collage`` and ``paint with words``. Neutral: False."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise invalid("mode", self.mode, ", ".join(MODES))
        if self.schedule != "auto" and self.schedule not in SCHEDULES:
            raise invalid("schedule", self.schedule, ", ".join(["auto", *SCHEDULES]))
        check_number("strength", self.strength, 0, 1)
        check_number("start", self.start, 0, 1)
        check_number("end", self.end, self.start, 1)
        check_number("global_weight", self.global_weight, 0, 1)
        check_number("emphasis", self.emphasis, 0, 2)
        check_number("guidance", self.guidance, 1, 10)
        check_number("growth", self.growth, 0, 0.25)

    def amount(self, sigma: float) -> float:
        """f(sigma), see ``SCHEDULES``."""
        name = self.schedule if self.schedule != "auto" else "log log" if self.mode == "collage" else "log"
        return SCHEDULES[name](sigma)


@dataclass(frozen=True)
class Region:
    """A part of the canvas and its words, for one half of guidance."""

    name: str
    """The layer's."""
    mask: Tensor
    """Visible mask, float32 ``[H, W]``, 0..1."""
    text: str = ""
    """The region's own prompt; empty for the main one."""
    strength: float = 0.0
    """Share of attention of ``text`` inside, 0..1."""
    words: tuple[int, ...] = ()
    """Places of the layer's words among the keys of the main prompt."""
    inside: float = 0.0
    """How much ``words`` are pushed inside the mask."""
    outside: float = 0.0
    """How much ``words`` are pushed out of the rest."""
    own: tuple[int, ...] = ()
    """Places of the layer's words among the keys of ``text``."""
    guided: float = 0.0
    """How much of the settings' ``guidance`` it gets, 0..1."""

    @property
    def acts(self) -> bool:
        """Whether it changes anything at all."""
        return bool((self.text and self.strength >= LEAST_WEIGHT) or (self.words and (self.inside or self.outside)))


@dataclass(frozen=True)
class Plan:
    """The texts to encode, and what each half of guidance attends to where."""

    prompt: str
    """The main positive prompt."""
    negative: str
    """The main negative prompt."""
    cond: tuple[Region, ...]
    """Regions of the conditional half; none: the plain prompt."""
    uncond: tuple[Region, ...]
    """Regions of the unconditional half; none: the plain negative prompt."""


def make_plan(
    document: LayerDocument, settings: Settings, prompt: str, negative: str, tokenise: Tokenise, embedding_prefix: str = "", record: bool = False
) -> Plan:
    """Decide which words act where.

    Args:
        document: its layers that have words and are seen anywhere become regions; the place of others is left to the main prompt.
        settings: see the class. Strength 0 gives regions that do nothing.
        prompt: of the whole picture; empty: the document's own words.
        negative: of the whole picture; empty: the document's own.
        tokenise: the host's tokenizer.
        embedding_prefix: see :func:`~layered_core.attention.words.layer_words`.
        record: what words attend to is to be recorded: they must be in the prompt even at strength 0.

    Raises:
        LayeredError: ``collage`` or ``paint with words``, and a layer's words are not in the prompt or cannot be told apart there.
    """
    prompt, negative = prompt.strip() or document.words, negative.strip() or document.negative
    masks, rest = visible_masks(layer_alphas(document))
    seen = [(layer, mask) for layer, mask in zip(document, masks, strict=True) if bool((mask > 0).any())]
    told = [(layer, mask, words) for layer, mask in seen if (words := layer_words(layer, embedding_prefix))]
    pushed = settings.mode in ("collage", "paint with words") and (settings.strength > 0 or record)
    tokens = [tokenise(words) for *_, words in told]
    if pushed and settings.append:
        prompt = _with_all(prompt, [words for *_, words in told], tokenise)
    matches = find_words(tokenise(prompt), tokens)
    cond = []
    for (layer, mask, words), own, match in zip(told, tokens, matches, strict=True):
        if pushed:
            _check_match(layer.name, words, match)
        into, out_of = settings.strength * layer.recipe.inside, settings.strength * layer.recipe.outside
        if settings.mode == "collage":
            region = Region(layer.name, mask, words=match.indices, inside=into, outside=out_of)
        elif settings.mode == "paint with words":
            region = Region(layer.name, mask, words=match.indices, inside=PAINT_WITH_WORDS * into)
        else:
            region = Region(layer.name, mask, words, into * (1 - settings.global_weight), match.indices, own=tuple(t.index for t in own))
            if settings.mode == "regions":
                region = replace(region, inside=settings.emphasis * into, outside=out_of)
        cond.append(replace(region, guided=into))
    return Plan(prompt, negative, tuple(cond), tuple(_negative_regions(seen, rest, negative, settings, embedding_prefix)))


def plan_watching(
    document: LayerDocument, layers: Sequence[Layer], prompt: str, negative: str, tokenise: Tokenise, embedding_prefix: str = ""
) -> Plan:
    """A plan in which nothing acts, to record what the words of ``layers`` attend to of their own accord; words the prompt lacks are appended.

    Raises:
        LayeredError: a layer's words cannot be told apart in the prompt.
    """
    words = [layer_words(layer, embedding_prefix) for layer in layers]
    prompt = _with_all(prompt.strip() or document.words, words, tokenise)
    matches = find_words(tokenise(prompt), [tokenise(w) for w in words])
    for layer, own, match in zip(layers, words, matches, strict=True):
        _check_match(layer.name, own, match)
    regions = tuple(Region(layer.name, torch.zeros(1, 1), words=match.indices) for layer, match in zip(layers, matches, strict=True))
    return Plan(prompt, negative.strip() or document.negative, regions, ())


def _with_all(prompt: str, words: Sequence[str], tokenise: Tokenise) -> str:
    """The prompt, with those of ``words`` appended that are not in it."""
    found = find_words(tokenise(prompt), [tokenise(w) for w in words])
    return join(prompt, *(w for w, match in zip(words, found, strict=True) if not match.found))


def _negative_regions(seen: Sequence[tuple[Layer, Tensor]], rest: Tensor, negative: str, settings: Settings, embedding_prefix: str) -> list[Region]:
    """Regions of the unconditional half: those whose negative words are not the main ones. A layer of strength 0 has no say."""
    heard = [layer.recipe.inside > 0 for layer, _ in seen]
    prompts = [layer_words(layer, embedding_prefix) if h else "" for (layer, _), h in zip(seen, heard, strict=True)]
    own = [layer.negative if h else "" for (layer, _), h in zip(seen, heard, strict=True)]
    texts, outside = negative_texts(negative, prompts, own, settings.auto_negative)
    masks = [*(mask for _, mask in seen), rest]
    names = [*(layer.name for layer, _ in seen), "no layer"]
    found = zip(names, masks, [*texts, outside], strict=True)
    return [Region(name, mask, text, settings.strength) for name, mask, text in found if text != join(negative) and bool((mask > 0).any())]


def _check_match(name: str, words: str, match: Match) -> None:
    where = f"layer {name!r}: words {words!r} in the prompt"
    if not match.found:
        raise invalid(where, "not found", "the layer's words as they stand in it", "Write them into the prompt, or switch 'append' on")
    if not match.indices:
        many = "once, as one layer has them" if match.wanted == 1 else f"once, or {match.wanted} times as that many layers have them"
        raise invalid(where, f"found {match.found} times", many, "Make the layer's words longer, such as 'red ball' for 'ball'")


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
    """One half of guidance in one run: call it at every cross-attention. It remembers what does not change from step to step."""

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
            length: T and what others have appended to the main prompt's tokens, which no layer pushes. None: T.

        Raises:
            LayeredError: ``length`` is less than T.
        """
        self.regions, self.settings, self.contexts, self.tokens, self.maps = regions, settings, contexts, tokens, maps
        self.length = tokens if length is None else length
        if self.length < tokens:
            raise invalid("tokens of the prompt that has regions", self.length, f"{tokens} and more", "Connect it as it was encoded")
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
        project: Project,
        attend: Attend,
    ) -> Tensor:
        """What the pixels attend to, ``[B, N, C]``.

        Args:
            q: ``[B, N, C]``; k, v: the main prompt's ``[B, K, C]``, K its ``length``, or a multiple of that where the host repeats its tokens.
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
        keys, values = self._keys_and_values(block, q, project) if acting else ([None] * len(self.regions),) * 2
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
            return attention.joint(q, k, v, weights, [_have(keys[i]) for i in own], [_have(values[i]) for i in own], heads, attend)
        if push is not None:
            base = attention.weigh(self._pushed(attention.scores(q, k, heads), push, amount), v, heads)
        emphasis = None
        if amount and any(r.own and r.inside for r in self.regions):
            emphasis = [None if x is None else _marked(r.own, len(x), q.device) * r.inside for r, x in zip(self.regions, keys, strict=True)]
        return attention.regions(q, base, level.tiles, keys, values, heads, emphasis=emphasis, amount=amount, attend=attend)

    def guidance(self, size: tuple[int, int], sigma: float) -> Tensor:
        """Factor on the guidance scale of every pixel of the latent, ``[h, w]`` on the CPU; ones where nothing acts."""
        factor = self.settings.guidance if self.window.acts(sigma) else 1.0
        return region_factor(mask_pyramid(self._masks, [size])[0], [r.guided for r in self.regions], factor, sigma)

    def _level(self, size: tuple[int, int], forming: bool, device: torch.device) -> _Level:
        if (size, forming, device) not in self._levels:
            masks = mask_pyramid(self._forming_masks if forming else self._masks, [size])[0].flatten(1).to(device)
            weights = attention.region_weights(
                masks, [r.strength if c is not None else 0.0 for r, c in zip(self.regions, self.contexts, strict=True)]
            )
            tiles = attention.tile(weights, [0 if c is None else len(c) for c in self.contexts])
            inside, outside = [r.inside for r in self.regions], [r.outside for r in self.regions]
            push = attention.word_push(masks, [r.words for r in self.regions], self.tokens, inside, outside)
            self._levels[size, forming, device] = _Level(masks, weights, tiles, push if bool(push.any()) else None)
        return self._levels[size, forming, device]

    def _keys_and_values(self, block: Hashable, q: Tensor, project: Project) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Of every region ``[T_i, C]``; regions of equal length are projected together."""
        if block is not None and block in self._projected:
            return self._projected[block]
        keys: list[Tensor | None] = [None] * len(self.regions)
        values = list(keys)
        for length in {len(c) for c in self.contexts if c is not None}:
            same = [i for i, c in enumerate(self.contexts) if c is not None and len(c) == length]
            k, v = project(torch.stack([_have(self.contexts[i]) for i in same]).to(q.device, q.dtype))
            for n, i in enumerate(same):
                keys[i], values[i] = k[n], v[n]
        if block is not None:
            self._projected[block] = keys, values
        return keys, values

    def _pushed(self, scores: Tensor, push: Tensor, amount: float) -> Tensor:
        push_words = attention.paint_with_words if self.settings.mode == "paint with words" else attention.collage
        return push_words(scores, push, amount)

    def _as_keys(self, x: Tensor, k: Tensor) -> Tensor:
        """What is said of the main prompt's tokens, ``[..., T]``, of all keys ``[..., K]``: 0 of appended ones, again where they are repeated."""
        return torch.cat([functional.pad(x, (0, self.length - self.tokens))] * self._repeats(k), -1)

    def _repeats(self, k: Tensor) -> int:
        """How often the host has the main prompt in ``k`` ``[B, K, C]``."""
        times, rest = divmod(k.shape[1], self.length)
        if rest:
            allowed = f"{self.length}, or a multiple of it"
            raise invalid("tokens of the prompt in a cross-attention", k.shape[1], allowed, "Take off the patch that adds or drops tokens there")
        return times

    def _word_shares(
        self, level: _Level, q: Tensor, k: Tensor, keys: Sequence[Tensor | None], push: Tensor | None, amount: float, heads: int
    ) -> Tensor:
        """How much of each pixel's attention goes to each layer's words, in the main prompt and in its own, ``[B, L, N]``."""
        scores = attention.scores(q, k, heads)
        if push is not None:
            scores = self._pushed(scores, push, amount)
        own = [x is not None for x in keys]
        rest = 1 - (level.weights * level.weights.new_tensor(own)[:, None]).sum(0)
        shares = []
        for region, weight, key in zip(self.regions, level.weights, keys, strict=True):
            share = attention.word_shares(scores, self._as_keys(_marked(region.words, self.tokens, q.device), k)) * rest
            if key is not None:
                mine = attention.scores(q, key.expand(len(q), *key.shape), heads)
                share = share + attention.word_shares(mine, _marked(region.own, len(key), q.device)) * weight
            shares.append(share)
        return torch.stack(shares, 1)


def _marked(indices: Sequence[int], length: int, device: torch.device) -> Tensor:
    """1 at ``indices`` and 0 elsewhere, ``[length]``."""
    marks = torch.zeros(length, device=device)
    marks[list(indices)] = 1
    return marks


def _have(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
