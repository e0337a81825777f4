"""Learnt words with values (:mod:`layered_core.learning.word_values`) among the texts of Regional Prompt Attention.

ComfyUI itself reads the word, an ordinary embedding. What is added to the keys and values of the word and of its noun
lies in a file beside the embedding's, and acts wherever a layer's recipe names the word.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.sd1_clip
import folder_paths
from torch import Tensor

from ...layered_core.attention.words import Token, Tokenise
from ...layered_core.document import Layer
from ...layered_core.learning.word_files import ENDING, values_of
from ...layered_core.learning.word_values import Place, WordValues, find_place, with_values
from .embeddings import EMBEDDING


@dataclass(frozen=True, eq=False)
class Learnt:
    """A learnt word with values that a layer's recipe names."""

    word: tuple[Hashable, ...]
    """The word's tokens, as :attr:`Token.what`."""
    noun: tuple[Hashable, ...]
    """The tokens of its noun."""
    values: WordValues


def words_with_values(layers: Iterable[Layer]) -> dict[str, tuple[str, WordValues]]:
    """Return the learnt words with values in the recipes of visible layers with words: for each name the first such
    layer's name, and the values.

    Raises:
        LayeredError: values are broken, or belong to another word.
    """
    found: dict[str, tuple[str, WordValues]] = {}
    for layer in layers:
        name = layer.recipe.embedding
        if not name or name in found or not layer.visible or not layer.prompt.strip():
            continue
        file = embedding_file(name)
        values = None if file is None else values_of(file)
        if values is not None:
            found[name] = layer.name, values
    return found


def learnt_words(widths: Sequence[int], layers: Iterable[Layer], tokenise: Tokenise) -> tuple[Learnt, ...]:
    """Return the learnt words with values that layers' recipes name.

    Args:
        widths: of the keys of a UNet's cross-attentions, in the order in which it runs them.
        layers: hidden layers and layers without words do not count.
        tokenise: the host's tokenizer.

    Raises:
        LayeredError: values are broken, or were learnt with another kind of model.
    """
    found = words_with_values(layers)
    for name, (layer, values) in found.items():
        values.check_fits(f"layer {layer!r}: embedding {name!r}", widths)
    return tuple(
        Learnt(_what(tokenise(f"{EMBEDDING}{name}")), _what(tokenise(values.noun)), values)
        for name, (_, values) in found.items()
    )


def places(text: Sequence[Token], words: Sequence[Learnt], length: int) -> tuple[Place, ...]:
    """Return where learnt words stand in a text of ``length`` keys."""
    found = (find_place(text, it.word, it.noun, it.values, length) for it in words)
    return tuple(place for place in found if place is not None)


def embedding_file(name: str) -> Path | None:
    """Return the safetensors file of an embedding of ComfyUI; None if there is none."""
    file = name if name.endswith(ENDING) else f"{name}{ENDING}"
    paths = (folder / file for folder in _folders())
    return next((path for path in paths if os.path.isfile(path)), None)


@dataclass(frozen=True, eq=False)
class Spoken:
    """Where learnt words stand in the texts of one conditioning of a run."""

    prompt: tuple[Place, ...]
    """In the main prompt."""
    regions: tuple[tuple[Place, ...], ...]
    """In the own text of every region."""

    def __bool__(self) -> bool:
        return bool(self.prompt or any(self.regions))

    def with_length(self, length: int) -> Spoken:
        """Return the same for a main prompt to which other nodes have appended, of ``length`` keys."""
        return replace(self, prompt=tuple(replace(place, length=length) for place in self.prompt))

    def of_prompt(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the main prompt's keys and values ``[B, K, C]`` of a cross-attention, changed."""
        return with_values(k, v, [self.prompt], block)

    def of_regions(self, block: int) -> Callable[[Sequence[int], Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the function that changes the keys and values of the regions' texts in a cross-attention."""

        def change(numbers: Sequence[int], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return with_values(k, v, [self.regions[number] for number in numbers], block)

        return change


def _folders() -> Iterator[Path]:
    for folder in folder_paths.get_folder_paths("embeddings"):
        yield Path(folder)
        yield from sorted(Path(x) for x in comfy.sd1_clip.expand_directory_list([folder]) if x != folder)


def _what(tokens: Sequence[Token]) -> tuple[Hashable, ...]:
    return tuple(token.what for token in tokens)
