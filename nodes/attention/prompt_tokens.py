"""Where the words of a prompt stand among the tokens that a text encoder gives.

Text encoders of UNets give one vector for every token, padding included. Those of transformers may put a text
into a template, leave out the beginning of it, or give two encoders' vectors one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.sd
import comfy.sd1_clip
import torch
from torch import Tensor

from ...layered_core.attention.words import Token
from ...layered_core.errors import check_letters

Piece = tuple[Any, float, int]
"""A token of ComfyUI: its id or an embedding's vector, its weight, and the number of its word, 0 for none."""


def tokenise(clip: comfy.sd.CLIP, text: str) -> list[Token]:
    """Return the tokens of a text as ComfyUI cuts it for a UNet, without weights, with their places among the
    keys of cross-attention."""
    check_letters("prompt", text)
    # All text encoders of a UNet model cut a text into the same tokens.
    chunks = next(iter(clip.tokenize(text, return_word_ids=True).values()))
    return [Token(_identity(p), i) for i, p in enumerate(p for chunk in chunks for p in chunk) if p[2]]


class TransformerPrompts:
    """The prompts of a transformer's text encoder."""

    def __init__(self, clip: comfy.sd.CLIP) -> None:
        """Find out, by encoding the empty text, which tokens the encoder gives vectors of."""
        self.clip = clip
        tokens = clip.tokenize("", return_word_ids=True)
        length = clip.encode_from_tokens_scheduled(clip.tokenize(""), show_pbar=False)[0][0].shape[1]
        counts = {name: sum(len(chunk) for chunk in chunks) for name, chunks in tokens.items()}
        clips = next(iter(name for name in ("l", "g") if name in tokens), None)
        sentences = next(iter(name for name in tokens if name not in ("l", "g")), clips)
        assert sentences is not None
        self._names = [sentences]
        if clips and clips != sentences and counts[clips] == length:
            self._names = [clips]
        elif clips and clips != sentences and counts[clips] + counts[sentences] == length:
            self._names = [clips, sentences]
        if (
            "t5xxl" in tokens and sentences != "t5xxl"
        ):  # Anima reads T5's words with another encoder's vectors
            self._names, length = ["t5xxl"], counts["t5xxl"]
        self._left_out = max(0, sum(counts[name] for name in self._names) - length)
        frame = [p for p in self._pieces(tokens, self._names[-1]) if p[2]]
        self._frame = [self._spelt(p) for p in frame]

    def tokenise(self, text: str) -> list[Token]:
        """Return the tokens of a text, without its template, with their places among the encoder's vectors."""
        check_letters("prompt", text)
        tokens = self.clip.tokenize(text, return_word_ids=True)
        before = sum(len(self._pieces(tokens, name)) for name in self._names[:-1]) - self._left_out
        pieces = enumerate(self._pieces(tokens, self._names[-1]), before)
        words = [Token(self._spelt(p), i) for i, p in pieces if p[2]]
        start = _alike([t.what for t in words], self._frame)
        end = _alike([t.what for t in reversed(words)], self._frame[start:][::-1])
        return words[start : len(words) - end]

    def kept(self, text: str) -> Tensor:
        """Return the places of a text's vectors without padding, int64 ``[T]``."""
        tokens, kept, first = self.clip.tokenize(text, return_word_ids=True), [], -self._left_out
        for name in self._names:
            for chunk in tokens[name]:
                end = self._end(name)
                last = max((i for i, p in enumerate(chunk) if p[2]), default=-1)
                if end is not None and last + 1 < len(chunk):
                    # The first end token, after the words or, without words, after the start token.
                    places = (i for i in range(last + 1, len(chunk)) if _is(chunk[i], end))
                    last = next(places, last)
                kept += [first + i for i in range(max(last, 0) + 1)]
                first += len(chunk)
        return torch.tensor([i for i in kept if i >= 0])

    def _pieces(self, tokens: dict[str, Sequence[Sequence[Piece]]], name: str) -> list[Piece]:
        return [p for chunk in tokens[name] for p in chunk]

    def _tokenizer(self, name: str) -> Any:
        whole = self.clip.tokenizer
        return getattr(whole, name, None) or getattr(whole, f"clip_{name}", None)

    def _end(self, name: str) -> object:
        return getattr(self._tokenizer(name), "end_token", None)

    def _spelt(self, piece: Piece) -> object:
        """Return a token's letters without the mark of a space before them, so that a word is the same at the
        beginning of a text and within it."""
        vocabulary = getattr(self._tokenizer(self._names[-1]), "inv_vocab", {})
        spelling = vocabulary.get(piece[0]) if not isinstance(piece[0], (Tensor, dict)) else None
        if isinstance(spelling, bytes):
            spelling = spelling.decode("utf-8", "replace")
        return spelling.lstrip("\u0120\u2581 ") if isinstance(spelling, str) else _identity(piece)


def _identity(piece: Piece) -> object:
    """Return a token's id; for the vector of an embedding, bytes that are equal for equal vectors."""
    what = piece[0]
    return what.detach().float().cpu().numpy().tobytes() if isinstance(what, Tensor) else what


def _is(piece: Piece, token: object) -> bool:
    return not isinstance(piece[0], (Tensor, dict)) and piece[0] == token


def _alike(a: Sequence[object], b: Sequence[object]) -> int:
    """Return how many first members of ``a`` and ``b`` are equal."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count
