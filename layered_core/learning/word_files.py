"""The files of a learnt word.

``krk.safetensors`` is an ordinary embedding, which other programs read too: one tensor ``[n, C]`` under the word's
name, or for SDXL two, ``clip_l`` and ``clip_g``. ``krk.values.safetensors`` beside it is the form ``values``
(:mod:`.word_values`): tensors ``blocks.<i>.dk`` and ``blocks.<i>.dv``, ``[2, D_i]``. They are two files because
readers of embeddings take the first tensor of a file, whatever it is. Both say in their metadata what was learnt from
what.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import LayeredError, invalid
from ..formats.part_files import part_file
from ..formats.pictures import check_output
from .word_values import WordValues

FORMS = ("values", "word")
"""``values``: an embedding, and what is added to keys and values beside it. ``word``: an embedding alone."""

ENDING = ".safetensors"
VALUES_ENDING = ".values.safetensors"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FORMAT = "layered-diffusion values 1"


@dataclass(frozen=True, eq=False)
class LearntWord:
    """A learnt word."""

    name: str
    """Its name: letters a to z, digits, ``_`` and ``-``."""
    vectors: Mapping[str, Tensor]
    """Its vectors ``[n, C]`` by the name of their tensor: the word's own name, or ``clip_l`` and ``clip_g``."""
    values: WordValues | None = None
    """What is added to keys and values; None for the form ``word``."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was learnt from what, for the files' metadata."""


def check_word_name(where: str, name: object) -> None:
    """Raise :class:`LayeredError` unless ``name`` is a name that files and prompts of both hosts can hold."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid(
            where,
            name,
            "1 to 64 of the letters a to z, digits, _ and -",
            "It becomes a file's name and a word of prompts, which end at other characters",
        )


def word_paths(folder: Path, name: str, form: str) -> list[Path]:
    """Return the files of a word of this form, the embedding first."""
    ends = (ENDING, VALUES_ENDING) if form == "values" else (ENDING,)
    return [folder / f"{name}{end}" for end in ends]


def check_free(where: str, folder: Path, name: str, overwrite: bool) -> None:
    """Raise :class:`LayeredError` if ``folder`` is none, or has files of such a name already and ``overwrite`` does
    not allow to replace them. ``where`` names the layer."""
    if not folder.is_dir():
        raise invalid("folder of learnt words", str(folder), "an existing folder", "Make it first")
    for path in word_paths(folder, name, "values"):
        if os.path.lexists(path) and not overwrite:
            raise LayeredError(
                f"{where}: file {path.name!r} exists already in {str(folder)!r}. Choose another name, or allow to "
                f"overwrite it"
            )
        check_output(path)


def write_word(word: LearntWord, folder: Path, overwrite: bool = False) -> list[Path]:
    """Write a learnt word's files into ``folder``, and return their paths.

    They are written under temporary names and renamed when both are complete. Values of an earlier word of that name
    are removed.

    Raises:
        LayeredError: the name is odd, a file exists and ``overwrite`` is False, or writing fails.
    """
    where = f"learnt word {word.name!r}"
    check_word_name(f"{where}: name", word.name)
    check_free(where, folder, word.name, overwrite)
    contents = [save({k: _plain(v) for k, v in word.vectors.items()}, dict(word.facts))]
    if word.values is not None:
        tensors: dict[str, Tensor] = {}
        for i, (dk, dv) in enumerate(zip(word.values.keys, word.values.values, strict=True)):
            tensors |= {f"blocks.{i}.dk": _plain(dk), f"blocks.{i}.dv": _plain(dv)}
        marks = {"format": _FORMAT, "noun": word.values.noun, "word_sha256": fingerprint(word.vectors)}
        contents.append(save(tensors, {**word.facts, **marks}))
    paths = word_paths(folder, word.name, "word" if word.values is None else "values")
    try:
        with ExitStack() as stack:
            for path, content in zip(paths, contents, strict=True):
                stack.enter_context(part_file(path)).write(content)
        if word.values is None:
            (folder / f"{word.name}{VALUES_ENDING}").unlink(missing_ok=True)
    except OSError as error:
        raise LayeredError(f"{where} cannot be written to {str(folder)!r}: {error.strerror}") from None
    return paths


def fingerprint(vectors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of vectors, by which values know the word that they were learnt with."""
    digest = hashlib.sha256()
    for tensor in sorted(vectors):
        digest.update(_plain(vectors[tensor]).numpy().tobytes())
    return digest.hexdigest()


def values_of(file: Path) -> WordValues | None:
    """Return the values beside an embedding's ``file``; None if there are none.

    Raises:
        LayeredError: they are broken, or were learnt with another word of that name.
    """
    path = file.with_name(f"{file.name.removesuffix(ENDING)}{VALUES_ENDING}")
    if not file.name.endswith(ENDING) or file.name.endswith(VALUES_ENDING) or not os.path.isfile(path):
        return None
    tensors, facts = read_tensors(path)
    vectors, _ = read_tensors(file)
    if facts.get("format") != _FORMAT:
        raise invalid(f"format of {path.name!r}", facts.get("format"), repr(_FORMAT), "Remove the file")
    if facts.get("word_sha256") != fingerprint(vectors):
        raise LayeredError(
            f"file {path.name!r} belongs to another word than {file.name!r}. Copy both again, or remove the former"
        )
    numbers = range(len(tensors) // 2)
    names = [[f"blocks.{i}.{kind}" for i in numbers] for kind in ("dk", "dv")]
    if sorted(tensors) != sorted(names[0] + names[1]):
        raise invalid(f"tensors of {path.name!r}", sorted(tensors)[:3], "blocks.0.dk, blocks.0.dv and so on")
    return WordValues(facts.get("noun", ""), *(tuple(tensors[x] for x in kind) for kind in names))


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file in float32, and its metadata.

    Raises:
        LayeredError: the file is missing or broken, or has numbers that are none.
    """
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118  # no dict
            facts = dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise LayeredError(f"file {file.name!r} cannot be read: {error}. Copy it again") from None
    if not all(bool(x.isfinite().all()) for x in tensors.values()):
        raise LayeredError(f"file {file.name!r} has numbers that are not finite. Learn the word again")
    return tensors, facts


def table_fingerprint(tables: Sequence[Tensor]) -> str:
    """Return the SHA-256 of the text encoders' tables of embeddings, which says with which model a word was learnt."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(table.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous()
