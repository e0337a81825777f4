"""Words and their tokens: what a layer is told by, and where its words stand in the prompt of the whole
picture."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from ..document import Layer

Tokenise = Callable[[str], "Sequence[Token]"]
"""A host's tokenizer: the tokens of a text without start, end and padding."""


@dataclass(frozen=True)
class Token:
    """One token of a prompt."""

    what: Hashable
    """Its id, or for a textual-inversion vector anything that is equal for equal vectors."""
    index: int
    """Its place among the keys of cross-attention, counting start, end and padding of every chunk."""


@dataclass(frozen=True)
class Match:
    """Where a layer's words stand in a prompt."""

    indices: tuple[int, ...]
    """Places among the keys of cross-attention; empty where there is none or too many."""
    found: int
    """How often the words occur, other layers' longer words not counted."""
    wanted: int
    """How many layers have these very words."""


def find_words(prompt: Sequence[Token], layers: Sequence[Sequence[Token]]) -> list[Match]:
    """Find every layer's words in the prompt, as whole sequences of tokens.

    Longer words are looked for first and what they take is gone, so that ``ball`` is not found in
    ``red ball``. Layers of the same words take the occurrences in order; where the prompt has them only once,
    it speaks of all these layers.

    Args:
        prompt: tokens of the prompt.
        layers: tokens of every layer's words; an empty sequence is not looked for.
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
            # Once for several layers, or once each, is clear; anything else is not.
            clear = places[0] if len(places) == 1 else places[nth] if len(places) == len(kinds[kind]) else ()
            matches[i] = Match(clear, len(places), len(kinds[kind]))
    return matches


def layer_words(layer: Layer, embedding_prefix: str = "") -> str:
    """What a layer is told by: its textual-inversion embedding's name, then its prompt; empty where it has no
    prompt.

    ``embedding_prefix`` is what the host writes in front of an embedding's name, such as ``embedding:``.
    """
    prompt = layer.prompt.strip()
    return (
        f"{embedding_prefix}{layer.recipe.embedding} {prompt}"
        if prompt and layer.recipe.embedding
        else prompt
    )


def join(*texts: str) -> str:
    """Texts in one line, those that are empty left out, none twice."""
    return ", ".join(dict.fromkeys(t.strip() for t in texts if t.strip()))


def negative_texts(
    negative: str, prompts: Sequence[str], negatives: Sequence[str], auto: bool
) -> tuple[list[str], str]:
    """What must not be shown in each layer's region, and where no layer is.

    Args:
        negative: for the whole picture; it is in every result.
        prompts, negatives: of every layer.
        auto: whether a layer's prompt is negative outside the layer, as with InvokeAI's ``autoNegative``.
    """
    others = [join(*(p for p in prompts if p != own)) if auto else "" for own in prompts]
    inside = [join(negative, own, other) for own, other in zip(negatives, others, strict=True)]
    return inside, join(negative, *prompts) if auto else negative
