"""Learnt words, and what words do without learning, as methods of the bench."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from benchmarks.bench.learnt import learnt_figures
from benchmarks.bench.rendered import pixels
from benchmarks.bench.scenes import Case
from demo.world.judge import Judge
from demo.world.scenes import caption
from demo.world.vocabulary import BACKGROUNDS, COLOURS
from layered_core.attention.regional_plan import Settings
from layered_core.document import LayerDocument
from layered_core.learning.lesson import LearnSettings, find_subjects, plan_lesson, with_embeddings
from layered_core.learning.word_files import LearntWord
from layered_diffusers.learning.learn import training_size
from layered_diffusers.learning.training import WordTraining
from layered_diffusers.models.adapters import embedding_token, spoken
from layered_diffusers.pipeline import LayeredDiffusionPipeline

_LEARNT: WeakKeyDictionary[LayeredDiffusionPipeline, dict[Any, list[LearntWord]]] = WeakKeyDictionary()
"""Words that were learnt with each pipeline, by thing and settings: other rows use them again."""


def class_word(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    regions: Mapping[str, Any] | None = None,
) -> Tensor:
    """Generate from the name of the thing's kind alone; ``regions`` as in :func:`learnt_word`."""
    return _told(pipeline, scenes, "a ", regions, seeds=seeds, steps=steps, guidance=guidance)


def nearest_word(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Tensor:
    """Generate from the kind and that of the six colour words whose pictures are nearest to the thing: an oracle, which
    looks at the pictures."""
    judge, found = Judge.load(), []
    for _, cases, own in _by_thing(scenes, seeds):
        tried = []
        for colour in COLOURS:
            prompts = [_prompt(scene, f"a {colour} ") for scene in cases]
            pictures = pipeline.generate(prompts, seeds=own, steps=steps, guidance=guidance)
            verdicts = judge.look(pictures)
            figures = [learnt_figures(*x)["energy"] for x in zip(cases, pictures, verdicts, strict=True)]
            tried.append((sum(x if x == x else 200.0 for x in figures), pictures))
        found.append(min(tried, key=lambda x: x[0])[1])
    return torch.cat(found)


def learnt_word(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    first: bool = False,
    settings: Mapping[str, Any] | None = None,
    regions: Mapping[str, Any] | None = None,
) -> Tensor:
    """Learn a word from each thing's scene, and generate from it and the kind.

    ``first``: the word stands in front of "a ball", as hosts write a recipe's embedding, instead of before the noun.
    ``settings``: fields of ``layered_core.learning.lesson.LearnSettings``. ``regions``: fields of
    ``layered_core.attention.regional_plan.Settings``, with which every thing's words act in its own place; None: one
    prompt for the whole picture.
    """
    found = []
    for index, cases, own in _by_thing(scenes, seeds):
        document = source_document(cases[0])
        word = _learnt(pipeline, index, document, ["thing"], LearnSettings(**(settings or {})))[0]
        token = embedding_token(word.name)
        before = f"{token} a " if first else f"a {token} "
        with spoken(pipeline.model, [word]):
            found.append(_told(pipeline, cases, before, regions, seeds=own, steps=steps, guidance=guidance))
    return torch.cat(found)


def _told(
    pipeline: LayeredDiffusionPipeline,
    cases: Sequence[Case],
    before: str,
    regions: Mapping[str, Any] | None,
    **sampling: Any,
) -> Tensor:
    """Generate the cases with ``before`` in front of the first thing's kind, from one prompt or in ``regions``."""
    prompts = [_prompt(case, before) for case in cases]
    if regions is None:
        return pipeline.generate(prompts, **sampling)
    documents = []
    for case in cases:
        drawn = case.scene.document()
        landscape, thing, *others = drawn.layers
        thing = replace(thing, prompt=f"{before}{case.scene.objects[0].thing.kind}")
        documents.append(replace(drawn, layers=(landscape, thing, *others)))
    regional = pipeline.regional_prompts(documents, Settings(**regions), prompts=prompts)
    return pipeline.generate(regional.prompts, methods=[regional], **sampling)


def learnt_layer_noise(
    pipeline: LayeredDiffusionPipeline,
    scenes: Sequence[Case],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    objects: float,
    landscape: float = 0.0,
    settings: Mapping[str, Any] | None = None,
) -> Tensor:
    """Learn a word from every object of the collage, all in one run, and harmonise the collage as the method
    ``layer_noise`` does with attention ``collage``, with the words in the layers' prompts.

    ``settings``: fields of ``layered_core.learning.lesson.LearnSettings``.
    """
    pictures = []
    for scene, seed in zip(scenes, seeds, strict=True):
        names = [layer.name for layer in scene.collage.layers[1:]]
        words = _learnt(
            pipeline, ("collage", scene.scene.seed), scene.collage, names, LearnSettings(**(settings or {}))
        )
        document = with_embeddings(scene.collage, find_subjects(scene.collage, names))
        document = document.with_noise(objects).with_noise({document.layers[0].name: landscape})
        told = [f"{embedding_token(w.name)} {t.words}" for w, t in zip(words, scene.things, strict=True)]
        document = replace(document, prompt=caption(told, scene.background_words))
        with spoken(pipeline.model, words):
            regional = pipeline.regional_prompts([document], Settings(mode="collage"))
            image = pipeline.harmonize(
                document, seed=seed, methods=[regional], attention=None, steps=steps, guidance=guidance
            )
        pictures.append(pixels(image))
    return torch.stack(pictures)


def source_document(case: Case) -> LayerDocument:
    """Return the scene that is learnt from, its thing described by its kind alone and called ``thing``."""
    assert case.source is not None
    drawn = case.source.document()
    thing = replace(drawn.layers[-1], name="thing", prompt=f"a {case.source.objects[0].kind}")
    return replace(drawn, layers=(*drawn.layers[:-1], thing))


def _learnt(
    pipeline: LayeredDiffusionPipeline,
    index: object,
    document: LayerDocument,
    layers: Sequence[str],
    settings: LearnSettings,
) -> list[LearntWord]:
    """Return the words learnt from some layers, or those that were learnt before under the same index."""
    known = _LEARNT.setdefault(pipeline, {})
    if (index, settings) not in known:
        subjects = find_subjects(document, layers)
        training = WordTraining(
            pipeline, plan_lesson(document, subjects, settings, *training_size(pipeline, document))
        )
        training.run()
        known[index, settings] = training.words()
    return known[index, settings]


def _prompt(case: Case, before: str) -> str:
    """Return a case's caption, with ``before`` in front of its first thing's kind."""
    kind, *others = (item.thing for item in case.scene.objects)
    place = BACKGROUNDS[case.scene.background][0]
    return caption([f"{before}{kind.kind}", *(x.words for x in others)], place)


def _by_thing(scenes: Sequence[Case], seeds: Sequence[int]) -> list[tuple[int, list[Case], list[int]]]:
    """Return the scenes and seeds of each thing, in order, with the seed of the scene that it is learnt from."""
    pairs = groupby(zip(scenes, seeds, strict=True), key=functools.partial(_source_seed))
    return [(index, *(list(x) for x in zip(*group, strict=True))) for index, group in pairs]  # type: ignore[misc]


def _source_seed(pair: tuple[Case, int]) -> int:
    assert pair[0].source is not None
    return pair[0].source.seed
