"""Which words act where, with what strength and for how long: the plan of a run with regional prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..canvas.masks import document_masks
from ..document import Layer, LayerDocument
from ..errors import check_number, invalid
from .cross_attention import SCHEDULES
from .tiles import LEAST_WEIGHT
from .words import Match, Tokenise, find_words, join, layer_words, negative_texts

REGION_MODES = ("regions", "joint", "collage", "paint with words")
"""``regions``: every layer has its own prompt and its share of the attention where it is seen. ``joint``: the
same prompts in one softmax. ``collage`` and ``paint with words``: one prompt, in which a layer's words are
pushed into its mask (Collage Diffusion, eDiff-I)."""


PAINT_WITH_WORDS = 0.1
"""Weight of a layer of strength 1 in ``paint with words``: the factor of cloneofsimo/paint-with-words-sd."""


@dataclass(frozen=True)
class Settings:
    """How words act where their layers are."""

    mode: str = "regions"
    """One of ``REGION_MODES``."""
    schedule: str = "auto"
    """How the push of words follows the noise: a name of ``SCHEDULES``, or ``auto``: ``log log`` in
    ``collage``, else ``log``."""
    strength: float = 1.0
    """Factor on every layer's strengths, 0..1. Neutral: 0, the plain prompt."""
    start: float = 0.0
    """Share of the sampling at which regions begin to act, 0..1. Neutral: 0."""
    end: float = 1.0
    """Share of the sampling at which they cease, ``start``..1. Neutral: 1."""
    global_weight: float = 0.2
    """Share of attention that the global prompt keeps where a layer is, 0..1; ``regions`` and ``joint``.
    Neutral: 0."""
    emphasis: float = 0.5
    """How much a layer's own words are pushed inside beyond their share, 0..2; ``regions``. Neutral: 0."""
    guidance: float = 1.0
    """Factor on classifier-free guidance where layers are, while what is where is being decided, 1..10; see
    :func:`~layered_core.noise.guidance.region_factor`. Neutral: 1."""
    growth: float = 0.0
    """How much wider layers are for their words while what is where is being decided, share of the canvas's
    shorter side, 0..0.25; see :func:`~layered_core.canvas.masks.grown_masks`. Neutral: 0."""
    auto_negative: bool = False
    """Whether a layer's prompt is negative outside the layer. Neutral: False."""
    append: bool = False
    """Whether words that the prompt lacks are appended to it, instead of an error; ``collage`` and
    ``paint with words``. Neutral: False."""

    def __post_init__(self) -> None:
        if self.mode not in REGION_MODES:
            raise invalid("mode", self.mode, ", ".join(REGION_MODES))
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
        return bool(
            (self.text and self.strength >= LEAST_WEIGHT) or (self.words and (self.inside or self.outside))
        )


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


def plan_regions(
    document: LayerDocument,
    settings: Settings,
    prompt: str,
    negative: str,
    tokenise: Tokenise,
    embedding_prefix: str = "",
    record: bool = False,
) -> Plan:
    """Decide which words act where.

    Args:
        document: its layers that have words and are seen anywhere become regions; the place of others is left
            to the main prompt.
        settings: see the class. Strength 0 gives regions that do nothing.
        prompt: of the whole picture; empty: the document's own words.
        negative: of the whole picture; empty: the document's own.
        tokenise: the host's tokenizer.
        embedding_prefix: see :func:`~layered_core.attention.words.layer_words`.
        record: what words attend to is to be recorded: they must be in the prompt even at strength 0.

    Raises:
        LayeredError: ``collage`` or ``paint with words``, and a layer's words are not in the prompt or cannot
            be told apart there.
    """
    prompt, negative = prompt.strip() or document.words, negative.strip() or document.negative
    masks, rest = document_masks(document)
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
            region = Region(
                layer.name,
                mask,
                words,
                into * (1 - settings.global_weight),
                match.indices,
                own=tuple(t.index for t in own),
            )
            if settings.mode == "regions":
                region = replace(region, inside=settings.emphasis * into, outside=out_of)
        cond.append(replace(region, guided=into))
    return Plan(
        prompt,
        negative,
        tuple(cond),
        tuple(_negative_regions(seen, rest, negative, settings, embedding_prefix)),
    )


def plan_watching(
    document: LayerDocument,
    layers: Sequence[Layer],
    prompt: str,
    negative: str,
    tokenise: Tokenise,
    embedding_prefix: str = "",
) -> Plan:
    """A plan in which nothing acts, to record what the words of ``layers`` attend to of their own accord;
    words the prompt lacks are appended.

    Raises:
        LayeredError: a layer's words cannot be told apart in the prompt.
    """
    words = [layer_words(layer, embedding_prefix) for layer in layers]
    prompt = _with_all(prompt.strip() or document.words, words, tokenise)
    matches = find_words(tokenise(prompt), [tokenise(w) for w in words])
    for layer, own, match in zip(layers, words, matches, strict=True):
        _check_match(layer.name, own, match)
    regions = tuple(
        Region(layer.name, torch.zeros(1, 1), words=match.indices)
        for layer, match in zip(layers, matches, strict=True)
    )
    return Plan(prompt, negative.strip() or document.negative, regions, ())


def _with_all(prompt: str, words: Sequence[str], tokenise: Tokenise) -> str:
    """The prompt, with those of ``words`` appended that are not in it."""
    found = find_words(tokenise(prompt), [tokenise(w) for w in words])
    return join(prompt, *(w for w, match in zip(words, found, strict=True) if not match.found))


def _negative_regions(
    seen: Sequence[tuple[Layer, Tensor]],
    rest: Tensor,
    negative: str,
    settings: Settings,
    embedding_prefix: str,
) -> list[Region]:
    """Regions of the unconditional half: those whose negative words are not the main ones. A layer of
    strength 0 has no say."""
    heard = [layer.recipe.inside > 0 for layer, _ in seen]
    prompts = [
        layer_words(layer, embedding_prefix) if h else "" for (layer, _), h in zip(seen, heard, strict=True)
    ]
    own = [layer.negative if h else "" for (layer, _), h in zip(seen, heard, strict=True)]
    texts, outside = negative_texts(negative, prompts, own, settings.auto_negative)
    masks = [*(mask for _, mask in seen), rest]
    names = [*(layer.name for layer, _ in seen), "no layer"]
    found = zip(names, masks, [*texts, outside], strict=True)
    return [
        Region(name, mask, text, settings.strength)
        for name, mask, text in found
        if text != join(negative) and bool((mask > 0).any())
    ]


def _check_match(name: str, words: str, match: Match) -> None:
    where = f"layer {name!r}: words {words!r} in the prompt"
    if not match.found:
        raise invalid(
            where,
            "not found",
            "the layer's words as they stand in it",
            "Write them into the prompt, or switch 'append' on",
        )
    if not match.indices:
        many = (
            "once, as one layer has them"
            if match.wanted == 1
            else f"once, or {match.wanted} times as that many layers have them"
        )
        raise invalid(
            where,
            f"found {match.found} times",
            many,
            "Make the layer's words longer, such as 'red ball' for 'ball'",
        )
