"""The training of a lesson's words with the model of any host.

A host says what its model predicts for noisy pictures and texts; everything else is the same for all: which pictures,
texts and noise a step shows, the error, how progress is measured, and when it is enough.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import __version__
from ..attention.cross_attention import scores, word_shares
from . import objective
from .learner import CHECK_EVERY, Learner
from .lesson import CHECKS, Drawn, Lesson
from .word_files import LearntWord, table_fingerprint

PREVIEW_EVERY = 50
"""Steps between two previews."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says about a batch of B pictures."""

    said: Tensor
    """What it predicts, one of :data:`~.objective.PREDICTIONS`, ``[B, C, h, w]``."""
    maps: Sequence[Tensor] = ()
    """For every recorded cross-attention how strongly each pixel attends to a word, ``[P, N]``, for each of P pairs
    of a row and a subject."""
    sizes: Sequence[tuple[int, int]] = ()
    """h, w of each map."""


class Host(Protocol):
    """A host's model. Gradients reach the words that are learnt."""

    prediction: str
    """What the model predicts, one of :data:`~.objective.PREDICTIONS`."""
    alphas: Tensor
    """Cumulative product of the schedule's alphas, ``[T]`` in 0..1, on the latents' device."""

    def training(self) -> AbstractContextManager[None]:
        """Make the model ready for steps in a ``with`` block; afterwards it is as before."""

    def predict(
        self, noisy: Tensor, t: Tensor, drawn: Sequence[Drawn], record: Sequence[tuple[int, int]]
    ) -> Prediction:
        """Return what the model says.

        Args:
            noisy: :func:`~.objective.noised` latents, ``[B, C, h, w]``.
            t: their timesteps, indices into :attr:`alphas`, ``[B]``.
            drawn: has the text of each.
            record: rows and subjects whose attention is to be recorded.
        """


