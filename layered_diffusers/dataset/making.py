"""A folder of pictures made a data set of layered ones: deterministic, and continued where it was stopped.

In the folder that is written, ``<sha256 of a picture's file>/`` has a picture's layers (``document.json`` and PNG
files), its ``record.json`` and a ``preview.jpg``; ``rejected/<sha256>.json`` says why another is left out.
``index.jsonl`` and ``rejected.jsonl`` list both in the order of the pictures' names, ``report.html`` shows them, and
``dataset.json`` holds the settings. Every file and every picture's folder appears complete or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layered_core import __version__
from layered_core.errors import LayeredError, invalid
from layered_core.files import file_hash, read_layers
from layered_core.formats.document_json import write_document
from layered_core.formats.limits import Budget, Limits
from layered_core.formats.part_files import part_folder
from layered_core.formats.pictures import read_picture, unwritable, write_whole
from layered_core.formats.untrusted import file_inside
from layered_diffusers.dataset.filtering import Thresholds
from layered_diffusers.dataset.protocols import Picture
from layered_diffusers.dataset.providers import ROLES, Parts
from layered_diffusers.dataset.report import html, preview
from layered_diffusers.dataset.sources import Refused, Source, sources_of
from layered_diffusers.dataset.taking_apart import Apart, composite_psnr, opaque, take_apart

VERSION = 1
"""Version of the data set's layout."""

SETTINGS, INDEX, REJECTED, REPORT, RECORD = (
    "dataset.json", "index.jsonl", "rejected.jsonl", "report.html", "record.json",
)  # fmt: skip
LEFT_OUT = "rejected"
"""Name of the folder with a file for each picture that is left out."""


_OFTEN = 100
"""Number of pictures after which the lists are written again."""


class PartError(LayeredError):
    """A part failed other than by saying that it cannot do a picture, which ends the run."""


@dataclass(frozen=True, eq=False)
class Made:
    """What a run has made."""

    kept: tuple[dict[str, Any], ...]
    """The records of the pictures that were kept, by name."""
    rejected: tuple[dict[str, Any], ...]
    """``source`` and ``reason`` of the others, by name."""
    new: int
    """The number of pictures that were looked at in this run; the others had been before."""


