"""Encode prompts of any length with a Stable Diffusion pipeline's own text encoders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from layered_core.attention.words import Token
from layered_core.errors import check_letters
from layered_diffusers.models.loading import StableDiffusion


def is_sdxl(model: StableDiffusion) -> bool:
    """Whether the model is of the XL family, which has two text encoders."""
    return isinstance(model, (StableDiffusionXLPipeline, StableDiffusionXLInpaintPipeline))


def tokenise(model: StableDiffusion, text: str) -> list[Token]:
    """Return the tokens of a text, each with the index of its key in cross-attention."""
    room = model.tokenizer.model_max_length - 2
    return [
        Token(t, i // room * (room + 2) + 1 + i % room)
        for i, t in enumerate(_ids(model, model.tokenizer, text))
    ]


@torch.no_grad()
def encode(model: StableDiffusion, texts: Sequence[str]) -> tuple[list[Tensor], Tensor | None]:
    """Encode texts as ComfyUI does: a text longer than the encoder's 77 tokens is encoded in several chunks.

    Returns:
        one ``[T_i, C]`` for each text, where T_i is a multiple of 77; and for SDXL the pooled text ``[n,
        C']`` of the first chunks, else None.
    """
    return encode_chunks(
        model, [[chunks_of(model, tokenizer, t) for t in texts] for tokenizer, _ in encoders(model)]
    )


def encoders(model: StableDiffusion) -> list[tuple[CLIPTokenizer, CLIPTextModel]]:
    """Return the model's text encoders with their tokenizers: one, or two for SDXL."""
    first = (model.tokenizer, model.text_encoder)
    return [first, (model.tokenizer_2, model.text_encoder_2)] if is_sdxl(model) else [first]


def encode_chunks(
    model: StableDiffusion, ids: Sequence[Sequence[Sequence[Sequence[int]]]]
) -> tuple[list[Tensor], Tensor | None]:
    """Encode texts as :func:`encode` does. ``ids`` are, for each text encoder, every text's chunks of 77 token ids."""
    if not is_sdxl(model):
        return _joined(_run(model.text_encoder, ids[0], hidden=None)[0], ids[0]), None
    found = []
    pooled = None
    for (tokenizer, encoder), chunks in zip(encoders(model), ids, strict=True):
        hidden, pooled = _run(encoder, chunks, -2, tokenizer.eos_token_id)
        found.append(_joined(hidden, chunks))
    assert pooled is not None
    firsts = [sum(len(c) for c in ids[-1][:i]) for i in range(len(ids[-1]))]
    return [torch.cat(pair, -1) for pair in zip(*found, strict=True)], pooled[firsts]


def context_length(model: StableDiffusion, text: str) -> int:
    """Return the number of keys of an encoded text, a multiple of 77."""
    return len(chunks_of(model, model.tokenizer, text)) * int(model.tokenizer.model_max_length)


def stack(contexts: Sequence[Tensor]) -> Tensor:
    """Stack contexts ``[T_i, C]`` into one ``[n, T, C]``. Shorter ones are repeated as a whole, which does
    not change the result of attention."""
    length = math.lcm(*(len(c) for c in contexts))
    return torch.stack([c.repeat(length // len(c), 1) for c in contexts])


def _ids(model: StableDiffusion, tokenizer: CLIPTokenizer, text: str) -> list[int]:
    check_letters("prompt", text)
    if hasattr(model, "maybe_convert_prompt"):  # an embedding of several vectors has several tokens
        text = model.maybe_convert_prompt(text, tokenizer)
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def chunks_of(model: StableDiffusion, tokenizer: CLIPTokenizer, text: str) -> list[list[int]]:
    """Return the token ids with start, end and padding in chunks of 77; at least one chunk."""
    ids, room = _ids(model, tokenizer, text), tokenizer.model_max_length - 2
    parts = [ids[i : i + room] for i in range(0, max(len(ids), 1), room)]
    return [
        [tokenizer.bos_token_id, *part,
        tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (room - len(part)) for part in parts
    ]  # fmt: skip


def _run(
    encoder: CLIPTextModel,
    chunks: Sequence[Sequence[Sequence[int]]],
    hidden: int | None,
    end: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the hidden states ``[number of all chunks, 77, C]`` of a layer (None: the last one, normalised)
    and the encoder's first output, which in SDXL's second encoder is the pooled text: that of the first token
    ``end``."""
    ids = torch.tensor([c for text in chunks for c in text], device=encoder.device)
    outputs = encoder(ids, output_hidden_states=hidden is not None)
    first = outputs[0]
    if end is not None and hasattr(encoder, "text_projection") and bool((ids > end).any()):
        # Such an encoder may take the greatest id for the end, which is an embedding's.
        ends = (ids == end).int().argmax(1)
        first = encoder.text_projection(outputs.last_hidden_state[torch.arange(len(ids)), ends])
    return (outputs[0] if hidden is None else outputs.hidden_states[hidden]), first


def _joined(hidden: Tensor, chunks: Sequence[Sequence[Sequence[int]]]) -> list[Tensor]:
    return [part.flatten(0, 1) for part in hidden.split([len(c) for c in chunks])]
