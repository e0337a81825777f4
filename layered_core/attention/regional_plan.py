"""The plan of a run with regional prompts: which words act where, how strongly and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..canvas.backdrop import find_backdrop
from ..canvas.masks import document_masks
from ..document import Layer, LayerDocument
from ..errors import LayeredError, check_number, invalid
from .cross_attention import SCHEDULES
from .tiles import LEAST_WEIGHT
from .words import Match, Tokenise, find_words, join, layer_words, negative_texts

REGION_MODES = ("regions", "joint", "collage", "paint with words", "eligen")
"""How words act on their region.

* ``regions``: each layer has its own prompt, which gets a share of the attention where the layer is visible.
* ``joint``: the same prompts as with ``regions``, in one softmax.
* ``collage``: one prompt, in which a layer's words are pushed into its mask (Collage Diffusion).
* ``paint with words``: one prompt, as with ``collage``, by the formula of eDiff-I.
* ``eligen``: the rule that EliGen's LoRAs were trained for (arXiv 2501.01097), on transformers only: each layer
  has its own prompt, which every pixel that the layer touches reads beside the main prompt, in one softmax.
"""


PAINT_WITH_WORDS = 0.1
"""Push of a layer of strength 1 in ``paint with words``: the factor used by
cloneofsimo/paint-with-words-sd."""


@dataclass(frozen=True)
class Settings:
    """Settings of regional prompts."""

    mode: str = "regions"
    """One of ``REGION_MODES``."""
    schedule: str = "auto"
    """How the push of words depends on sigma: a name of ``SCHEDULES``, or ``auto``: ``log log`` in mode
    ``collage``, ``log`` in the others."""
    strength: float = 1.0
    """Factor on the inside and outside strengths of every layer, 0..1. Neutral: 0, the plain prompt."""
    start: float = 0.0
    """Fraction of the sampling at which regions begin to act, 0..1. Neutral: 0."""
    end: float = 1.0
    """Fraction of the sampling at which regions stop acting, ``start``..1. Neutral: 1."""
    global_weight: float = 0.2
    """Share of attention that the main prompt keeps inside layers, 0..1; for ``regions`` and ``joint``.
    Neutral: 0."""
    emphasis: float = 0.5
    """How much more a layer's own words are pushed inside its mask, beyond their share, 0..2; for
    ``regions``. Neutral: 0."""
    guidance: float = 1.0
    """Factor on classifier-free guidance inside layers while the layout is forming, 1..10; see
    :func:`~layered_core.noise.guidance.region_factor`. Neutral: 1."""
    growth: float = 0.0
    """How far layers' masks are grown while the layout is forming, as a fraction of the canvas's shorter
    side, 0..0.25; see :func:`~layered_core.canvas.masks.grown_masks`. Neutral: 0."""
    auto_negative: bool = False
    """Whether each layer's prompt is added to the negative prompt outside the layer. Neutral: False."""
    append: bool = False
    """Whether a layer's words that the main prompt lacks are appended to it instead of raising an error; for
    ``collage`` and ``paint with words``. Neutral: False."""
    rescale: float = 0.0
    """How far the guided prediction inside each layer is brought back to the standard deviation that the
    conditional one has there, 0..1; see :func:`~layered_core.noise.guidance.rescaling`. Neutral: 0."""

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
        check_number("rescale", self.rescale, 0, 1)

    def amount(self, sigma: float) -> float:
        """Return f(sigma), the amount of the push, see ``SCHEDULES``."""
        name = self.schedule if self.schedule != "auto" else "log log" if self.mode == "collage" else "log"
        return SCHEDULES[name](sigma)


