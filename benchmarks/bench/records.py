"""The results file of a run of the bench: a line of JSON for each picture, from which an interrupted run
continues."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.coco_files import annotations_checksum
from benchmarks.bench.suite import COCO, Row, Settings, Suite, coco_settings
from demo.world.places import MODEL, TRANSFORMER
from layered_core.errors import LayeredError
from layered_diffusers.models.loading import find_model

SHOWN = 6
"""Number of scenes whose pictures are kept for the grid."""


class Records:
    """The results file of a suite: a header, then a line for each scene and method."""

    def __init__(self, suite: Suite, settings: Settings) -> None:
        self.path = settings.out / f"{suite.name}.jsonl"
        self.suite = suite
        header = {
            "suite": suite.name, "scenes": suite.scenes, "sampler": suite.sampler, "steps": settings.steps,
            "guidance": settings.guidance,
            "weights": weights_checksum(settings.model),
            "clip": None if settings.clip is None else str(settings.clip), "commit": commit(),
        }  # fmt: skip
        if suite.scenes == COCO:
            coco = coco_settings(settings)
            header |= {
                "annotations": annotations_checksum(coco.annotations), "places": coco.places,
                "seed": coco.seed, "detector": None if coco.detector is None else str(coco.detector),
            }  # fmt: skip
        self.lines: dict[tuple[str, int], dict[str, Any]] = {}
        try:
            settings.out.mkdir(parents=True, exist_ok=True)
            if settings.fresh and self.path.exists():
                self.path.rename(
                    next(
                        p
                        for i in range(1, 10_000)
                        if not (p := self.path.with_suffix(f".old{i}.jsonl")).exists()
                    )
                )
            if self.path.exists():
                self._read(header)
            self.file = self.path.open("a", encoding="utf-8")
            if not self.path.stat().st_size:
                self._write(header)
        except OSError as error:
            what = error.strerror or str(error)
            raise LayeredError(
                f"results folder {str(settings.out)!r} cannot be written: {what}. Give another folder with --out"
            ) from None

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record and write it to disk at once."""
        self.lines[record["key"], record["scene"]] = record
        self._write(record)

    def has(self, row: Row, scene: int) -> bool:
        """Whether that scene is measured by that method."""
        return (row.key, scene) in self.lines

    def of(self, scenes: Sequence[int]) -> list[dict[str, Any]]:
        """Return the records of the suite's rows for some scenes, under the rows' present names."""
        return [{**self.lines[row.key, i], "name": row.name} for row in self.suite.rows for i in scenes]

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self.file.write(json.dumps(entry, allow_nan=False) + "\n")
        self.file.flush()

    def _read(self, header: dict[str, Any]) -> None:
        text = self.path.read_text(encoding="utf-8")
        lines = text.split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                entry = json.loads(line)
                if number > 1:
                    self.lines[entry["key"], int(entry["scene"])] = entry
                    entry["figures"], entry["matches"], entry["features"], entry["seconds"]
            except (ValueError, KeyError, TypeError):
                fix = "Delete that line (its scene is measured again), or start again with --fresh"
                raise LayeredError(
                    f"results file {str(self.path)!r}, line {number}, is broken. {fix}"
                ) from None
            if number == 1 and entry != header:
                other = ", ".join(
                    f"{k} {entry.get(k)!r} (now {v!r})" for k, v in header.items() if entry.get(k) != v
                )
                fix = "Give another folder with --out, or measure everything again with --fresh"
                raise LayeredError(f"results file {str(self.path)!r} was made with {other}. {fix}")
        if lines[-1]:
            # The run was interrupted while it wrote this line: only its scene is measured again.
            sys.stderr.write(
                f"layered: {self.path}: the last line is cut short; that scene is measured again\n"
            )
            kept = text[: len(text) - len(lines[-1])]
            with self.path.open("r+b") as file:
                file.truncate(len(kept.encode()))


def picture_path(out: Path, suite: Suite, row: Row, scene: int) -> Path:
    """Return the path of the picture of a row and scene."""
    return out / "pictures" / suite.name / slug(row.name) / f"{scene:03d}.png"


def slug(name: str) -> str:
    """Return a name in a form that file names may contain."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


def weights_checksum(model: Path) -> str:
    """Return a checksum of the model's and the judge's weights, 12 hexadecimal digits."""
    digest = hashlib.sha256()
    folder = find_model(model)
    # The storybook transformer lies in the model's folder and shares some of its parts.
    shared = [MODEL / part for part in ("text_encoder", "vae", "judge")]
    for part in [*shared, folder] if folder == TRANSFORMER else [folder]:
        for path in sorted(part.rglob("*.safetensors")):
            if part == TRANSFORMER or TRANSFORMER not in path.parents:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str:
    """Return the commit of the repository, with a + if files differ from it; ``unknown`` outside a
    repository."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "layered_core",
            "layered_diffusers",
            "demo",
            "benchmarks",
        )
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measured_at(suite: Suite, settings: Settings) -> str:
    """Return the commit at which the results of a suite were measured."""
    with (settings.out / f"{suite.name}.jsonl").open(encoding="utf-8") as file:
        return str(json.loads(file.readline())["commit"])


def default_out() -> Path:
    """Return the folder ``results/<date>-<commit>``."""
    return Path("results") / f"{datetime.date.today().isoformat()}-{commit().rstrip('+')}"
