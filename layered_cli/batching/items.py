"""The items of a batch: what is made of which document or prompt, and under which name. They are read one at a time,
so that a list may be of any length."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from layered_cli.batching.ways import WAYS
from layered_core.errors import LayeredError, invalid

LIST = ".jsonl"
DOCUMENTS = (".psd", ".psb", ".ora", ".json")
FORMATS = ("png", "psd", "psb", "ora")
KEYS = ("document", "prompt", "name", "as", "format", "options")
MOST = 2**20
"""Bytes of a line of a list."""


@dataclass(frozen=True)
class Item:
    """One thing to be made."""

    source: str
    """Where it comes from, for people: a document's path, or a list and the line in it."""

    name: str = ""
    """Path of the result in the batch's folder, with its ending, parts joined by ``/``."""

    way: str = ""
    """One of :data:`~layered_cli.batching.ways.WAYS`."""

    document: Path | None = None
    """The layered file, absolute; None for a prompt."""

    prompt: str = ""
    """With ``generate``: describes the picture."""

    format: str = ""
    """Ending of the result if the item says one, of :data:`FORMATS`."""

    words: tuple[str, ...] = ()
    """Further options of this item alone, as on the command line."""

    error: str = ""
    """Why it cannot be made, found while its line was read."""


@dataclass(frozen=True)
class Shard:
    """A share of the items."""

    index: int
    """0..count-1."""

    count: int
    """Number of shares."""

    @classmethod
    def of(cls, text: str) -> Shard:
        """Return the share that a text such as ``3/16`` means.

        Raises:
            LayeredError: the text means none.
        """
        numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if numbers is None or not int(numbers[1]) < int(numbers[2]):
            raise invalid("--shard", text, "i/n with i in 0..n-1, such as 0/4, 1/4, 2/4 and 3/4")
        return cls(int(numbers[1]), int(numbers[2]))

    def has(self, number: int) -> bool:
        """Whether item ``number``, from 0, is of this share."""
        return number % self.count == self.index


def items_of(sources: Sequence[Path], way: str, ending: str, layers: bool = False) -> Iterator[Item]:
    """Yield the items of documents, folders and lists, always in the same order.

    Args:
        sources: layered files, folders with layered files at any depth, and JSON-lines lists.
        way: how documents are made, one of :data:`~layered_cli.batching.ways.WAYS`.
        ending: format of what ``way`` makes, one of :data:`FORMATS`; empty: the way's own.
        layers: whether ``generate`` makes layers.

    Raises:
        LayeredError: a source is nothing of all this, or a list cannot be read. Faults of an item are in its
            ``error``.
    """
    seen: set[int] = set()
    for source in sources:
        for item in _of(Path(source).expanduser(), way):
            try:
                yield _unlike(_named(item, way, ending, layers), seen)
            except LayeredError as error:
                yield replace(item, name="", error=str(error))


def _unlike(item: Item, seen: set[int]) -> Item:
    """Return the item; if one before it has the same name, its fault is that."""
    if item.error:
        return item
    # Eight bytes a name instead of the names: 100,000 take 8 MB. Folders of some systems ignore case.
    mark = int.from_bytes(hashlib.blake2b(os.fsencode(item.name.casefold()), digest_size=8).digest(), "big")
    if mark in seen:
        raise LayeredError(
            f"its result would be {item.name!r}, as of an item before it. Give it another 'name' in a {LIST} list"
        )
    seen.add(mark)
    return item


def _of(source: Path, way: str) -> Iterator[Item]:
    if source.suffix.lower() == LIST:
        yield from _of_list(source, way)
    elif os.path.isdir(source):
        if os.path.isfile(source / "document.json"):
            yield _document(source / "document.json", way)
        else:
            yield from _of_folder(source, way, ())
    elif source.suffix.lower() in DOCUMENTS:
        yield _document(source, way)
    else:
        raise invalid(
            "batch of documents",
            str(source),
            f"files that end in {', '.join(DOCUMENTS)}, folders with such files, and lists that end in {LIST}",
        )


