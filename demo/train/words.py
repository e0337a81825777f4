"""Captions as token ids, and a text encoder whose embedding has only the rows of the words that occur."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from demo.train.tokenizer import END, START
from demo.world.scenes import is_held_out, random_caption
from demo.world.vocabulary import BACKGROUNDS, COLOURS, KINDS, MATERIALS, Thing

LENGTH = 77
WIDTH = 64
VOCABULARY = 49408

_WORDS = sorted(
    {w for phrases in BACKGROUNDS.values() for p in phrases for w in p.split()}
    | {"a", "and", ",", *COLOURS, *KINDS, *MATERIALS[1:]}
)


@functools.cache
def word_ids(folder: Path) -> dict[str, int]:
    """Return CLIP's token id of every word in captions; each word is a single token."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids = {w: tokenizer(w)["input_ids"][1:-1] for w in _WORDS}
    return {w: i[0] for w, i in ids.items() if len(i) == 1}


def encode(caption: str, ids: dict[str, int]) -> list[int]:
    """Return a caption's token ids without start, end and padding."""
    return [ids[w] for w in caption.replace(",", " ,").split()]


def training_caption(
    rng: np.random.Generator, background: str, things: Sequence[Thing], ids: dict[str, int]
) -> tuple[list[int], list[int]]:
    """Return a caption's 77 token ids and, for each thing, the position of its noun.

    One caption in eight is surrounded by words outside the vocabulary (``high quality``, ``photo of``), which
    the model must learn to ignore.
    """
    caption, order = random_caption(rng, background, things)
    for _ in range(20):  # some wording of every scene is not held out
        if not is_held_out(caption):
            break
        caption, order = random_caption(rng, background, things)
    tokens = encode(caption, ids)
    nouns = {ids[k] for k in KINDS}
    positions = [i for i, t in enumerate(tokens) if t in nouns]
    if rng.random() < 0.125:
        strange = [int(i) for i in rng.integers(256, START, rng.integers(1, 7))]
        before = int(rng.integers(len(strange) + 1))
        tokens = strange[:before] + tokens + strange[before:]
        positions = [p + before for p in positions]
    where = [0] * len(things)
    for index, position in zip(order, positions, strict=True):
        where[index] = position + 1
    return pad(tokens), where


def pad(tokens: Sequence[int]) -> list[int]:
    """Add the start token, and end tokens up to 77, as Stable Diffusion 1.5 does."""
    return [START, *tokens, *[END] * (LENGTH - 1 - len(tokens))]


def new_text_encoder() -> CLIPTextModel:
    """Return an untrained CLIP text transformer of width 64 with three layers."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=LENGTH, projection_dim=WIDTH, bos_token_id=START, eos_token_id=END,
        pad_token_id=END,
    )  # fmt: skip
    return CLIPTextModel(config)


class FewWords(nn.Module):
    """A token embedding with one row for each word of the vocabulary and one shared by all other words."""

    rows: Tensor

    def __init__(self, full: Tensor, known: Sequence[int]) -> None:
        super().__init__()
        rows = torch.zeros(VOCABULARY, dtype=torch.long)
        rows[list(known)] = torch.arange(1, len(known) + 1)
        self.register_buffer("rows", rows, persistent=False)
        self.weight = nn.Parameter(torch.cat([full[:1], full[list(known)]]).clone())

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids ``[...]`` to ``[..., width]``."""
        return nn.functional.embedding(self.rows[ids], self.weight)

    def expand(self) -> Tensor:
        """Return the full table ``[49408, width]``."""
        return self.weight.detach()[self.rows]


def shrink(model: CLIPTextModel, ids: dict[str, int]) -> CLIPTextModel:
    """Replace the model's token embedding by :class:`FewWords` and return the model."""
    inner = getattr(model, "text_model", model)
    full = inner.embeddings.token_embedding.weight.data
    inner.embeddings.token_embedding = FewWords(full, [START, END, *ids.values()])
    return model


def export(model: CLIPTextModel, state: dict[str, Tensor], folder: Path) -> None:
    """Save ``state`` of a model with :class:`FewWords` as an ordinary model in half precision."""
    plain = new_text_encoder()
    inner = getattr(model, "text_model", model)
    few: FewWords = inner.embeddings.token_embedding
    full = {k: v for k, v in state.items() if "token_embedding" not in k}
    key = next(k for k in plain.state_dict() if "token_embedding" in k)
    weight = next(v for k, v in state.items() if "token_embedding.weight" in k)
    full[key] = weight.cpu()[few.rows.cpu()]
    plain.load_state_dict(full)
    plain.half().save_pretrained(folder)
