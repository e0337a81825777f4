"""What is to be learnt from a document: its layers, their words and names, pictures and masks; and what each step of
the training shows."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..canvas.compositing import GREY, flat
from ..canvas.masks import document_masks, mask_pyramid
from ..canvas.resizing import resized
from ..document import Layer, LayerDocument
from ..errors import LayeredError, check_number, check_whole, invalid
from .word_files import FORMS, check_word_name
from .wording import Text, draw_text, noun_of, with_word

CONTEXTS = ("composite", "grey")
"""What a training picture shows: the layer on those behind it, or alone on grey."""

LEAST_CELLS = 4
"""Least visible area of a layer from which a word is learnt, cells of the latents."""

MOST_WORDS = 40
"""Greatest number of words in a layer's prompt from which a word is learnt: text encoders read 75 tokens at once."""

CHECKS = 8
"""Number of fixed pairs of noise level and noise with which progress is measured."""


@dataclass(frozen=True)
class LearnSettings:
    """How words are learnt."""

    form: str = "values"
    """``values`` (an embedding, and what is added to keys and values; needs this project) or ``word`` (an embedding
    alone, which other programs read too)."""
    steps: int = 250
    """Steps of training for all layers together, 0..10000; it may stop before. 0: the words keep their start."""
    batch: int = 4
    """Pictures a step, 1..64."""
    rate: float = 0.1
    """Size of a step, in spreads (standard deviations) of the vectors of the words to begin with, 0.001..1."""
    vectors: int = 1
    """Vectors, and so tokens of a prompt, for each word, 1..4."""
    context: str = "composite"
    """One of :data:`CONTEXTS`."""
    attention: float = 0.0
    """Weight of the share of the word's attention that falls outside the layer, 0..10. Neutral: 0."""
    start: str = ""
    """Words whose mean vector each word begins with; empty: the layer's own words. Neutral: empty."""
    by_area: bool = True
    """Whether errors are divided by the area of the layer's mask; without that, small layers learn slowly."""
    seed: int = 0
    """Seed of noise and texts, 0..2**63-1."""

    def __post_init__(self) -> None:
        for where, value, allowed in (("form", self.form, FORMS), ("context", self.context, CONTEXTS)):
            if value not in allowed:
                raise invalid(where, value, ", ".join(allowed))
        check_whole("steps", self.steps, 0, 10_000)
        check_whole("batch", self.batch, 1, 64)
        check_number("rate", self.rate, 0.001, 1)
        check_whole("vectors", self.vectors, 1, 4)
        check_number("attention", self.attention, 0, 10)
        check_whole("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class Subject:
    """A layer from which a word is learnt."""

    layer: str
    """The layer's name."""
    word: str
    """The name of the word."""
    prompt: str
    """The layer's words."""

    @property
    def noun(self) -> str:
        """The noun of the layer's words, in front of which the learnt word stands."""
        return noun_of(self.prompt)


@dataclass(frozen=True)
class Drawn:
    """One picture of a batch."""

    picture: int
    """Number of the subject up to which the document is shown."""
    shown: tuple[int, ...]
    """Numbers of the subjects that the text names, from whose masks the error is taken."""
    text: Text
    """The text, in which numbers of subjects stand for their words."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """Everything that the training shows. S subjects, back to front; H W pictures, h w latents."""

    subjects: tuple[Subject, ...]
    pictures: Tensor
    """The document up to and with each subject, ``[S, 3, H, W]`` in 0..1."""
    masks: Tensor
    """Visible mask of each subject (second) in each picture (first), ``[S, S, h, w]`` in 0..1."""
    behind: tuple[tuple[str, ...], ...]
    """For each picture the words of the layers in it, front to back, with subjects among them."""
    settings: LearnSettings

    def draw(self, rng: random.Random) -> Drawn:
        """Draw one picture of a batch: half of the time one subject, else any of them at once (Break-A-Scene)."""
        count = len(self.subjects)
        together = self.settings.context == "composite" and count > 1 and rng.random() < 0.5
        chosen = sorted(rng.sample(range(count), rng.randint(2, count) if together else 1))
        top = chosen[-1]
        shown = tuple(i for i in chosen if self.masks[top, i].sum() >= LEAST_CELLS)
        own = {self.subjects[i].prompt for i in shown}
        behind = ", ".join(words for words in self.behind[top] if words not in own)
        return Drawn(top, shown, draw_text(rng, [(i, self.subjects[i].prompt) for i in shown], behind))

    def check_texts(self, number: int) -> list[Text]:
        """Return the texts with which the progress of a subject is measured."""
        prompt = self.subjects[number].prompt
        return [with_word(prompt, number, before_noun=bool(i % 2)) for i in range(CHECKS)]


def find_subjects(
    document: LayerDocument, layers: Sequence[str] | None = None, words: Mapping[str, str] | None = None
) -> tuple[Subject, ...]:
    """Return the layers from which words are to be learnt, back to front.

    Args:
        document: the document.
        layers: names of layers; None: all visible ones that have a picture and words.
        words: a name of the learnt word for each layer; a layer that is missing there gets :func:`default_name`.

    Raises:
        LayeredError: there is no such layer, or it is hidden, has no picture or no words with a noun; or a word's name
            is odd or given twice. The text names the layer.
    """
    words = dict(words or {})
    if layers is None:
        chosen = [x.name for x in document if x.visible and x.image is not None and x.prompt.strip()]
        if not chosen:
            raise LayeredError(
                "no layer can be learnt from: none that is shown has both a picture and words. Give a layer both"
            )
    else:
        chosen = list(dict.fromkeys(layers))
        if not chosen:
            raise invalid("layers to learn from", [], "at least one layer's name")
    for name in (*chosen, *words):
        document.layer(name)
    if strange := [name for name in words if name not in chosen]:
        raise invalid("layer of a word's name", strange[0], ", ".join(map(repr, chosen)))
    subjects = tuple(
        _subject(layer, words.get(layer.name) or default_name(layer.name, number))
        for number, layer in enumerate(document)
        if layer.name in chosen
    )
    for subject in subjects:
        others = [x for x in subjects if x.word.lower() == subject.word.lower() and x is not subject]
        if others:
            raise LayeredError(
                f"layers {subject.layer!r} and {others[0].layer!r} would both be learnt as {subject.word!r}. Give "
                "each word a name of its own"
            )
    return subjects


def default_name(layer: str, number: int) -> str:
    """Return the name of the word learnt from a layer: the layer's own in the letters that words may have, and
    ``-look``."""
    plain = re.sub(r"[^a-z0-9]+", "-", layer.lower()).strip("-")[:50].strip("-")
    return f"{plain or f'layer-{number + 1}'}-look"


def plan_lesson(
    document: LayerDocument,
    subjects: Sequence[Subject],
    settings: LearnSettings,
    size: tuple[int, int],
    cells: tuple[int, int],
) -> Lesson:
    """Draw the pictures and masks of a lesson.

    Args:
        document: has the subjects' layers.
        subjects: from :func:`find_subjects`.
        settings: see :class:`LearnSettings`.
        size: H, W of the pictures, pixels.
        cells: h, w of the latents.

    Raises:
        LayeredError: a layer is seen in fewer than :data:`LEAST_CELLS` cells; the text names it.
    """
    numbers = {layer.name: i for i, layer in enumerate(document)}
    pictures, masks, behind = [], torch.zeros(len(subjects), len(subjects), *cells), []
    for top, subject in enumerate(subjects):
        last = numbers[subject.layer]
        part = _shown(document, last, settings.context)
        pictures.append(resized(flat(part)[None], *size)[0])
        found = mask_pyramid(document_masks(part)[0], [cells])[0]
        for i, other in enumerate(subjects[: top + 1]):
            if part.layer(other.layer).visible:
                masks[top, i] = found[numbers[other.layer]]
        seen = [x.prompt.strip() for x in reversed(part.layers) if x.visible and x.image is not None]
        behind.append(tuple(dict.fromkeys(words for words in seen if words)))
        area = float(masks[top, top].sum())
        if area < LEAST_CELLS:
            raise invalid(
                f"layer {subject.layer!r}: visible area",
                round(area, 2),
                f"at least {LEAST_CELLS} cells of the {cells[1]} x {cells[0]} that the model sees",
                "Enlarge the layer, or move it onto the canvas",
            )
    return Lesson(tuple(subjects), torch.stack(pictures), masks, tuple(behind), settings)


def with_embeddings(document: LayerDocument, subjects: Sequence[Subject]) -> LayerDocument:
    """Return the document with each learnt word in its layer's recipe."""
    words = {subject.layer: subject.word for subject in subjects}
    layers = (
        replace(x, recipe=replace(x.recipe, embedding=words[x.name])) if x.name in words else x
        for x in document
    )
    return replace(document, layers=tuple(layers))


def _subject(layer: Layer, word: str) -> Subject:
    where = f"layer {layer.name!r}"
    check_word_name(f"{where}: name of its word", word)
    if not layer.visible:
        raise invalid(f"{where}: visible", False, "True", "Show it: a hidden layer is not in the picture")
    if layer.image is None:
        raise LayeredError(f"{where} has no picture to learn from. Give it one, or leave it out")
    prompt = layer.prompt.strip()
    if not noun_of(prompt):
        raise invalid(
            f"{where}: words", layer.prompt, "words with a noun, such as 'a ball'", "Say what the layer shows"
        )
    if len(prompt.split()) > MOST_WORDS:
        raise invalid(
            f"{where}: number of words", len(prompt.split()), f"at most {MOST_WORDS}", "Shorten them: say what the "
            "layer shows, its look is learnt"
        )  # fmt: skip
    return Subject(layer.name, word, prompt)


def _shown(document: LayerDocument, last: int, context: str) -> LayerDocument:
    """Return the document with what a training picture shows: the layers up to number ``last``, or that one alone
    on grey."""
    layers = tuple(
        replace(x, visible=x.visible and (i == last if context == "grey" else i <= last))
        for i, x in enumerate(document)
    )
    background = GREY if context == "grey" else document.background
    return replace(document, layers=layers, background=background)
