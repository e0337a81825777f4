"""Train words from the layers of a document with a Stable Diffusion model, which stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from PIL import Image
from torch import Tensor

from layered_core.attention.cross_attention import merge_heads, plain, scores, split_heads
from layered_core.errors import invalid
from layered_core.formats.pictures import to_image
from layered_core.learning.learner import Learnable, Learner
from layered_core.learning.lesson import Drawn, Lesson, Subject
from layered_core.learning.plot import loss_plot
from layered_core.learning.training import Prediction, Training
from layered_core.learning.word_files import LearntWord
from layered_core.learning.word_values import Place, with_values, zeros
from layered_diffusers.generator import Generator
from layered_diffusers.learning.texts import Encoded, WordTexts, ids_of
from layered_diffusers.methods.learnt_words import output
from layered_diffusers.models.adapters import SDXL_VECTORS, cross_attentions, embedding_token, spoken
from layered_diffusers.models.text import encoders, is_sdxl
from layered_diffusers.sampling import Progress

_PREVIEW_STEPS = 15
_EXPLICIT = 1024
"""Greatest number of queries for which attention is computed step by step on a CPU, where the fused kernel's backward
pass is slow."""
_MAPPED = (64, 1024)
"""Least and greatest number of pixels of a feature map whose attention is recorded."""
_LARGE = 10**8
"""Number of weights from which a UNet computes its activations again in the backward pass, to save memory."""

Preview = Callable[[int, Sequence[Image.Image]], None]
"""Called with the number of steps done, and a picture of each word."""


@dataclass
class _Pass:
    """What the attention processors must know of the pass of the model that is running."""

    places: list[dict[int, Place]] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    """Rows and subjects whose attention is recorded."""
    maps: list[Tensor] = field(default_factory=list)


class WordTraining(Training):
    """Trains the words of a lesson with a pipeline's model, as which it serves the training itself."""

    def __init__(self, pipeline: Generator, lesson: Lesson) -> None:
        """Prepare the words at their start, and encode the pictures."""
        self.pipeline, self.model, self.lesson = pipeline, pipeline.model, lesson
        model = self.model
        self.prediction = str(model.scheduler.config.prediction_type)
        self.alphas = model.scheduler.alphas_cumprod.to(model.device, torch.float32)
        self._attentions = cross_attentions(model.unet)
        self._latents = pipeline.encode(lesson.pictures)
        self._pass, self._texts = _Pass(), WordTexts(model, lesson)
        with torch.no_grad():
            words = [self._start(i, subject) for i, subject in enumerate(lesson.subjects)]
        half = next(model.unet.parameters()).dtype != torch.float32
        super().__init__(lesson, self._latents, Learner(words, lesson.settings, half), self)

    def run(self, progress: Progress | None = None, preview: Preview | None = None) -> None:
        """Train until the settings' steps are done or nothing improves."""
        self.train(progress, None if preview is None else lambda step: preview(step, self.pictures()))

    def words(self, best: bool = True) -> list[LearntWord]:
        """Return the words at their best, or as they are now."""
        return self.learnt(
            [encoder.get_input_embeddings().weight for _, encoder in encoders(self.model)], best
        )

    def pictures(self) -> list[Image.Image]:
        """Return a picture of each word as it is now, made from the layer's words with it."""
        words = self.words(best=False)
        prompts = [
            f"{embedding_token(x.word)} {x.prompt}" for x in self.lesson.subjects
        ]  # as a recipe's embedding is written
        with spoken(self.model, words):
            found = self.pipeline.generate(
                prompts, seeds=[self.lesson.settings.seed] * len(prompts), steps=_PREVIEW_STEPS
            )
        return [to_image(x.permute(1, 2, 0)) for x in found]

    def plots(self) -> list[Image.Image]:
        """Return a drawing for each word, how its error fell."""
        learner = self.learner
        return [
            to_image(
                loss_plot(learner.losses, [(step, [row[i]]) for step, row in learner.errors], [word.name])
            )
            for i, word in enumerate(learner.words)
        ]

    # --- the words ---

    def _start(self, number: int, subject: Subject) -> Learnable:
        """Return a word at its start: the mean vector of the words to begin with, and values that change nothing."""
        settings = self.lesson.settings
        names = SDXL_VECTORS if is_sdxl(self.model) else (subject.word,)
        vectors, spreads = {}, {}
        for name, (tokenizer, encoder) in zip(names, encoders(self.model), strict=True):
            table = encoder.get_input_embeddings().weight
            ids = ids_of(tokenizer, settings.start or subject.prompt)
            if not ids:
                raise invalid("start", settings.start, "words that the model knows")
            rows = table[ids].float()
            vectors[name] = rows.mean(0, keepdim=True).repeat(settings.vectors, 1)
            spreads[name] = float(rows.std())
        if settings.form == "word":
            return Learnable(subject.word, vectors, spreads)
        widths = [int(attention.to_k.out_features) for attention in self._attentions.values()]
        told = self._texts.plain(subject.prompt)
        value_spreads = [
            (float(a.to_k(told).float().std()), float(a.to_v(told).float().std()))
            for a in self._attentions.values()
        ]
        values = zeros(subject.noun, widths).to(self._latents.float())
        return Learnable(subject.word, vectors, spreads, values, value_spreads)

    # --- the model ---

    def predict(
        self, noisy: Tensor, t: Tensor, drawn: Sequence[Drawn], record: Sequence[tuple[int, int]]
    ) -> Prediction:
        """Return what the model says, see :class:`~layered_core.learning.training.Host`."""
        encoded = self._texts.encode(self.learner.words, [x.text for x in drawn], [x.shown for x in drawn])
        self._pass = _Pass(encoded.places, list(record))
        said = self.model.unet(noisy, t, encoded.context, **self._added(encoded)).sample
        maps = self._pass.maps
        return Prediction(said, maps, [self._map_size(x.shape[1]) for x in maps])

    def _added(self, encoded: Encoded) -> dict[str, Any]:
        """Return SDXL's further inputs."""
        if encoded.pooled is None:
            return {}
        height, width = (int(x) for x in self.lesson.pictures.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=encoded.context.device)
        time_ids = sizes.to(encoded.context.dtype).expand(len(encoded.context), 6)
        return {"added_cond_kwargs": {"text_embeds": encoded.pooled, "time_ids": time_ids}}

    def _map_size(self, pixels: int) -> tuple[int, int]:
        """Return h, w of a feature map of so many pixels."""
        height, width = int(self._latents.shape[-2]), int(self._latents.shape[-1])
        sizes = ((height >> i, width >> i) for i in range(8))
        return next(size for size in sizes if size[0] * size[1] == pixels)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Freeze the model and watch its attention in a ``with`` block; afterwards it is as before."""
        unet = self.model.unet
        parts = [unet, *(encoder for _, encoder in encoders(self.model))]
        wanted = [(p, p.requires_grad) for part in parts for p in part.parameters()]
        before = dict(unet.attn_processors)
        names = {f"{name}.processor": block for block, name in enumerate(self._attentions)}
        explicit = AttnProcessor() if self._is_explicit else None
        large = sum(p.numel() for p in unet.parameters()) > _LARGE and not unet.is_gradient_checkpointing
        try:
            for p, _ in wanted:
                p.requires_grad_(False)
            unet.set_attn_processor(
                {k: _Watching(self, names[k]) if k in names else explicit or p for k, p in before.items()}
            )
            if large:
                unet.enable_gradient_checkpointing()
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            if large:
                unet.disable_gradient_checkpointing()
            unet.set_attn_processor(before)
            for p, given in wanted:
                p.requires_grad_(given)

    @property
    def _is_explicit(self) -> bool:
        pixels = int(self._latents.shape[-2] * self._latents.shape[-1])
        return self.model.device.type == "cpu" and pixels <= _EXPLICIT


class _Watching:
    """An attention processor of the training: adds the words' values, and records attention to the words."""

    def __init__(self, course: WordTraining, block: int) -> None:
        self.course, self.block = course, block

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        now = self.course._pass
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        if self.course.lesson.settings.form == "values":
            k, v = with_values(k, v, [list(at.values()) for at in now.places], self.block)
        pixels, least, most = q.shape[1], *_MAPPED
        record = bool(now.pairs) and least <= pixels <= most
        if not record and not self.course._is_explicit:
            return output(attn, plain(attn.heads)(q, k, v, None))
        shares = scores(q, k, attn.heads).softmax(-1)
        if record:
            tokens = [(row, list(now.places[row][number].word)) for row, number in now.pairs]
            now.maps.append(torch.stack([shares[row].mean(0)[:, at].sum(-1) for row, at in tokens]))
        return output(attn, merge_heads(shares.to(v.dtype) @ split_heads(v, attn.heads)))
