"""The texts with which a word is learnt: a layer's words with the learnt word in them, alone, in 27 templates, and
among the words of what lies behind the layer.

A text is a tuple of pieces: strings, and the numbers of layers, each in the place of that layer's learnt word. So
every host can put its own tokens there.

>>> noun_of("a red ball by the sea")
'ball'
>>> with_word("a red ball", 0, before_noun=True)
('a red ', 0, ' ball')
>>> with_word("a red ball", 0, before_noun=False)
(0, ' a red ball')
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

Text = tuple["str | int", ...]

TEMPLATES = (
    "a photo of {}", "a picture of {}", "a drawing of {}", "a painting of {}", "an illustration of {}",
    "a close photo of {}", "a clear picture of {}", "a bright photo of {}", "a dark photo of {}",
    "a large picture of {}", "a small picture of {}", "a good photo of {}", "a plain photo of {}",
    "a sharp photo of {}", "a clean drawing of {}", "a simple painting of {}", "a view of {}",
    "a study of {}", "a detail with {}", "a scene with {}", "a poster of {}", "a card with {}",
    "this is {}", "here is {}", "{} in full view", "{} seen from the front", "{} in good light",
)  # fmt: skip
"""The 27 templates; ``{}`` is the layer's words."""

_ENDS = (
    "in on at by with of under near behind beside before over above below from into inside outside between against "
    "around among through without for and that which who is"
)
_PLACES = frozenset(_ENDS.split())
"""Words that end a noun's phrase."""

_PHRASE_END = re.compile(r"[,.;:!?()\n]")
_WORD = re.compile(r"[\w'-]+")


def noun_span(words: str) -> tuple[int, int] | None:
    """Return where the noun stands in a layer's words, as a range of letters: the last word of the first phrase,
    which ends at a comma or at a word such as *in* or *with*. None if there is no word."""
    begin, last = 0, None
    for match in _WORD.finditer(words):
        if last is not None and (
            _PHRASE_END.search(words, begin, match.start()) or match.group().lower() in _PLACES
        ):
            break
        last, begin = match.span(), match.end()
    return last


def noun_of(words: str) -> str:
    """Return the noun of a layer's words, see :func:`noun_span`; empty if there is none."""
    span = noun_span(words)
    return "" if span is None else words[slice(*span)]


def with_word(words: str, number: int, before_noun: bool) -> Text:
    """Return a layer's words with its learnt word in front of the noun, or in front of them all, where both hosts put
    a recipe's embedding."""
    span = noun_span(words)
    if not before_noun or span is None:
        return (number, f" {words}")
    return tuple(piece for piece in (words[: span[0]], number, f" {words[span[0] :]}") if piece != "")


def join(text: Text, more: str, more_first: bool) -> Text:
    """Return a text beside other words, with a comma between, or none before a place such as *by the sea*."""
    if not more:
        return text
    if more_first:
        return (f"{more}, ", *text)
    return (*text, f" {more}" if more.split()[0].lower() in _PLACES else f", {more}")


def draw_text(rng: random.Random, subjects: Sequence[tuple[int, str]], behind: str) -> Text:
    """Draw a text at random that shows some layers.

    Args:
        rng: source of chance.
        subjects: number and words of each layer that the text is to name, at least one.
        behind: words of what lies behind them in the picture; empty if nothing is to be said of it.
    """
    order = rng.sample(list(subjects), len(subjects))
    text: Text = ()
    for place, (number, words) in enumerate(order):
        named = with_word(words, number, before_noun=rng.random() < 0.5)
        text = (*text, " and ", *named) if place else named
    kind = rng.random()
    if kind < 0.5 and behind:
        return join(text, behind, more_first=rng.random() < 0.25)
    if kind < 0.75:
        return text
    before, after = rng.choice(TEMPLATES).split("{}")
    return tuple(piece for piece in (before, *text, after) if piece != "")


def plain_text(text: Text, marks: Sequence[str]) -> str:
    """Return a text as one string; ``marks`` are what stands for each layer's word. Marks are words: they stand
    between spaces."""
    return "".join(marks[piece] if isinstance(piece, int) else piece for piece in text)
