"""Make the items of a batch, each at most once: what is made already is left alone, and a result appears complete or
not at all."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layered_cli.batching.items import Item
from layered_cli.batching.recipes import Identities, recipe_of
from layered_cli.batching.ways import WAYS, options_of
from layered_cli.shared import Many, one_of_many
from layered_core.errors import LayeredError
from layered_core.formats.part_files import scratch_folder

PRIVATE = ".layered"
"""Folder in a batch's folder for the recipes' checksums and for what is not complete yet."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Numbers of errors after which no further result can be written."""

_MADE, _KEPT, _FAILED = "made", "kept", "failed"


@dataclass(frozen=True)
class Plan:
    """What all workers of a batch know. It can be sent to other processes."""

    out: Path
    """Folder of the results, absolute."""

    common: Mapping[str, Any]
    """Options for all items, by their names in :mod:`argparse`."""

    identities: Mapping[str, str] = field(default_factory=dict)
    """Checksums of weights that are known already."""

    folder: str = field(default_factory=os.getcwd)
    """Folder to which paths in options are relative."""


@dataclass(frozen=True)
class Outcome:
    """What became of an item."""

    item: Item
    state: str
    """``made``, ``kept`` (it was there already) or ``failed``."""

    reason: str = ""
    """Why it failed."""

    warnings: tuple[str, ...] = ()
    process: int = field(default_factory=os.getpid)

    @property
    def is_made(self) -> bool:
        return self.state == _MADE

    @property
    def is_failed(self) -> bool:
        return self.state == _FAILED


def failed(item: Item, reason: str) -> Outcome:
    """Return the outcome of an item that failed."""
    return Outcome(item, _FAILED, " ".join(reason.split()))


class DiskFullError(LayeredError):
    """No further result can be written, so that going on would only waste time."""


class Worker:
    """Makes items one after another with models that it loads once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.identities = Identities(dict(plan.identities))
        self.many = Many()

    def make(self, item: Item) -> Outcome:
        """Make one item, unless its result is there already. Nothing but a full disk and the user stops a batch: any
        other error is the item's.

        Raises:
            DiskFullError: the result cannot be written, nor any other.
        """
        self.many.lines.clear()
        try:
            if item.error:
                raise LayeredError(item.error)
            if item.document is not None and not item.document.is_file():
                raise LayeredError(
                    f"document {str(item.document)!r} was not found. Give the path of an existing file"
                )
            return self._make(item)
        except Exception as error:
            if _is_full(error):
                raise DiskFullError(
                    f"{item.name!r} cannot be written: the disk of {str(self.plan.out)!r} is full or read-only. Free "
                    f"some space and start the batch again: it goes on where it stopped"
                ) from error
            kind = "" if isinstance(error, (LayeredError, OSError)) else f"{type(error).__name__}: "
            reason = f"{kind}{error}"
            if _is_of_memory(error):
                self.many = Many()  # lets the models go: they are loaded anew where there is room
                reason = (
                    f"there was not enough memory. Give a smaller document, or a larger machine ({reason})"
                )
            return failed(item, reason)

    def _make(self, item: Item) -> Outcome:
        options = options_of(item.way, self.plan.common, item.words)
        recipe = recipe_of(item, options, self.identities)
        result, record = self.plan.out / item.name, self.plan.out / PRIVATE / "recipes" / f"{item.name}.json"
        if _stands(result, record, recipe):
            return Outcome(item, _KEPT)
        parts = self.plan.out / PRIVATE / "parts"
        parts.mkdir(parents=True, exist_ok=True)
        with scratch_folder(parts) as scratch:
            part, entry = scratch / f"result{result.suffix}", scratch / "recipe.json"
            try:
                self._run(item, options, part)
            except LayeredError as error:
                raise LayeredError(str(error).replace(str(part), str(result))) from error
            if recipe_of(item, options, self.identities) != recipe:
                raise LayeredError(
                    "the document or its weights changed while the result was made, which is thrown away. Start the "
                    "batch again when they are complete"
                )
            said = {"recipe": recipe, "result": _hash(part), "source": item.source}
            entry.write_text(json.dumps(said), encoding="utf-8")
            for made, path in ((part, result), (entry, record)):
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(made, path)
        return Outcome(item, _MADE, warnings=tuple(self.many.lines))

    def _run(self, item: Item, options: argparse.Namespace, part: Path) -> None:
        """Run the item's sub-command, which writes to ``part``."""
        what = {"prompt": item.prompt} if item.document is None else {"document": item.document}
        with one_of_many(self.many):
            WAYS[item.way].run(argparse.Namespace(**{**vars(options), **what}, out=part))


def _stands(result: Path, record: Path, recipe: str) -> bool:
    """Whether a result is there, whole, and was made by this recipe."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(record.read_bytes())
        return bool(said["recipe"] == recipe and said["result"] == _hash(result))
    return False


def _hash(path: Path) -> str:
    """Return the SHA-256 hash of a file, which is read: a file's times say nothing when clocks jump."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _is_of_memory(error: Exception) -> bool:
    """Whether an error says that there was not enough memory, of the GPU or of the machine: PyTorch raises plain
    ``RuntimeError`` for both."""
    told = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in told)


def _is_full(error: BaseException | None) -> bool:
    """Whether a disk without room is among the causes of an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
