"""The words of layers beside the caption in a transformer's joint attention, without their places."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.scenes import Case
from layered_core.errors import invalid
from layered_diffusers.pipeline import LayeredDiffusionPipeline, TransformerPipeline
from layered_diffusers.sampling import Method
from layered_diffusers.transformer.joining import Row
from layered_diffusers.transformer.text import encode


class JoinedTexts(Method):
    """Append encoded texts to every picture's encoded prompt."""

    on_transformers = True

    def __init__(self, model: Any, texts: Sequence[Sequence[str]]) -> None:
        """Take the texts of every picture."""
        self.own = [[encode(model, words).own for words in group] for group in texts]

    def start(self, run: Any, stack: ExitStack) -> None:
        """Append the texts."""
        run.texts["cond"] = [
            replace(text, states=torch.cat([text.states, *own]))
            for text, own in zip(run.texts["cond"], self.own, strict=True)
        ]
        run.joint.halves["cond"] = [Row(len(text.states)) for text in run.texts["cond"]]


def joined_texts(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """Generate from the caption with every layer's own prompt beside it, all read everywhere: what masks add is
    the difference to regions. Transformers only."""
    if not isinstance(pipeline, TransformerPipeline):
        raise invalid("joined_texts: model", type(pipeline.model).__name__, "a transformer")
    words = [[layer.prompt for layer in s.scene.document()] for s in scenes]
    return pipeline.generate(
        [s.words for s in scenes], seeds=seeds, steps=steps, guidance=guidance,
        methods=[JoinedTexts(pipeline.model, words)],
    )  # fmt: skip
