"""Encode the texts of a training, with the words that are being learnt in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layered_core.attention.words import Token
from layered_core.errors import LayeredError
from layered_core.learning.learner import Learnable
from layered_core.learning.lesson import Lesson
from layered_core.learning.word_values import Place, find_place, zeros
from layered_core.learning.wording import Text, with_word
from layered_diffusers.models.loading import StableDiffusion
from layered_diffusers.models.text import encode_chunks, encoders


@dataclass
class Encoded:
    """Encoded texts of a batch of B."""

    context: Tensor
    """``[B, 77, C]``."""
    pooled: Tensor | None
    """SDXL's pooled texts, ``[B, C']``."""
    places: list[dict[int, Place]]
    """For each text, where the word of each subject stands."""


class WordTexts:
    """Encodes the texts of a lesson."""

    def __init__(self, model: StableDiffusion, lesson: Lesson) -> None:
        self.model, self.lesson = model, lesson

    def encode(
        self, words: Sequence[Learnable], texts: Sequence[Text], shown: Sequence[Sequence[int]]
    ) -> Encoded:
        """Encode texts; gradients reach the words' vectors. A text that is too long is replaced by the words of the
        subject that it shows first."""
        count, places, chunks = self.lesson.settings.vectors, [], []
        for text, numbers in zip(texts, shown, strict=True):
            found = self._tokens(text)
            if found is None:
                first = numbers[0]
                found = self._tokens(with_word(self.lesson.subjects[first].prompt, first, before_noun=False))
            if found is None:
                name = self.lesson.subjects[numbers[0]].layer
                raise LayeredError(
                    f"layer {name!r}: its words are too long for the text encoder. Shorten them"
                )
            ids, tokens = found
            chunks.append([self.padded(k, x) for k, x in enumerate(ids)])
            at = {}
            for number, subject in enumerate(self.lesson.subjects):
                own = [-1 - i for i in range(number * count, (number + 1) * count)]
                noun = ids_of(self.model.tokenizer, subject.noun)
                values = words[number].values or _NO_VALUES
                place = find_place(tokens, own, noun, values, self._room + 2)
                if place is not None:
                    at[number] = place
            places.append(at)
        with ExitStack() as stack:
            for k, (_, encoder) in enumerate(encoders(self.model)):
                vectors = torch.cat([list(word.vectors.values())[k] for word in words])
                stack.enter_context(_more_rows(encoder.get_input_embeddings(), vectors))
            contexts, pooled = encode_chunks(
                self.model, [[[row[k]] for row in chunks] for k in range(len(chunks[0]))]
            )
        return Encoded(torch.stack(contexts), pooled, places)

    def plain(self, text: str) -> Tensor:
        """Return the vectors of an ordinary text's own tokens, ``[N, C]``."""
        ids = [ids_of(tokenizer, text)[: self._room] for tokenizer, _ in encoders(self.model)]
        found = encode_chunks(self.model, [[[self.padded(k, x)]] for k, x in enumerate(ids)])[0][0]
        return found[1 : 1 + len(ids[0])]

    def _tokens(self, text: Text) -> tuple[list[list[int]], list[Token]] | None:
        """Return the token ids of a text for each encoder, where learnt vectors have negative numbers, and its tokens;
        None if it is too long for the encoder."""
        count = self.lesson.settings.vectors
        ids: list[list[int]] = []
        for tokenizer, _ in encoders(self.model):
            found: list[int] = []
            for piece in text:
                own = range(piece * count, (piece + 1) * count) if isinstance(piece, int) else ()
                found += [-1 - i for i in own] if isinstance(piece, int) else ids_of(tokenizer, piece)
            ids.append(found)
        if len(ids[0]) > self._room:
            return None
        return ids, [Token(what, index) for index, what in enumerate(ids[0], 1)]

    @property
    def _room(self) -> int:
        return int(self.model.tokenizer.model_max_length) - 2

    def padded(self, encoder: int, ids: Sequence[int]) -> list[int]:
        """Return token ids with start, end and padding of an encoder, 77 of them."""
        tokenizer = encoders(self.model)[encoder][0]
        rest = [tokenizer.pad_token_id] * (self._room - len(ids))
        return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *rest]


_NO_VALUES = zeros("", [1])
"""Stands in places of words that have no values."""


@contextmanager
def _more_rows(table: nn.Module, vectors: Tensor) -> Iterator[None]:
    """Let a table of embeddings hold ``vectors`` ``[n, C]`` under the numbers -1, -2, ... in a ``with`` block."""
    asked: list[Tensor] = []

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        asked.append(inputs[0])
        return (inputs[0].clamp_min(0), *inputs[1:])

    def after(_: nn.Module, __: object, found: Tensor) -> Tensor:
        ids = asked.pop()
        return torch.where((ids < 0)[..., None], vectors[(-1 - ids).clamp_min(0)].to(found), found)

    hooks = [table.register_forward_pre_hook(before), table.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without start, end and padding."""
    return list(tokenizer(text.strip(), add_special_tokens=False, truncation=False, verbose=False).input_ids)
