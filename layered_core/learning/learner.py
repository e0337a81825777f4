"""Learn words: the vectors and values of several words at once, each kept at its best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .lesson import LearnSettings
from .word_files import LearntWord
from .word_values import WordValues

CHECK_EVERY = 25
"""Steps between two measurements of the progress."""

PATIENCE = 75
"""A word is done when its error has not fallen by :data:`LEAST_FALL` in so many steps."""

LEAST_FALL = 0.01
"""Share by which an error must fall to count as progress."""

VALUES_RATE = 1 / 16
"""Size of a step of keys and values, in their spreads, over that of vectors in theirs."""


@dataclass(eq=False)
class Learnable:
    """A word while it is learnt."""

    name: str
    vectors: dict[str, Tensor]
    """Vectors ``[n, C]`` by encoder, in float32; they are trained."""
    spreads: dict[str, float]
    """Standard deviation of the numbers of a usual vector, by encoder."""
    values: WordValues | None = None
    """Trained too, if given."""
    value_spreads: Sequence[tuple[float, float]] = ()
    """Standard deviations of usual keys and values, by block."""
    best: float = math.inf
    """Least error so far."""
    best_step: int = 0
    _best: list[Tensor] = field(default_factory=list)
    _fell: tuple[float, int] = (math.inf, 0)

    def parameters(self) -> list[Tensor]:
        """Return all that is trained."""
        more = () if self.values is None else (*self.values.keys, *self.values.values)
        return [*self.vectors.values(), *more]

    def groups(self, rate: float) -> list[dict[str, object]]:
        """Return the optimiser's groups: each tensor with its own size of a step."""
        rates = [rate * self.spreads[x] for x in self.vectors]
        if self.values is not None:
            for which in range(2):
                rates += [rate * VALUES_RATE * spreads[which] for spreads in self.value_spreads]
        return [{"params": [p], "lr": r} for p, r in zip(self.parameters(), rates, strict=True)]

    def note(self, error: float, step: int) -> None:
        """Note the error at a step, and keep the word if it is the best so far."""
        if error < self.best or not self._best:
            self.best, self.best_step = error, step
            self._best = [p.detach().clone() for p in self.parameters()]
        if error < self._fell[0] * (1 - LEAST_FALL):
            self._fell = error, step

    def is_done(self, step: int) -> bool:
        """Return whether the error has stopped falling."""
        return step - self._fell[1] >= PATIENCE

    def learnt(self, facts: Mapping[str, str], best: bool = True) -> LearntWord:
        """Return the word at its best, or as it is now."""
        found = iter(self._best if best and self._best else [p.detach().clone() for p in self.parameters()])
        vectors = {x: next(found) for x in self.vectors}
        values = self.values
        if values is not None:
            keys = tuple(next(found) for _ in values.keys)
            values = replace(values, keys=keys, values=tuple(next(found) for _ in values.values))
        measured = {"best_error": f"{self.best:.6g}", "best_step": str(self.best_step)}
        return LearntWord(self.name, vectors, values, {**facts, **measured})


class Learner:
    """Trains several words at once with AdamW, without decay of the weights.

    The words share the optimiser, since a picture can show several of them; each is kept at its own best.
    """

    def __init__(self, words: Sequence[Learnable], settings: LearnSettings, half: bool = False) -> None:
        """Take the words; their tensors become trainable.

        Args:
            words: at their start.
            settings: their ``rate`` is used.
            half: whether the model computes in half precision, where small gradients vanish: they are scaled.
        """
        self.words = list(words)
        for word in self.words:
            for parameter in word.parameters():
                parameter.requires_grad_()
        groups = [group for word in self.words for group in word.groups(settings.rate)]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        self.steps = 0
        self.losses: list[float] = []
        """The loss of each step."""
        self.errors: list[tuple[int, list[float]]] = []
        """Steps at which progress was measured, each with the error of every word."""
        self._scale = 2.0**12 if half else 1.0

    def step(self, loss: Tensor) -> None:
        """Take one step down the gradient of a loss, a number. A step whose gradient is not finite is left out."""
        self.optimiser.zero_grad(set_to_none=True)
        (loss * self._scale).backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for word in self.words for p in word.parameters() if p.grad is not None]
        if all(bool(g.isfinite().all()) for g in gradients):
            for gradient in gradients:
                gradient /= self._scale
            self.optimiser.step()
        else:
            self._scale = max(self._scale / 2, 1.0)
        self.steps += 1
        self.losses.append(float(loss.detach()))

    def note(self, errors: Sequence[float]) -> bool:
        """Note the error of every word, and return whether all of them have stopped learning."""
        self.errors.append((self.steps, list(errors)))
        for word, error in zip(self.words, errors, strict=True):
            word.note(error, self.steps)
        return all(word.is_done(self.steps) for word in self.words)
