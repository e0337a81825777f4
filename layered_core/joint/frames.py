"""The frames of scenes made at once: K layers back to front, the background, the blend."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_whole, invalid

ROLES = ("foreground", "background", "blend")
"""What a frame can be. A role has one set of low-rank changes; all layers of a scene share the foreground's."""

MOST_LAYERS = 4
"""Greatest number of layers made at once, besides the background."""

DEPTH_WIDTH = 8
"""Numbers that describe a layer's depth."""


@dataclass(frozen=True)
class SceneFrames:
    """The frames of the scenes in a batch.

    The rows of a scene follow each other: ``[layer 1 .. layer K back to front, background, blend]``, F = K + 2 of
    them. In a batch whose scenes have different numbers of layers every scene has the rows of the largest; the first
    layers are the scene's own, and the rest are absent: computed, but seen by no other frame.

    Raises:
        LayeredError: a number of layers is not in 1..``MOST_LAYERS``, or larger than ``layers``.
    """

    layers: int
    """K, number of layers of the largest scene, 1..``MOST_LAYERS``."""
    counts: tuple[int, ...] = ()
    """The number of layers of each scene in the batch, 1..K. Neutral: empty, all scenes have K."""

    def __post_init__(self) -> None:
        check_whole("layers: number", self.layers, 1, MOST_LAYERS)
        for count in self.counts:
            check_whole("layers of a scene: number", count, 1, self.layers)

    @property
    def frames(self) -> int:
        """F, number of rows of a scene."""
        return self.layers + 2

    @property
    def roles(self) -> tuple[int, ...]:
        """The role of every frame, an index of ``ROLES``."""
        return (*(0,) * self.layers, 1, 2)

    @property
    def names(self) -> tuple[str, ...]:
        """The frames' names: ``layer 1`` ... ``layer K`` back to front, ``background``, ``blend``."""
        return (*(f"layer {i + 1}" for i in range(self.layers)), *ROLES[1:])

    def absent(self, scenes: int) -> Tensor | None:
        """Return True for the frames that are not there, ``[scenes, F]``; None if all are there.

        Args:
            scenes: scenes in the batch of a pass, a multiple of the number of ``counts``: the rows of cond and
                uncond repeat the scenes.
        """
        counts = self._counts(scenes)
        if counts is None:
            return None
        place = torch.arange(self.frames)
        return (place >= counts[:, None]) & (place < self.layers)

    def depths(self, scenes: int) -> Tensor:
        """Return what tells the layers of a scene apart, ``[1 or scenes, K, DEPTH_WIDTH]``: sines and cosines of
        ``pi / 2 * 2**j * i / k``, j = 0..3, for layer i = 1..k of k. ``scenes`` is as in :meth:`absent`."""
        counts = self._counts(scenes)
        most = torch.tensor([self.layers]) if counts is None else counts
        depth = torch.arange(1, self.layers + 1) / most[:, None]
        angles = depth[..., None] * (math.pi / 2 * 2.0 ** torch.arange(DEPTH_WIDTH // 2))
        return torch.cat([angles.sin(), angles.cos()], -1)

    def _counts(self, scenes: int) -> Tensor | None:
        if not self.counts or set(self.counts) == {self.layers}:
            return None
        if scenes % len(self.counts):
            raise invalid(
                "scenes in the batch", scenes, f"a multiple of {len(self.counts)}, whose layers are counted"
            )
        return torch.tensor(self.counts * (scenes // len(self.counts)))
