"""The form ``values`` of a learnt word: what is added to the keys and values of the word and of its noun in every
cross-attention of a UNet.

An ordinary embedding can only choose what the text encoder reads. ``values`` also changes what the network reads off
the word, as P+ (arXiv 2303.09522) and Perfusion (arXiv 2305.01644) do, but adds to keys and values, and to those of
two words alone: the keys and values of every other word keep their bits, and a text without the word is unchanged.

>>> import torch
>>> from layered_core.attention.words import Token
>>> from layered_core.learning.word_values import WordValues, find_place, with_values
>>> values = WordValues("ball", (torch.ones(2, 4),), (torch.ones(2, 4),))
>>> text = [Token(what, i) for i, what in enumerate(["a", "<krk>", "red", "ball"], 1)]
>>> place = find_place(text, ["<krk>"], ["ball"], values, length=6)
>>> place.word, place.noun
((2,), (4,))
>>> k, v = with_values(torch.zeros(1, 6, 4), torch.zeros(1, 6, 4), [[place]], block=0)
>>> k[0, :, 0].tolist()
[0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attention.words import Token
from ..errors import invalid

REACH = 12
"""Greatest number of tokens between a learnt word and its noun: a noun further away is another thing's."""


@dataclass(frozen=True, eq=False)
class WordValues:
    """What is added to the keys and values of a learnt word and of its noun.

    Blocks are the cross-attentions of the UNet in the order in which it runs them: down (ComfyUI: input), middle, up
    (output), and in each the transformer blocks in order. D_i is the width of block i's keys.
    """

    noun: str
    """The noun that follows the word, as it stands in the layer's words, e.g. ``ball``."""
    keys: tuple[Tensor, ...]
    """For every block ``[2, D_i]``: added to the keys of the word (row 0) and of its noun (row 1). Neutral: 0."""
    values: tuple[Tensor, ...]
    """The same for values."""

    def __post_init__(self) -> None:
        if not self.keys or len(self.keys) != len(self.values):
            raise invalid(
                "blocks of a learnt word's values",
                f"{len(self.keys)} of keys, {len(self.values)} of values",
                "the same number of both, one or more",
            )
        for number, pair in enumerate(zip(self.keys, self.values, strict=True)):
            shapes = [list(x.shape) for x in pair]
            if any(x.ndim != 2 or len(x) != 2 for x in pair) or shapes[0] != shapes[1]:
                raise invalid(f"shapes of block {number} of a learnt word's values", shapes, "[2, D] twice")

    @property
    def widths(self) -> list[int]:
        """D_i of every block."""
        return [int(x.shape[1]) for x in self.keys]

    def check_fits(self, where: str, widths: Sequence[int]) -> None:
        """Raise :class:`LayeredError` unless a UNet whose cross-attentions have keys of these ``widths``, in the order
        in which it runs them, can use the values. ``where`` names the layer and the word."""
        if list(widths) != self.widths:
            got, want = ([len(x), sorted(set(x))] for x in (self.widths, list(widths)))
            raise invalid(
                f"{where}: the values of a learnt word",
                f"{got[0]} blocks of {got[1]}",
                f"{want[0]} blocks of {want[1]}, those of the model",
                "They were learnt with another kind of model: learn the word again with this one",
            )

    def to(self, like: Tensor) -> WordValues:
        """Return the values on the device and in the type of ``like``."""
        keys, values = (tuple(x.to(like) for x in y) for y in (self.keys, self.values))
        return replace(self, keys=keys, values=values)


@dataclass(frozen=True, eq=False)
class Place:
    """Where a learnt word stands in an encoded text."""

    values: WordValues
    word: tuple[int, ...]
    """Indices of the word's tokens among the keys of the text."""
    noun: tuple[int, ...]
    """Indices of its noun's tokens; empty if the noun does not follow the word."""
    length: int
    """Number of keys of the text. Hosts repeat a text to make it as long as another; then the values act in every
    repetition."""


def find_place(
    text: Sequence[Token],
    word: Sequence[Hashable],
    noun: Sequence[Hashable],
    values: WordValues,
    length: int,
) -> Place | None:
    """Find a learnt word and its noun in a text, as whole sequences of tokens; None if the word is absent.

    The noun counts where it first follows the word, at most :data:`REACH` tokens behind it.

    Args:
        text: tokens of the text, without start, end and padding.
        word, noun: :attr:`Token.what` of the tokens of both.
        values: what is added there.
        length: number of keys of the encoded text, with start, end and padding.
    """
    at = _occurrences(text, word)
    nouns: list[int] = []
    for number, start in enumerate(at):
        after = start + len(word)
        until = at[number + 1] if number + 1 < len(at) else len(text)
        near = text[after : min(until, after + REACH + len(noun))]
        nouns += [after + i + n for i in _occurrences(near, noun)[:1] for n in range(len(noun))]
    if not at:
        return None
    words = [start + n for start in at for n in range(len(word))]
    return Place(values, tuple(text[i].index for i in words), tuple(text[i].index for i in nouns), length)


def with_values(k: Tensor, v: Tensor, texts: Sequence[Sequence[Place]], block: int) -> tuple[Tensor, Tensor]:
    """Return keys and values of texts with those of their learnt words added; the given ones if there are none.

    Args:
        k, v: ``[n, T, D]``, or ``[n, B, T, D]`` if they differ from picture to picture.
        texts: the learnt words of each of the n texts; a single entry counts for all of them.
        block: number of the cross-attention, see :class:`WordValues`.
    """
    if not any(texts):
        return k, v
    k, v = k.clone(), v.clone()
    for row, places in enumerate(texts):
        rows = slice(None) if len(texts) == 1 else slice(row, row + 1)
        for place in places:
            repeats = range(0, k.shape[-2] - place.length + 1, place.length)
            for which, found in enumerate((place.word, place.noun)):
                at = [i + start for start in repeats for i in found]
                if at:
                    k[rows, ..., at, :] += place.values.keys[block][which].to(k)
                    v[rows, ..., at, :] += place.values.values[block][which].to(v)
    return k, v


def _occurrences(text: Sequence[Token], words: Sequence[Hashable]) -> list[int]:
    """Return where ``words`` begin in a text; occurrences do not overlap."""
    found: list[int] = []
    for start in range(len(text) - len(words) + 1 if words else 0):
        behind = not found or start >= found[-1] + len(words)
        if behind and [t.what for t in text[start : start + len(words)]] == list(words):
            found.append(start)
    return found


def zeros(noun: str, widths: Sequence[int]) -> WordValues:
    """Return values that change nothing, for blocks of these widths, to be learnt."""
    keys, values = (tuple(torch.zeros(2, width) for width in widths) for _ in range(2))
    return WordValues(noun, keys, values)