@dataclass(frozen=True)
class Region:
    """A part of the canvas and the words that act there, for cond or for uncond."""

    name: str
    """Name of the layer."""
    mask: Tensor
    """Visible mask, float32 ``[H, W]``, 0..1."""
    text: str = ""
    """The region's own prompt; empty: it uses the main prompt."""
    strength: float = 0.0
    """Share of attention that ``text`` gets inside the mask, 0..1."""
    words: tuple[int, ...] = ()
    """Indices of the layer's words among the keys of the main prompt."""
    inside: float = 0.0
    """How much attention to ``words`` is raised inside the mask, 0 or more. Neutral: 0."""
    outside: float = 0.0
    """How much attention to ``words`` is lowered outside the mask, 0 or more. Neutral: 0."""
    own: tuple[int, ...] = ()
    """Indices of the layer's words among the keys of ``text``."""
    guided: float = 0.0
    """Share of the settings' ``guidance`` and ``rescale`` that the region gets, 0..1. Neutral: 0."""

    def without_padding(self, kept: Sequence[int]) -> Region:
        """Return the region for a text of which only the tokens ``kept`` are left."""
        places = {old: new for new, old in enumerate(kept)}
        return replace(self, own=tuple(places[i] for i in self.own if i in places))

    @property
    def acts(self) -> bool:
        """Whether the region changes attention at all."""
        return bool(
            (self.text and self.strength >= LEAST_WEIGHT) or (self.words and (self.inside or self.outside))
        )


@dataclass(frozen=True)
class Plan:
    """The texts to encode, and the regions of cond and uncond."""

    prompt: str
    """The main positive prompt."""
    negative: str
    """The main negative prompt."""
    cond: tuple[Region, ...]
    """Regions of the conditional prediction; empty: the plain prompt."""
    uncond: tuple[Region, ...]
    """Regions of the unconditional prediction; empty: the plain negative prompt."""


def plan_regions(
    document: LayerDocument,
    settings: Settings,
    prompt: str,
    negative: str,
    tokenise: Tokenise,
    embedding_prefix: str = "",
    record: bool = False,
    cross_attention: bool = False,
) -> Plan:
    """Plan which words act where.

    Args:
        document: visible layers with a prompt become regions; everywhere else the main prompt acts.
        settings: see :class:`Settings`. Strength 0 gives regions that do nothing.
        prompt: main prompt; empty: the document's own.
        negative: main negative prompt; empty: the document's own.
        tokenise: the host's tokenizer.
        embedding_prefix: see :func:`~layered_core.attention.words.layer_words`.
        record: whether attention to the words is to be recorded: they must then be in the prompt even at
            strength 0.
        cross_attention: whether the model reads texts by cross-attention, as UNets do. Then layers with LoRAs get the
            negative prompt as a text of their own: LoRAs act on a layer's own words, and guidance compares them with
            the negative's, so that it would otherwise exaggerate the LoRA. On transformers one more text would change
            the picture by itself.

    Raises:
        LayeredError: in the modes ``collage`` and ``paint with words``: a layer's words are not in the main
            prompt, or it is ambiguous which layer their occurrences belong to.
    """
    prompt, negative = prompt.strip() or document.words, negative.strip() or document.negative
    masks, rest = document_masks(document)
    seen = [(layer, mask) for layer, mask in zip(document, masks, strict=True) if bool((mask > 0).any())]
    layers_with_words = [
        (layer, mask, words) for layer, mask in seen if (words := layer_words(layer, embedding_prefix))
    ]
    pushed = settings.mode in ("collage", "paint with words") and (settings.strength > 0 or record)
    tokens = [tokenise(words) for *_, words in layers_with_words]
    if pushed and settings.append:
        prompt = _append_missing(prompt, [words for *_, words in layers_with_words], tokenise)
    matches = find_words(tokenise(prompt), tokens)
    cond = []
    for (layer, mask, words), own, match in zip(layers_with_words, tokens, matches, strict=True):
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
                into if settings.mode == "eligen" else into * (1 - settings.global_weight),
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
        tuple(_negative_regions(seen, rest, negative, settings, embedding_prefix, cross_attention)),
    )