def _of_folder(folder: Path, way: str, above: tuple[str, ...]) -> Iterator[Item]:
    """Yield the documents in a folder and the folders in it; ``above`` are the folders' names."""
    with os.scandir(folder) as entries:
        names = sorted(x.name for x in entries if not x.name.startswith("."))
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            if (path / "document.json").is_file():
                yield replace(_document(path / "document.json", way), name="/".join((*above, name)))
            else:
                yield from _of_folder(path, way, (*above, name))
        elif path.suffix.lower() in DOCUMENTS:
            yield replace(_document(path, way), name="/".join((*above, path.stem)))


def _document(path: Path, way: str) -> Item:
    path = Path(os.path.abspath(path))
    name = path.parent.name if path.name == "document.json" else path.stem
    return Item(str(path), name, way, path)


def _of_list(source: Path, way: str) -> Iterator[Item]:
    try:
        file = source.open("rb")
    except OSError as error:
        raise LayeredError(f"list {str(source)!r} cannot be read: {error.strerror}") from None
    with file:
        number = 0
        while line := file.readline(MOST + 1):
            number += 1
            where = f"{source} line {number}"
            if len(line) > MOST:
                yield Item(where, error=f"the line is longer than {MOST:,} bytes")
                while line and not line.endswith(b"\n"):
                    line = file.readline(MOST)
            elif line.strip():
                try:
                    yield _of_line(line, where, source, number, way)
                except LayeredError as error:
                    yield Item(where, error=str(error))


def _of_line(line: bytes, where: str, source: Path, number: int, way: str) -> Item:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LayeredError(f"the line is no JSON: {error}") from None
    if not isinstance(said, dict) or set(said) - set(KEYS) or ("document" in said) == ("prompt" in said):
        raise invalid(
            "the line",
            said,
            f"an object with 'document' or 'prompt', and of {', '.join(KEYS[2:])} what is needed",
        )
    for key in KEYS[:-1]:
        if key in said and not isinstance(said[key], str):
            raise invalid(key, said[key], "a text")
    words = tuple(_words(said.get("options", {})))
    if "prompt" in said:
        if said.get("as", "generate") != "generate":
            raise invalid("as", said["as"], "generate, for a prompt")
        item = Item(where, f"{source.stem}-{number:06}", "generate", prompt=said["prompt"], words=words)
    else:
        if said.get("as", way) not in WAYS:
            raise invalid("as", said["as"], "render or stage, for a document")
        path = source.parent / said["document"]
        path = path / "document.json" if path.suffix.lower() not in DOCUMENTS else path
        item = replace(_document(path, said.get("as", way)), source=where, words=words)
    return replace(item, name=said.get("name", item.name), format=said.get("format", ""))


def _words(options: object) -> Iterator[str]:
    """Yield the words of the command line that mean the ``options`` of a line."""
    if not isinstance(options, Mapping):
        raise invalid("options", options, 'an object, such as {"strength": 0.2, "per-layer": true}')
    for name, value in options.items():
        if not re.fullmatch("[a-z]+(-[a-z]+)*", name):
            raise invalid("options: name", name, "an option's name without the dashes in front")
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                yield f"--{name}"
            elif isinstance(one, (str, int, float)) and one is not False:
                yield f"--{name}={one}"
            elif one is not None and one is not False:
                raise invalid(
                    f"options: {name}", one, "a text, a number, true, false, null, or a list of them"
                )


def _named(item: Item, way: str, ending: str, layers: bool) -> Item:
    """Return the item with the ending of its result in its name; the other arguments are those of
    :func:`items_of`."""
    if item.error:
        return item
    if item.document is not None and item.way == "generate":
        raise invalid("--as", item.way, "render or stage, for a document")
    check_name(item.name)
    makes_layers = item.way == "generate" and (layers or "--layers" in item.words)
    own = "psd" if item.way == "stage" or makes_layers else "png"
    ending = item.format or (ending if item.way == way else "") or own
    if ending not in FORMATS:
        raise invalid("format", ending, ", ".join(FORMATS))
    return replace(item, name=f"{item.name}.{ending}")


def check_name(name: str) -> None:
    """Raise :class:`LayeredError` unless ``name`` is a path within the batch's folder."""
    parts = name.split("/")
    is_plain = all(x and not x.startswith(".") for x in parts) and not re.search(r"[\\\x00-\x1f]", name)
    with suppress(UnicodeEncodeError):
        os.fsencode(name)
        if is_plain and len(parts) <= 16:
            return
    raise invalid(
        "name", name, "a path within --out: up to 16 names joined by /, none of which begins with a dot"
    )
