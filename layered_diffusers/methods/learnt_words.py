"""Learnt words of the form ``values`` in a run: their keys and values are added wherever the word is in a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor

from layered_core.attention.cross_attention import plain
from layered_core.errors import invalid
from layered_core.learning.word_values import Place, find_place, with_values
from layered_diffusers.models.adapters import cross_attentions, loaded_values
from layered_diffusers.models.loading import StableDiffusion
from layered_diffusers.models.text import context_length, tokenise
from layered_diffusers.sampling import Method, Run


def learnt_places(model: StableDiffusion, text: str) -> list[Place]:
    """Return where the learnt words that are loaded into a model stand in a text."""
    loaded = loaded_values(model)
    if not any(token in text for token in loaded):
        return []
    tokens, length = tokenise(model, text), context_length(model, text)
    found = []
    for token, values in loaded.items():
        word, noun = ([t.what for t in tokenise(model, x)] for x in (token, values.noun))
        found.append(find_place(tokens, word, noun, values, length))
    return [place for place in found if place is not None]


class LearntWords(Method):
    """Add the values of learnt words to the keys and values of the texts in which they stand.

    A method that gives the UNet other texts than the run's says which, with :meth:`texts`.
    """

    def __init__(self, model: StableDiffusion, negative: str, prompts: Sequence[str]) -> None:
        """Take the texts of a run, in the order of its rows: the negative prompt of every picture, then the prompts."""
        self.model = model
        self.rows = [learnt_places(model, text) for text in (*[negative] * len(prompts), *prompts)]

    def start(self, run: Run, stack: ExitStack) -> None:
        """Put processors on the UNet's cross-attentions."""
        before = dict(run.unet.attn_processors)
        stack.callback(run.unet.set_attn_processor, before)
        names = {f"{name}.processor": block for block, name in enumerate(cross_attentions(run.unet))}
        run.unet.set_attn_processor(
            {
                name: LearntProcessor(self, names[name], p) if name in names else p
                for name, p in before.items()
            }
        )
        run.learnt = self

    @contextmanager
    def texts(self, texts: Sequence[str]) -> Iterator[None]:
        """Let the rows of the model's next passes have these texts, in a ``with`` block."""
        before, found = self.rows, {text: learnt_places(self.model, text) for text in texts}
        self.rows = [found[text] for text in texts]
        try:
            yield
        finally:
            self.rows = before


class LearntProcessor:
    """An attention processor that adds the values of learnt words. The one that was installed before it keeps its
    effect; without a learnt word in any text it acts alone."""

    def __init__(self, method: LearntWords, block: int, before: Any) -> None:
        self.method, self.block, self.before = method, block, before

    def change(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values ``[rows, T, D]`` of the run's texts with those of their learnt words."""
        rows = self.method.rows
        if any(rows) and len(rows) != len(k):
            raise invalid(
                "rows of a pass with learnt words", len(k), str(len(rows)),
                "A method that gives the model further rows cannot be used beside learnt words of the form 'values'",
            )  # fmt: skip
        return with_values(k, v, rows, self.block)

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None, **more: Any
    ) -> Tensor:  # fmt: skip
        if not any(self.method.rows):
            out: Tensor = self.before(attn, hidden_states, encoder_hidden_states, attention_mask, **more)
            return out
        # With an image adapter, the encoded prompt is the first of several contexts.
        several = isinstance(encoder_hidden_states, tuple)
        words = encoder_hidden_states[0] if several else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(words), attn.to_v(words)
        changed = output(attn, plain(attn.heads)(q, *self.change(k, v), None))
        if is_plain(self.before) and attention_mask is None:
            return changed
        theirs: Tensor = self.before(attn, hidden_states, encoder_hidden_states, attention_mask, **more)
        return theirs + changed - output(attn, plain(attn.heads)(q, k, v, None))


def is_plain(processor: object) -> bool:
    """Return whether an attention processor is the ordinary one."""
    return type(processor) in (AttnProcessor, AttnProcessor2_0)


def output(attn: Attention, x: Tensor) -> Tensor:
    """Return the output of an attention for what its heads found, ``[B, N, C]``."""
    out: Tensor = attn.to_out[1](attn.to_out[0](x))
    return out / attn.rescale_output_factor