def make_dataset(
    folder: Path,
    out: Path,
    parts: Parts,
    limits: Thresholds | None = None,
    *,
    seed: int = 0,
    licence: str = "",
    resume: bool = False,
    reading: Limits | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Made:
    """Take every picture of a folder apart and write the layers.

    Args:
        folder: the pictures, also in sub-folders.
        out: the folder to write; a new one, or with ``resume`` one that was written with the same settings.
        parts: describe, find, order and paint.
        limits: which things and pictures are kept; None: the usual ones.
        seed: the parts' seed, for the records.
        licence: the pictures' licence, for the records.
        resume: continue: pictures that were looked at before are not looked at again.
        reading: limits on the pictures' sizes; None: the usual ones.
        progress: called with the pictures that are done and all pictures.

    Raises:
        LayeredError: ``folder`` is missing, ``out`` is taken, was made with other settings, or cannot be written, or a
            part fails other than with a ``LayeredError``.
    """
    limits = limits or Thresholds()
    settings = _settings(parts, limits, seed, licence)
    _prepare(folder, out, settings, resume)
    sources, refused = sources_of(folder, out)
    lists = _Lists(refused)
    left = [(x, key) for x in sources if (key := lists.known(x, out)) is not None]
    done = 0
    try:
        for source, key in left:
            if progress is not None:
                progress(done, len(left))
            if done % _OFTEN == 0:
                _write_lists(out, lists)
            _one(source, key, out, parts, limits, settings, reading or Limits(), lists)
            done += 1
        if progress is not None and left:
            progress(done, len(left))
    finally:  # also when the user stops it: what is done is listed
        _write_lists(out, lists)
    return Made(tuple(lists.kept), tuple(lists.left_out), done)


class _Lists:
    """The records of a data set so far."""

    def __init__(self, refused: Sequence[Refused]) -> None:
        self.kept: list[dict[str, Any]] = []
        self.left_out: list[dict[str, Any]] = [x._asdict() for x in refused]
        self.names: dict[str, str] = {}
        """The name of the first picture by its hash."""

    def known(self, source: Source, out: Path) -> str | None:
        """List a picture that was looked at before, is the same as another, or cannot be read. Return the hash of any
        other."""
        try:
            key = file_hash(source.file)
        except OSError as error:
            self.leave_out(source, f"cannot be read: {error.strerror or error}")
            return None
        if key in self.names:
            self.leave_out(source, f"the same picture as {self.names[key]}")
            return None
        self.names[key] = source.name
        for file, entries in ((out / key / RECORD, self.kept), (_left_out(out, key), self.left_out)):
            if os.path.isfile(file):
                entries.append({**_read(file), "source": source.name})
                return None
        return key

    def leave_out(self, source: Source, reason: str) -> None:
        """List a picture that is not looked at."""
        self.left_out.append({"source": source.name, "reason": reason})


def _one(
    source: Source,
    key: str,
    out: Path,
    parts: Parts,
    limits: Thresholds,
    settings: Mapping[str, Any],
    reading: Limits,
    lists: _Lists,
) -> None:
    """Take one picture apart, write and list it."""
    entry: dict[str, Any] = {"source": source.name, "sha256": key}
    told: list[str] = []
    pixels = torch.empty(0)
    try:
        pixels = read_picture(source.file, Budget(reading), told)
        entry |= {"width": pixels.shape[1], "height": pixels.shape[0]}
        apart = _taken_apart(source, pixels, parts, limits)
    except PartError:
        raise
    except LayeredError as error:
        apart = Apart(None, {}, str(error).replace(str(source.file), source.name))
    entry |= {**apart.record, "told": [*told, *apart.record.get("told", [])]}
    if apart.document is None or apart.rejected:
        entry |= {"reason": apart.rejected, **settings}
        _write(_left_out(out, key), entry)
        lists.left_out.append(entry)
        return
    entry |= settings
    shown = preview(pixels, apart.document)
    try:
        with part_folder(out / key) as made:
            write_document(apart.document, made)
            _write(made / RECORD, entry)
            write_whole(made / "preview.jpg", lambda file: file.write(shown))
    except OSError as error:
        raise unwritable("folder", out / key, error) from None
    lists.kept.append(entry)


def _taken_apart(source: Source, pixels: Tensor, parts: Parts, limits: Thresholds) -> Apart:
    """Take a picture apart. An error of a part that is no ``LayeredError`` ends the run and names the picture."""
    try:
        return take_apart(pixels, parts, limits, Picture(opaque(pixels), source.file))
    except LayeredError:
        raise
    except Exception as error:
        names = ", ".join(f"{role} {parts.about.get(role, {}).get('name', '?')}" for role in ROLES)
        raise PartError(
            f"picture {source.name!r}: {type(error).__name__}: {error} (in one of {names}). Everything before it is "
            f"kept; mend the part, or move the picture away, and go on with --resume"
        ) from error


def _settings(parts: Parts, limits: Thresholds, seed: int, licence: str) -> dict[str, Any]:
    return {
        "providers": {k: dict(v) for k, v in parts.about.items()}, "thresholds": limits.entries(), "seed": seed,
        "licence": licence, "layered": __version__,
    }  # fmt: skip


def _prepare(folder: Path, out: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Make the folder to write, or check that it can be continued."""
    if not os.path.isdir(folder):
        raise invalid("folder", str(folder), "an existing folder")
    if os.path.isdir(out) and os.path.samefile(folder, out):
        raise invalid("output folder", str(out), "another folder than that of the pictures")
    file, wanted = out / SETTINGS, {"version": VERSION, **settings}
    if os.path.isfile(file):
        if not resume:
            raise invalid("output folder", str(out), "a new folder", "Give --resume to go on with this one")
        made = _read(file)
        other = [k for k in {**wanted, **made} if made.get(k) != wanted.get(k)]
        if other:
            changes = "; ".join(_change(made, wanted, k) for k in other)
            raise LayeredError(
                f"output folder {str(out)!r} was made with other settings: {changes}. Give the same ones, or a new "
                f"folder"
            )
        return
    if os.path.lexists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise invalid(
            "output folder", str(out), "a new or empty folder, or one of this command with --resume"
        )
    try:
        (out / LEFT_OUT).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable("folder", out, error) from None
    _write(file, wanted)


def _change(made: Mapping[str, Any], wanted: Mapping[str, Any], key: str) -> str:
    """Say how a setting differs, and of several numbers or names only those that do."""
    old, new = made.get(key), wanted.get(key)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return ", ".join(_change(old, new, k) for k in {**old, **new} if old.get(k) != new.get(k))
    return f"{key} was {old!r} and is {new!r}"


def _write_lists(out: Path, lists: _Lists) -> None:
    """Write the lists and the report of what is done."""
    lists.kept.sort(key=lambda x: x["source"])
    lists.left_out.sort(key=lambda x: x["source"])
    for name, entries in ((INDEX, lists.kept), (REJECTED, lists.left_out)):
        lines = "".join(_json(x) + "\n" for x in entries)
        _write_text(out / name, lines)
    _write_text(out / REPORT, html(lists.kept, lists.left_out))


def check_dataset(
    out: Path,
    folder: Path,
    reading: Limits | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[tuple[str, str]]:
    """Read a data set again, and return the names of the pictures with which something is wrong, and what: the layers
    cannot be read, are not the record's, or do not give the picture in ``folder``. A picture that is no longer there,
    or another by now, is not compared.

    Raises:
        LayeredError: the folder is no data set.
    """
    index = out / INDEX
    if not os.path.isfile(index):
        raise invalid("data set", str(out), f"a folder with {INDEX}, as 'layered dataset' writes it")
    wrong = []
    lines = index.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if progress is not None:
            progress(number, len(lines))
        name = f"{INDEX}, line {number + 1}"
        try:
            entry = json.loads(line)
            name = str(entry["source"])
            reason = _wrong_with(entry, out, folder, reading)
        except LayeredError as error:
            reason = str(error)
        except (ValueError, LookupError, TypeError) as error:
            reason = f"the record is broken: {error}"
        if reason:
            wrong.append((name, reason))
    return wrong


def _wrong_with(entry: Mapping[str, Any], out: Path, folder: Path, reading: Limits | None) -> str:
    """Return what is wrong with a record's layers; empty if nothing is."""
    document = read_layers(out / str(entry["sha256"]) / "document.json", reading).document
    if (document.width, document.height) != (entry["width"], entry["height"]):
        return f"the layers' canvas is {document.width}x{document.height}, which is not the picture's size"
    if [x.name for x in document][1:] != [x["name"] for x in entry["layers"]]:
        return "the layers are not those of the record"
    source = file_inside(folder, str(entry["source"]))
    if source is None or not os.path.isfile(source) or file_hash(source) != entry["sha256"]:
        return ""
    likeness = composite_psnr(document, read_picture(source, Budget(reading or Limits())))
    least = float(entry["thresholds"]["psnr"])
    if likeness is not None and likeness < least:
        return f"the layers give another picture: {likeness:.1f} dB, and {least:g} are wanted"
    return ""


def _left_out(out: Path, key: str) -> Path:
    return out / LEFT_OUT / f"{key}.json"


def _json(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False)


def _write(path: Path, entry: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(entry, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def _read(path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LayeredError(
            f"file {str(path)!r} cannot be read: {error}. Remove it, and make it anew"
        ) from None
    if not isinstance(entry, dict):
        raise invalid(f"file {str(path)!r}", entry, "a JSON object", "Remove it, and make it anew")
    return entry
