"""Words and their tokens: a layer's words, and where they stand in the main prompt."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from ..document import Layer

Tokenise = Callable[[str], "Sequence[Token]"]
"""A host's tokenizer: text to its tokens without start, end and padding."""


@dataclass(frozen=True)
class Token:
    """One token of a prompt."""

    what: Hashable
    """The token's id; for a textual-inversion vector any value that is equal for equal vectors."""
    index: int
    """Index of the token among the keys of cross-attention, counting start, end and padding of every
    chunk."""


@dataclass(frozen=True)
class Match:
    """Where a layer's words stand in a prompt."""

    indices: tuple[int, ...]
    """Indices of the words' tokens among the keys of cross-attention; empty if the words do not occur, or if
    it is ambiguous which layer an occurrence belongs to."""
    found: int
    """How often the words occur, not counting occurrences inside other layers' longer words."""
    wanted: int
    """How many layers have exactly these words."""


def find_words(prompt: Sequence[Token], layers: Sequence[Sequence[Token]]) -> list[Match]:
    """Find every layer's words in the prompt, as whole sequences of tokens.

    Longer words are searched first, and each token is matched only once, so ``ball`` is not found in
    ``red ball``. Layers with the same words take the occurrences in order; if the prompt has the words only
    once, that occurrence belongs to all these layers.

    Args:
        prompt: tokens of the prompt.
        layers: tokens of every layer's words; an empty sequence is not searched.

    Returns:
        one match for each layer.
    """
    kinds: dict[tuple[Hashable, ...], list[int]] = {}
    for i, words in enumerate(layers):
        kinds.setdefault(tuple(t.what for t in words), []).append(i)
    matches = [Match((), 0, 0)] * len(layers)
    free = [True] * len(prompt)
    for kind in sorted((w for w in kinds if w), key=len, reverse=True):
        size, start = len(kind), 0
        places: list[tuple[int, ...]] = []
        while start + size <= len(prompt):
            if (
                all(free[start : start + size])
                and tuple(t.what for t in prompt[start : start + size]) == kind
            ):
                places.append(tuple(t.index for t in prompt[start : start + size]))
                free[start : start + size] = [False] * size
                start += size
            else:
                start += 1
        for nth, i in enumerate(kinds[kind]):
            # Unambiguous: one occurrence for all layers, or one for each.
            clear = places[0] if len(places) == 1 else places[nth] if len(places) == len(kinds[kind]) else ()
            matches[i] = Match(clear, len(places), len(kinds[kind]))
    return matches


def layer_words(layer: Layer, embedding_prefix: str = "") -> str:
    """Return a layer's words: the name of its textual-inversion embedding, then its prompt; empty without a
    prompt.

    ``embedding_prefix`` is the text that the host expects before an embedding's name, such as ``embedding:``.
    """
    prompt = layer.prompt.strip()
    return (
        f"{embedding_prefix}{layer.recipe.embedding} {prompt}"
        if prompt and layer.recipe.embedding
        else prompt
    )


def join(*texts: str) -> str:
    """Join texts with commas, without empty and repeated ones."""
    return ", ".join(dict.fromkeys(t.strip() for t in texts if t.strip()))


def negative_texts(
    negative: str, prompts: Sequence[str], negatives: Sequence[str], auto: bool
) -> tuple[list[str], str]:
    """Return the negative prompt of each layer's region, and the one of the area without layers.

    Args:
        negative: main negative prompt; part of every result.
        prompts, negatives: of every layer.
        auto: whether each layer's prompt is added to the negative prompt outside the layer, as with
            InvokeAI's ``autoNegative``.
    """
    others = [join(*(p for p in prompts if p != own)) if auto else "" for own in prompts]
    inside = [join(negative, own, other) for own, other in zip(negatives, others, strict=True)]
    return inside, join(negative, *prompts) if auto else negative
