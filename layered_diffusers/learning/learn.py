"""Learn words from the layers of a document and write their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from PIL import Image

from layered_core.document import LayerDocument
from layered_core.errors import LayeredError, invalid
from layered_core.learning import objective
from layered_core.learning.lesson import LearnSettings, find_subjects, plan_lesson, with_embeddings
from layered_core.learning.word_files import check_free, write_word
from layered_diffusers.generator import Generator
from layered_diffusers.learning.training import Preview, WordTraining
from layered_diffusers.models.adapters import embedding_token
from layered_diffusers.models.loading import StableDiffusion, is_transformer
from layered_diffusers.sampling import Progress

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Learning(TypedDict, total=False):
    """Options of :func:`learn_words`."""

    layers: Sequence[str] | None
    """Names of the layers to learn from; None: all visible ones with a picture and words."""
    words: Mapping[str, str] | None
    """The name of the learnt word for each layer; layers without one get a name made of theirs."""
    settings: LearnSettings | None
    """How the words are learnt."""
    overwrite: bool
    """Whether files of the same name are replaced."""
    progress: Progress | None
    """Called after each step."""
    preview: Preview | None
    """Called every :data:`~layered_core.learning.training.PREVIEW_EVERY` steps with a picture of each word."""
    plot: Callable[[Sequence[Image.Image]], None] | None
    """Called at the end with a drawing for each word, how its error fell."""


def learn_words(
    pipeline: Generator, document: LayerDocument, folder: Path, **options: Unpack[Learning]
) -> LayerDocument:
    """Learn a word from each of some layers, write their files, and return the document with the words in the layers'
    recipes.

    The model is the same afterwards, also after an error. Files are written when all words are learnt, or not at all.

    Args:
        pipeline: its model is to know the words.
        document: has the layers, with pictures and words that say what they show.
        folder: where the files are written; give it to :meth:`LayeredDiffusionPipeline.render` as ``adapters``.
        options: see :class:`Learning`.

    Raises:
        LayeredError: the model is a transformer or made for inpainting; a layer or name cannot be used; a file exists;
            or memory does not suffice. The text names the layer, and nothing is written then.
    """
    settings, overwrite = options.get("settings") or LearnSettings(), options.get("overwrite", False)
    check_model(pipeline)
    subjects = find_subjects(document, options.get("layers"), options.get("words"))
    for subject in subjects:
        where = f"layer {subject.layer!r}"
        check_free(where, folder, subject.word, overwrite)
        _check_new(pipeline.model, where, subject.word)
    lesson = plan_lesson(document, subjects, settings, *training_size(pipeline, document))
    try:
        training = WordTraining(pipeline, lesson)
        training.run(options.get("progress"), options.get("preview"))
    except torch.OutOfMemoryError as error:
        raise LayeredError(
            f"learning words needs more memory than {pipeline.model.device} has free, at {settings.batch} pictures a "
            "step. Choose a smaller batch"
        ) from error
    for word in training.words():
        write_word(word, folder, overwrite)
    plot = options.get("plot")
    if plot is not None:
        plot(training.plots())
    return with_embeddings(document, subjects)


def check_model(pipeline: Generator) -> None:
    """Raise :class:`LayeredError` if words cannot be learnt with the pipeline's model."""
    name = type(pipeline.model).__name__
    if is_transformer(pipeline.model):
        raise LayeredError(
            f"words cannot be learnt with {name}: its text encoder reads whole sentences, and an embedding means "
            "nothing to it. Train a LoRA from the layer instead, and name it in the layer's recipe"
        )
    if pipeline.inpaints:
        raise invalid("model to learn words with", name, "one that is not made for inpainting")
    prediction = pipeline.model.scheduler.config.prediction_type
    if prediction not in objective.PREDICTIONS:
        raise invalid(f"what {name} predicts", prediction, ", ".join(objective.PREDICTIONS))


def training_size(pipeline: Generator, document: LayerDocument) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return H, W of training pictures and h, w of their latents: the model's own area, in the canvas's shape."""
    factor = pipeline.side / (document.width * document.height) ** 0.5
    size = tuple(
        max(1, round(x * factor / pipeline.unit)) * pipeline.unit for x in (document.height, document.width)
    )
    return (size[0], size[1]), (size[0] // pipeline.scale, size[1] // pipeline.scale)


def _check_new(model: StableDiffusion, where: str, word: str) -> None:
    """Raise :class:`LayeredError` if the tokenizer knows a word already."""
    known = model.tokenizer.get_vocab()
    if f"{word.lower()}</w>" in known or embedding_token(word) in known:
        raise invalid(
            f"{where}: name of its word", word, "a name that is no word already", f"Try '{word}-look'"
        )
