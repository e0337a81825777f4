"""The prompt enhancer: completes a layer's words from the words of the whole scene.

LayerDiff (arXiv 2403.11929) names such a part and gives no equations; this one is the project's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attention.cross_attention import plain

HEADS = 2


class PromptEnhancer(nn.Module):
    """One block of attention from a layer's encoded words y to the scene's c:
    ``e = y + W_o attention(LN(y) -> LN(c))``.

    New, it changes nothing: ``W_o`` is 0. "a ball" beside "a red ball by the sea" learns its colour.

    Args:
        width: C, width of the encoded text.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.norm_words, self.norm_scene = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        nn.init.zeros_(self.o.weight)

    def forward(self, words: Tensor, scene: Tensor, weight: float = 1.0) -> Tensor:
        """Return completed words ``[B, T, C]``.

        Args:
            words: a layer's encoded words, ``[B, T, C]``.
            scene: the scene's, ``[B, T', C]``.
            weight: factor on what is added, 0..1. Neutral: 0.
        """
        if weight == 0:
            return words
        seen = self.norm_scene(scene)
        found = plain(HEADS)(self.q(self.norm_words(words)), self.k(seen), self.v(seen), None)
        return torch.add(words, self.o(found), alpha=weight)