class Training:
    """Trains the words of a lesson."""

    def __init__(self, lesson: Lesson, latents: Tensor, learner: Learner, host: Host) -> None:
        """Take the lesson, its pictures as ``latents`` ``[S, C, h, w]`` in the model's scale, the words at their start
        and the model."""
        self.lesson, self.learner, self.host = lesson, learner, host
        self._latents, self._masks = latents, lesson.masks.to(latents.device)
        self._random = random.Random(lesson.settings.seed)
        self._generator = torch.Generator().manual_seed(lesson.settings.seed)
        fixed = torch.Generator().manual_seed(lesson.settings.seed + 1)
        self._fixed = [torch.randn(CHECKS, *latents.shape[1:], generator=fixed) for _ in lesson.subjects]

    def train(
        self,
        progress: Callable[[int, int], object] | None = None,
        preview: Callable[[int], object] | None = None,
    ) -> None:
        """Train until the settings' steps are done or nothing improves.

        Args:
            progress: called after each step with the number of steps done and of all steps. May raise to stop.
            preview: called every :data:`PREVIEW_EVERY` steps and at the end with the number of steps done.
        """
        steps = self.lesson.settings.steps
        for step in range(1, steps + 1):
            with self.host.training():
                if step == 1:
                    self.learner.note(self.errors())
                self.learner.step(self.loss())
                done = (step % CHECK_EVERY == 0 or step == steps) and self.learner.note(self.errors())
            if preview is not None and (step % PREVIEW_EVERY == 0 or step == steps or done):
                preview(step)
            if progress is not None:
                progress(step, step if done else steps)
            if done:
                break

    def loss(self) -> Tensor:
        """Draw a batch, and return its loss."""
        settings = self.lesson.settings
        drawn = [self.lesson.draw(self._random) for _ in range(settings.batch)]
        noise = torch.randn(len(drawn), *self._latents.shape[1:], generator=self._generator)
        t = torch.randint(len(self.host.alphas), (len(drawn),), generator=self._generator)
        pairs = [(row, number) for row, x in enumerate(drawn) for number in x.shown]
        errors, predicted = self._compared(drawn, t, noise, pairs, record=settings.attention > 0)
        shares = torch.tensor([1 / len(drawn[row].shown) for row, _ in pairs], device=errors.device)
        loss = (shares * errors).sum() / len(drawn)
        if settings.attention > 0:
            masks = torch.stack([self._masks[drawn[row].picture, number] for row, number in pairs])
            outside = objective.attention_term(predicted.maps, predicted.sizes, masks)
            loss = loss + settings.attention * (shares * outside).sum() / len(drawn)
        return loss

    @torch.no_grad()
    def errors(self) -> list[float]:
        """Return the error of every word at fixed noise."""
        found = []
        t = ((torch.arange(CHECKS) + 0.5) / CHECKS * len(self.host.alphas)).long()
        for number, noise in enumerate(self._fixed):
            drawn = [Drawn(number, (number,), text) for text in self.lesson.check_texts(number)]
            errors, _ = self._compared(drawn, t, noise, [(row, number) for row in range(CHECKS)])
            found.append(float(errors.mean()))
        return found

    def learnt(self, tables: Sequence[Tensor], best: bool = True) -> list[LearntWord]:
        """Return the words at their best, or as they are now.

        Args:
            tables: the text encoders' embeddings, which say in the files with which model a word was learnt.
            best: whether at their best.
        """
        settings = self.lesson.settings
        shared = {
            "form": settings.form, "context": settings.context, "steps": str(self.learner.steps),
            "rate": f"{settings.rate:g}", "seed": str(settings.seed), "text_encoder_sha256": table_fingerprint(tables),
            "version": __version__,
        }  # fmt: skip
        return [
            word.learnt({**shared, "word": x.word, "layer": x.layer, "class_words": x.prompt}, best)
            for word, x in zip(self.learner.words, self.lesson.subjects, strict=True)
        ]

    def _compared(
        self,
        drawn: Sequence[Drawn],
        t: Tensor,
        noise: Tensor,
        pairs: Sequence[tuple[int, int]],
        record: bool = False,
    ) -> tuple[Tensor, Prediction]:
        """Return the weighted error of each pair of a row and a subject, and what the model said."""
        device = self._latents.device
        t, noise = t.to(device), noise.to(self._latents)
        clean = self._latents[torch.tensor([x.picture for x in drawn], device=device)]
        alpha = self.host.alphas[t]
        noisy = objective.noised(clean, noise, alpha).to(clean.dtype)
        predicted = self.host.predict(noisy, t, drawn, pairs if record else ())
        wanted = objective.target(self.host.prediction, clean.float(), noise.float(), alpha)
        rows = torch.tensor([row for row, _ in pairs], device=device)
        masks = torch.stack([self._masks[drawn[row].picture, number] for row, number in pairs])
        errors = objective.masked_error(
            predicted.said[rows], wanted[rows], masks, self.lesson.settings.by_area
        )
        return errors * objective.error_weights(self.host.prediction, alpha)[rows], predicted


def said_of(prediction: str, noisy: Tensor, clean: Tensor, alpha: Tensor) -> Tensor:
    """Return what a model that predicts ``prediction`` said, from the clean picture that follows from it.

    Args:
        prediction: one of :data:`~.objective.PREDICTIONS`.
        noisy: :func:`~.objective.noised` latents, ``[B, C, h, w]``.
        clean: the clean picture as the model predicts it, ``[B, C, h, w]``.
        alpha: see :func:`~.objective.noised`.
    """
    a = alpha.view(-1, 1, 1, 1)
    noise = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
    return objective.target(prediction, clean, noise, alpha)


def by_sigma(noisy: Tensor, alpha: Tensor) -> Tensor:
    """Return :func:`~.objective.noised` latents in the scale ``clean + sigma noise``, ``[B, C, h, w]``."""
    return noisy / alpha.view(-1, 1, 1, 1).sqrt()


def attended(q: Tensor, k: Tensor, heads: int, words: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
    """Return how strongly each pixel attends to some words, mean over heads, ``[P, N]`` in 0..1.

    Args:
        q, k: queries ``[B, N, C]`` and keys ``[B, T, C]`` of a cross-attention.
        heads: number of heads.
        words: P rows of the batch, each with the indices of a word's tokens.
    """
    found, maps = scores(q, k, heads), []
    for row, at in words:
        marks = torch.zeros(k.shape[1], device=k.device)
        marks[list(at)] = 1
        maps.append(word_shares(found[row : row + 1], marks)[0])
    return torch.stack(maps)
