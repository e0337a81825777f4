"""A store of drawn and encoded examples for training: a share of every batch is fresh, the rest is drawn from it."""

from __future__ import annotations

import numpy as np


class ReplayStore:
    """Which slots of a store hold examples, and which is written next: the oldest, once all are full.

    A subclass has the tensors, writes an example into ``take_slot()`` and reads those of ``draw(count)``.
    """

    def __init__(self, rng: np.random.Generator, capacity: int) -> None:
        self.rng, self.capacity = rng, capacity
        self.filled = self.next = 0

    def take_slot(self) -> int:
        """Return the slot to write an example into."""
        slot = self.next
        self.next = (slot + 1) % self.capacity
        self.filled = min(self.filled + 1, self.capacity)
        return slot

    def draw(self, count: int) -> np.ndarray:
        """Return ``count`` filled slots by chance, int64 ``[count]``; one may come twice."""
        return self.rng.integers(self.filled, size=count)
