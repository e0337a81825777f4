"""Ways to make a scene's layers, its background and its blend, which ``benchmarks.joint_layers`` compares: its rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.bench.scenes import Case
from demo.world.places import TRANSPARENT
from demo.world.vocabulary import THINGS
from layered_core.canvas.compositing import composite
from layered_core.document import Layer, LayerDocument
from layered_core.formats.pictures import to_image
from layered_core.joint.frames import SceneFrames
from layered_diffusers.methods.self_mask import SelfMask
from layered_diffusers.models.loading import is_transformer
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.together import SceneWords


class Made(NamedTuple):
    """The pictures of one scene, each in 0..1."""

    layers: Tensor
    """Straight RGBA ``[K, 4, H, W]``, back to front."""
    background: Tensor
    """``[3, H, W]``."""
    blend: Tensor | None
    """The model's own picture of all, ``[3, H, W]``; None if there is none."""
    kept: float = math.nan
    """Whether all layers but an edited one are the same bit for bit; NaN if none was edited."""


class How(NamedTuple):
    """How scenes are sampled."""

    steps: int
    guidance: float
    file: Path | None
    """Weights of the network that makes layers at once; None: the shipped ones."""

    @property
    def options(self) -> dict[str, Any]:
        """The options of the pipeline's methods that make layers at once."""
        decoder = None if self.file is None else TRANSPARENT / "decoder.safetensors"
        return {"steps": self.steps, "guidance": self.guidance, "file": self.file, "decoder": decoder}

    @property
    def editing(self) -> dict[str, Any]:
        """The options of those that start from pictures."""
        return {**self.options, "encoder": None if self.file is None else TRANSPARENT / "encoder.safetensors"}


def words_of(case: Case) -> SceneWords:
    """Return the words of a case, each layer's its own."""
    return SceneWords(case.words, tuple(t.words for t in case.things), case.background_words)


def weak_words_of(case: Case) -> SceneWords:
    """Return the words of a case, without the colours of the layers that alone have their kind."""
    alone = of_single_kind(case)
    words = [f"a {t.kind}" if single else t.words for t, single in zip(case.things, alone, strict=True)]
    return replace(words_of(case), layers=tuple(words))


def of_single_kind(case: Case) -> list[bool]:
    """Return, for each layer, whether no other is of its kind."""
    kinds = [t.kind for t in case.things]
    return [kinds.count(kind) == 1 for kind in kinds]


def together(
    pipeline: LayeredDiffusionPipeline, cases: Sequence[Case], seeds: Sequence[int], how: How, **more: Any
) -> list[Made]:
    """Make all pictures of each case at once."""
    made = pipeline.generate_scenes([words_of(c) for c in cases], seeds=seeds, **how.options, **more)
    return [Made(*x) for x in zip(*made, strict=True)]


def weak(
    enhance: float,
    pipeline: LayeredDiffusionPipeline,
    cases: Sequence[Case],
    seeds: Sequence[int],
    how: How,
) -> list[Made]:
    """Make all pictures of each case at once, from words of layers without colours."""
    scenes = [weak_words_of(c) for c in cases]
    made = pipeline.generate_scenes(scenes, seeds=seeds, enhance=enhance, **how.options)
    return [Made(*x) for x in zip(*made, strict=True)]


class Everywhere(SelfMask):
    """Self-attention guidance without a mask: every place of every picture is blurred."""

    def masks(self, picture: Tensor) -> Tensor:
        """Return masks of 1."""
        return torch.ones_like(picture[:, 0])


def sag(
    amount: float,
    pipeline: LayeredDiffusionPipeline,
    cases: Sequence[Case],
    seeds: Sequence[int],
    how: How,
) -> list[Made]:
    """Make all pictures of each case at once with self-attention guidance."""
    prompts = [x for c in cases for x in (*words_of(c).layers, c.background_words, c.words)]
    method = Everywhere(SceneFrames(len(cases[0].things)), prompts, lambda latents: latents[:, 0], amount)
    return together(pipeline, cases, seeds, how, methods=[method])


def self_mask(
    amount: float,
    pipeline: LayeredDiffusionPipeline,
    cases: Sequence[Case],
    seeds: Sequence[int],
    how: How,
) -> list[Made]:
    """Make all pictures of each case at once with self-mask guidance."""
    return together(pipeline, cases, seeds, how, self_mask=amount)


def edit(
    pipeline: LayeredDiffusionPipeline, cases: Sequence[Case], seeds: Sequence[int], how: How
) -> list[Made]:
    """Make each case with another object in front, and edit that to be the wanted one."""
    made = []
    for case, seed in zip(cases, seeds, strict=True):
        wanted, scene = case.things[-1].words, words_of(case)
        other = next(
            t.words
            for t in THINGS[seed % len(THINGS) :] + THINGS
            if all(t.kind != x.kind for x in case.things)
        )
        words = (*scene.layers[:-1], other)
        # The front object's words stand anywhere in the caption.
        prompt = case.words.replace(wanted, other, 1)
        before = pipeline.generate_scene(
            prompt, words, background=case.background_words, seed=seed, **how.options
        )
        name = before.layers[-2].name
        after = pipeline.edit_layers(before, {name: wanted}, seed=seed, **how.editing)
        kept = all(torch.equal(a.image, b.image) for a, b in zip(before, after, strict=True) if a.visible
                   and a.name != name)  # fmt: skip
        made.append(made_of(after)._replace(kept=float(kept)))
    return made


