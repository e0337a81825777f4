"""Parts for the storybook world, with which pictures are taken apart without any other model."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from demo.world.judge import Judge, Verdict
from demo.world.scenes import caption
from demo.world.vocabulary import BACKGROUNDS, COLOURS, KINDS
from layered_core.canvas.resizing import resized
from layered_diffusers.dataset.protocols import Caption, Found, Picture


class JudgeCaptions:
    """Describes a picture by what the storybook's judge finds in it, the largest thing first."""

    about = {"model": "storybook judge"}

    def describe(self, picture: Picture) -> Caption:
        """Return the things and the landscape."""
        verdict, _ = _seen(picture)
        things = [f"a {f.colour} {f.kind}" for f in verdict.objects]
        behind = BACKGROUNDS[verdict.background][0]
        return Caption(caption(things, behind), tuple(dict.fromkeys(things)), behind)


class JudgeMasks:
    """Finds things with the storybook's judge: those whose colour and kind a phrase names."""

    about = {"model": "storybook judge"}

    def find(self, picture: Picture, phrases: Sequence[str]) -> list[Found]:
        """Return a mask for every thing that a phrase names; for each, the first phrase that does."""
        verdict, scores = _seen(picture)
        found = []
        for item, score in zip(verdict.objects, scores, strict=True):
            phrase = next((p for p in phrases if {item.colour, item.kind} <= set(_words(p))), None)
            if phrase is not None:
                mask = resized(item.mask.float(), *picture.size).clamp(0, 1)
                found.append(Found(phrase, (mask > 0.5).float(), score))
        return found


@functools.cache
def _judge() -> Judge:
    return Judge.load()


def _seen(picture: Picture) -> tuple[Verdict, list[float]]:
    """Return the judge's verdict and its confidence in each thing: the mean probability of its class on its mask."""
    judge, caught = _judge(), []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        caught.append(output.softmax(1)[0])

    hook = judge.classes.register_forward_hook(catch)
    try:
        (verdict,) = judge.look(picture.pixels[None].float())
    finally:
        hook.remove()
    classes = [(colour, kind) for colour in COLOURS for kind in KINDS]
    scores = [float(caught[0][1 + classes.index(f.thing)][f.mask].mean()) for f in verdict.objects]
    return verdict, torch.tensor(scores).clamp(0, 1).tolist()


def _words(phrase: str) -> list[str]:
    return re.findall(r"\w+", phrase.lower())