def layers_without_words(document: LayerDocument) -> list[str]:
    """Return the names of the layers that are shown and have no words, so that only the main prompt acts where
    they are. A backdrop needs none and is left out."""
    backdrop = find_backdrop(document)
    return [
        layer.name
        for layer in document
        if layer.visible and layer.opacity > 0 and layer is not backdrop
        and not layer_words(layer, "") and not layer.negative.strip()
    ]  # fmt: skip


def plan_watching(
    document: LayerDocument,
    layers: Sequence[Layer],
    prompt: str,
    negative: str,
    tokenise: Tokenise,
    embedding_prefix: str = "",
) -> Plan:
    """Return a plan in which nothing acts, to record what the words of ``layers`` attend to in a plain run.

    Words that the prompt lacks are appended to it.

    Raises:
        LayeredError: it is ambiguous which layer the occurrences of some words in the prompt belong to.
    """
    words = [layer_words(layer, embedding_prefix) for layer in layers]
    prompt = _append_missing(prompt.strip() or document.words, words, tokenise)
    matches = find_words(tokenise(prompt), [tokenise(w) for w in words])
    for layer, own, match in zip(layers, words, matches, strict=True):
        _check_match(layer.name, own, match)
    regions = tuple(
        Region(layer.name, torch.zeros(1, 1), words=match.indices)
        for layer, match in zip(layers, matches, strict=True)
    )
    return Plan(prompt, negative.strip() or document.negative, regions, ())


def _append_missing(prompt: str, words: Sequence[str], tokenise: Tokenise) -> str:
    """Return the prompt with those of ``words`` appended that it lacks."""
    found = find_words(tokenise(prompt), [tokenise(w) for w in words])
    return join(prompt, *(w for w, match in zip(words, found, strict=True) if not match.found))


def _negative_regions(
    seen: Sequence[tuple[Layer, Tensor]],
    rest: Tensor,
    negative: str,
    settings: Settings,
    embedding_prefix: str,
    for_loras: bool,
) -> list[Region]:
    """Return the regions of uncond: those whose negative prompt differs from the main one and, ``for_loras``, those
    with LoRAs, if their positive prompt is a text of its own. Layers with inside strength 0 are ignored."""
    acts = [layer.recipe.inside > 0 for layer, _ in seen]
    prompts = [
        layer_words(layer, embedding_prefix) if h else "" for (layer, _), h in zip(seen, acts, strict=True)
    ]
    own = [layer.negative if h else "" for (layer, _), h in zip(seen, acts, strict=True)]
    texts, outside = negative_texts(negative, prompts, own, settings.auto_negative)
    for_loras = for_loras and settings.mode not in ("collage", "paint with words")
    of_its_own = [
        for_loras and bool(words) and any(lora.strength for lora in layer.recipe.loras)
        for (layer, _), words in zip(seen, prompts, strict=True)
    ]
    masks = [*(mask for _, mask in seen), rest]
    names = [*(layer.name for layer, _ in seen), "no layer"]
    found = zip(names, masks, [*texts, outside], [*of_its_own, False], strict=True)
    return [
        Region(name, mask, text or " ", settings.strength)  # a space: an empty text, yet one of its own
        for name, mask, text, own in found
        if (own or text != join(negative)) and bool((mask > 0).any())
    ]


def _check_match(name: str, words: str, match: Match) -> None:
    where = f"layer {name!r}: its words {words!r} were"
    if not match.found:
        raise LayeredError(
            f"{where} not found in the prompt. Write them as they stand there, or switch 'append' on"
        )
    if not match.indices:
        allowed = (
            "once"
            if match.wanted == 1
            else f"once, or {match.wanted} times, as {match.wanted} layers have them"
        )
        raise LayeredError(
            f"{where} found {match.found} times in the prompt; allowed: {allowed}. Make the layer's words "
            f"longer, such as 'red ball' for 'ball'"
        )
