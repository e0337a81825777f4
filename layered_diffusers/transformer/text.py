"""Encode prompts as a transformer's pipeline does, and without the padding for regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layered_core.attention.words import Token
from layered_core.document import LayerDocument
from layered_core.errors import LayeredError, check_letters
from layered_diffusers.models.loading import require_unet
from layered_diffusers.models.text import chunks_of
from layered_diffusers.models.text import encode as encode_clip
from layered_diffusers.models.text import tokenise as tokenise_clip
from layered_diffusers.transformer.hosts import host_of

T5_LENGTH = {"flux": 512, "sd3": 256}
"""Number of tokens to which the pipelines fill up T5's texts."""


@dataclass(frozen=True)
class Text:
    """One encoded text."""

    states: Tensor
    """As the whole picture's prompt, with the padding that the model reads, ``[T, C]``."""
    kept: Tensor
    """Places in ``states`` of the text without padding, as a region's prompt, int64 ``[T']``."""
    pooled: Tensor | None = None
    """Pooled text ``[C']``, where the family has one."""

    @property
    def own(self) -> Tensor:
        """The text without padding, ``[T', C]``."""
        return self.states[self.kept.to(self.states.device)]


@torch.no_grad()
def encode(model: Any, text: str, where: str = "prompt") -> Text:
    """Encode one text.

    Args:
        model: a pipeline of one of :data:`~layered_diffusers.transformer.hosts.HOSTS`.
        text: the text.
        where: whose text it is, for errors.

    Raises:
        LayeredError: it has more tokens than the family reads.
    """
    check_letters(where, text)
    return _ENCODERS[host_of(model).key](model, text, where)


def check_embeddings(model: Any, documents: Sequence[LayerDocument]) -> None:
    """Raise :class:`LayeredError` if a visible layer with words has an embedding: they need a UNet."""
    for layer in (x for d in documents for x in d if x.visible and x.prompt.strip()):
        if layer.recipe.embedding:
            require_unet(model, f"layer {layer.name!r}: its embedding {layer.recipe.embedding!r}")


def tokenise(model: Any, text: str) -> list[Token]:
    """Return the tokens of a text, each with its place in :attr:`Text.states`. Where CLIP's vectors stand beside
    T5's, they are T5's."""
    check_letters("prompt", text)
    key = host_of(model).key
    if key in ("flux", "sd3"):
        sentences = model.tokenizer_2 if key == "flux" else model.tokenizer_3
        if sentences is None:
            return tokenise_clip(model, text)
        first = 0 if key == "flux" else int(model.tokenizer_max_length)
        ids = sentences(text, add_special_tokens=False, verbose=False).input_ids
        return [Token(t, first + i) for i, t in enumerate(ids)]
    empty, whole = _framed(model, ""), _framed(model, text)
    start = next((i for i, (a, b) in enumerate(zip(empty, whole, strict=False)) if a != b), len(empty))
    ids = whole[start : len(whole) - (len(empty) - start)]
    skipped = int(model.prompt_template_encode_start_idx) if key == "qwen" else 0
    # The same word has one id at the start of a text and another after a space.
    return [Token(model.tokenizer.decode([t]).strip(), start - skipped + i) for i, t in enumerate(ids)]


def _check_length(model: Any, where: str, count: int, most: int) -> None:
    if count > most:
        raise LayeredError(
            f"{where}: its words have {count} tokens; allowed: at most {most} with "
            f"{host_of(model).family.name}. Shorten them"
        )


def _flux(model: Any, text: str, where: str) -> Text:
    most = host_of(model).family.limit
    if model.text_encoder_2 is None:
        parts = chunks_of(model, model.tokenizer, text)
        states = encode_clip(model, [text])[0][0]
        _check_length(model, where, len(states), most)
        first = torch.tensor(parts[:1], device=model.text_encoder.device)
        count = tokenise_clip(model, text)[-1].index + 2 if tokenise_clip(model, text) else 2
        return Text(states, torch.arange(count), model.text_encoder(first).pooler_output[0])
    count = len(model.tokenizer_2(text, verbose=False).input_ids)
    _check_length(model, where, count, min(most, T5_LENGTH["flux"]))
    states, pooled, _ = model.encode_prompt(text, None, max_sequence_length=T5_LENGTH["flux"])
    return Text(states[0], torch.arange(count), pooled[0])


def _sd3(model: Any, text: str, where: str) -> Text:
    clip, room = len(model.tokenizer(text, verbose=False).input_ids), int(model.tokenizer_max_length)
    if model.text_encoder_3 is None:
        _check_length(model, where, clip, room)
    length = T5_LENGTH["sd3"]
    count = 0 if model.text_encoder_3 is None else len(model.tokenizer_3(text, verbose=False).input_ids)
    _check_length(model, where, count, length)
    states, _, pooled, _ = model.encode_prompt(
        text, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    kept = torch.cat([torch.arange(min(clip, room)), torch.arange(room, room + count)])
    return Text(states[0], kept, pooled[0])


def _qwen(model: Any, text: str, where: str) -> Text:
    most = host_of(model).family.limit
    _check_length(model, where, len(_framed(model, text)) - model.prompt_template_encode_start_idx, most)
    states, _ = model.encode_prompt(text, max_sequence_length=most)
    return Text(states[0], torch.arange(len(states[0])))


def _zimage(model: Any, text: str, where: str) -> Text:
    most = host_of(model).family.limit
    _check_length(model, where, len(_framed(model, text)), most)
    states, _ = model.encode_prompt([text], do_classifier_free_guidance=False, max_sequence_length=most)
    return Text(states[0], torch.arange(len(states[0])))


def _framed(model: Any, text: str) -> Sequence[int]:
    """Return the ids of a text in the frame of words that the pipeline puts around it."""
    if host_of(model).key == "qwen":
        framed = model.prompt_template_encode.format(text)
    else:
        framed = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False, add_generation_prompt=True, enable_thinking=True,
        )  # fmt: skip
    ids: list[int] = model.tokenizer(framed, verbose=False).input_ids
    return ids


_ENCODERS: dict[str, Callable[[Any, str, str], Text]] = {
    "flux": _flux,
    "sd3": _sd3,
    "qwen": _qwen,
    "zimage": _zimage,
}