def decompose(
    pipeline: LayeredDiffusionPipeline, cases: Sequence[Case], seeds: Sequence[int], how: How
) -> list[Made]:
    """Take each case as drawn apart."""
    made = []
    for case, seed in zip(cases, seeds, strict=True):
        scene = words_of(case)
        made.append(made_of(pipeline.decompose(
            to_image(case.picture.permute(1, 2, 0)), scene.layers, background=scene.background, prompt=scene.prompt,
            seed=seed, **how.editing,
        )))  # fmt: skip
    return made


def made_of(document: LayerDocument) -> Made:
    """Return the pictures of a document of a background, layers and a hidden blend."""
    behind, *layers, blend = (x.image.permute(2, 0, 1) for x in document if x.image is not None)
    return Made(torch.stack(layers), behind[:3], blend[:3])


def alone(
    pipeline: LayeredDiffusionPipeline,
    cases: Sequence[Case],
    seeds: Sequence[int],
    how: How,
    words: Callable[[Case], SceneWords] = words_of,
) -> list[Made]:
    """Make each picture of each case separately."""
    sampling = {"steps": how.steps, "guidance": how.guidance}
    if is_transformer(pipeline.model):
        blend = pipeline.generate([c.words for c in cases], seeds=[s + 2**30 for s in seeds], **sampling)
        made = transplant(pipeline, cases, seeds, how, until=0.0)
        return [x._replace(blend=own) for x, own in zip(made, blend, strict=True)]
    layers = [
        pipeline.generate_transparent(
            [words(c).layers[i] for c in cases], seeds=[s + i * 2**30 for s in seeds], **sampling
        )
        for i in range(len(cases[0].things))
    ]
    background = pipeline.generate([c.background_words for c in cases], seeds=seeds, **sampling)
    blend = pipeline.generate([c.words for c in cases], seeds=seeds, **sampling)
    return [Made(*x) for x in zip(torch.stack(layers, 1), background, blend, strict=True)]


def stages(
    pipeline: LayeredDiffusionPipeline, cases: Sequence[Case], seeds: Sequence[int], how: How
) -> list[Made]:
    """Make the landscape of each case, then one layer after the other where a draft puts its object."""
    made = []
    for case, seed in zip(cases, seeds, strict=True):
        side = case.scene.size
        texts = [case.background_words, *(t.words for t in case.things)]
        layers = [Layer(str(i), prompt=text, width=side, height=side) for i, text in enumerate(texts)]
        document = LayerDocument(side, side, tuple(layers))
        done = pipeline.generate_layers(
            document, seed=seed, alpha="transparent", steps=how.steps, guidance=how.guidance
        )
        alone = [composite(replace(done, layers=(x,))).permute(2, 0, 1) for x in done]
        made.append(Made(torch.stack(alone[1:]), alone[0][:3], None))
    return made


def transplant(
    pipeline: LayeredDiffusionPipeline, cases: Sequence[Case], seeds: Sequence[int], how: How, **more: Any
) -> list[Made]:
    """Make the layers of each case alone, and the blend around them."""
    made = pipeline.transplant_scenes(
        [words_of(c) for c in cases], seeds=seeds, steps=how.steps, guidance=how.guidance, **more
    )
    return [Made(*x) for x in zip(*made, strict=True)]


Way = Callable[[LayeredDiffusionPipeline, Sequence[Case], Sequence[int], How], list[Made]]
ROWS: dict[str, Way] = {
    "together": together, "alone": alone, "stages": stages,
    **{f"sag_{g}": partial(sag, g) for g in (0.5, 1)},
    **{f"self_mask_{g}": partial(self_mask, g) for g in (0.5, 1)},
    "weak_alone": partial(alone, words=weak_words_of),
    "weak": partial(weak, 1.0), "weak_not_enhanced": partial(weak, 0.0),
    "edit": edit, "decompose": decompose,
    "transplant": transplant,
    **{f"transplant_{u}": partial(transplant, until=float(u)) for u in (0, 0.75)},
    "drafts": partial(transplant, alpha="difference"),
    "drafts_0": partial(transplant, alpha="difference", until=0.0),
}  # fmt: skip
USUAL = {"storybook": ("together", "alone", "stages"), "transformer": ("transplant", "alone")}
"""Rows that are measured if none is named, by model."""

OF_TRANSFORMER = ("alone", "transplant", "transplant_0", "transplant_0.75")
"""Rows that the transformer has."""
