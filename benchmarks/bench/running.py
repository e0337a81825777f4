"""The storybook bench: run a suite, keep every scene as soon as it is measured, count figures with intervals.

``layered bench layout -n 32`` reads ``suites/layout.yaml`` and writes ``results/<date>-<commit>/``: ``layout.jsonl`` (a line a scene and
method, written at once, so that an interrupted run goes on where it was), ``layout.json``, ``layout.md`` and plots. Run again, it measures
only what is missing.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import multiprocessing
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.bench.judging import FIGURES, Examiner
from benchmarks.bench.methods import METHODS, check_method
from benchmarks.bench.scenes import CASES, Case
from layered_core.errors import LayeredError, check_whole, invalid
from layered_core.formats.pictures import write_picture
from layered_diffusers.models.loading import SAMPLERS, find_model
from layered_diffusers.pipeline import LayeredDiffusionPipeline

SUITES = Path(__file__).parents[1] / "suites"
SHOWN = 6
"""Scenes of which the pictures are kept for the grid."""

_SUITE_KEYS = {"title", "about", "scenes", "batch", "processes", "show", "plots", "curve", "grid", "host", "sampler", "methods"}
_ROW_KEYS = {"name", "method", "parameters", "baseline", "family"}


@dataclass(frozen=True)
class Row:
    """One method of a suite with its parameters."""

    name: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    """Name of the row it is compared with; None for no comparison."""
    family: str | None = None
    """Rows of one family are joined in the curve."""

    @property
    def key(self) -> str:
        """What its results are known by: other parameters are other results."""
        return json.dumps([self.method, self.parameters], sort_keys=True)


@dataclass(frozen=True)
class Suite:
    """What is measured together."""

    name: str
    title: str
    about: str
    scenes: str
    rows: tuple[Row, ...]
    show: tuple[str, ...]
    """Figures of the table, see ``judging.FIGURES``."""
    plots: tuple[str, ...] = ()
    curve: dict[str, str] | None = None
    """``x`` and ``y``: two figures drawn against each other, by family."""
    grid: tuple[str, ...] = ()
    """Rows whose pictures are shown."""
    batch: int = 8
    processes: int | None = None
    host: str = "diffusers"
    """``diffusers`` or ``comfyui``."""
    sampler: str | None = None
    """One of ``layered_diffusers.models.loading.SAMPLERS`` for every method, the same name in ComfyUI; None for the model's own, there Euler."""


@dataclass(frozen=True)
class Settings:
    """How a suite is run."""

    count: int
    """Scenes."""
    model: Path
    out: Path
    steps: int = 25
    guidance: float = 3.0
    device: str | None = None
    clip: Path | None = None
    processes: int = 2
    fresh: bool = False
    """Put old results of the suite aside and measure all anew."""


def suite_names() -> list[str]:
    """Suites there are."""
    return sorted(p.stem for p in SUITES.glob("*.yaml"))


def read_suite(name: str, folder: Path = SUITES) -> Suite:
    """Read and check ``<folder>/<name>.yaml``.

    Raises:
        LayeredError: there is no such suite, or it names what is not there.
    """
    import yaml

    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise invalid("suite", name, ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none: no suite is installed")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise LayeredError(f"suite {str(path)!r} is not YAML: {error}") from None
    where = f"suite {name}"
    _check_keys(where, entries, _SUITE_KEYS, {"scenes", "show", "methods"})
    if entries["scenes"] not in CASES:
        raise invalid(f"{where}: scenes", entries["scenes"], ", ".join(CASES))
    host = entries.get("host", "diffusers")
    sampler = entries.get("sampler")
    if sampler is not None and sampler not in SAMPLERS:
        raise invalid(f"{where}: sampler", sampler, ", ".join(SAMPLERS))
    rows = []
    if not isinstance(entries["methods"], list) or not entries["methods"]:
        raise invalid(f"{where}: methods", entries["methods"], "a list of name, method, parameters, baseline")
    for number, entry in enumerate(entries["methods"], 1):
        _check_keys(f"{where}: entry {number}", entry, _ROW_KEYS, {"name", "method"})
        row = Row(**{**entry, "name": str(entry["name"]), "parameters": entry.get("parameters") or {}})
        if not isinstance(row.parameters, dict):
            raise invalid(f"{where}: {row.name!r}: parameters", row.parameters, "a mapping")
        if host == "comfyui":
            from benchmarks.bench.comfyui import check_method as check_host_method

            check_host_method(f"{where}: {row.name!r}", row.method, row.parameters)
        else:
            check_method(f"{where}: {row.name!r}", row.method, row.parameters)
        rows.append(row)
    names = [r.name for r in rows]
    for what in names:
        if names.count(what) > 1:
            raise invalid(f"{where}: name", what, "names that occur once")
    for what in (*[r.baseline for r in rows if r.baseline is not None], *entries.get("grid", ())):
        if what not in names:
            raise invalid(f"{where}: baseline or grid", what, ", ".join(names))
    curve = entries.get("curve")
    for what in (*entries["show"], *entries.get("plots", ()), *(curve.values() if curve else ())):
        if what not in FIGURES:
            raise invalid(f"{where}: figure", what, ", ".join(FIGURES))
    return Suite(
        name, entries.get("title", name), " ".join(entries.get("about", "").split()), entries["scenes"], tuple(rows), tuple(entries["show"]),
        tuple(entries.get("plots", ())), curve, tuple(entries.get("grid", ())), entries.get("batch", 8), entries.get("processes"), host, sampler,
    )  # fmt: skip


def run_suite(suite: Suite, settings: Settings) -> list[dict[str, Any]]:
    """Measure what is missing; returns a record for every method and scene: ``name``, ``scene``, ``seconds``, and what the examiner keeps.

    Raises:
        LayeredError: a results file that does not fit, a folder that cannot be written, a missing model.
    """
    check_whole("n", settings.count, 1, 100_000)
    find_model(settings.model)
    records = Records(suite, settings)
    batches = _missing(suite, settings, records)
    total = sum(len(scenes) for _, scenes in batches)
    try:
        with tqdm(total=total, desc=suite.name, unit="picture", file=sys.stderr, disable=not total) as bar:
            for record in _measured(suite, settings, batches):
                records.add(record)
                bar.update()
    finally:
        records.close()
    return records.of(range(settings.count))


class Records:
    """The results file of a suite: a header, then a line a scene and method."""

    def __init__(self, suite: Suite, settings: Settings) -> None:
        self.path = settings.out / f"{suite.name}.jsonl"
        self.suite = suite
        header = {
            "suite": suite.name, "scenes": suite.scenes, "sampler": suite.sampler, "steps": settings.steps, "guidance": settings.guidance,
            "weights": weights_checksum(settings.model), "clip": None if settings.clip is None else str(settings.clip), "commit": commit(),
        }  # fmt: skip
        self.lines: dict[tuple[str, int], dict[str, Any]] = {}
        try:
            settings.out.mkdir(parents=True, exist_ok=True)
            if settings.fresh and self.path.exists():
                self.path.rename(next(p for i in range(1, 10_000) if not (p := self.path.with_suffix(f".old{i}.jsonl")).exists()))
            if self.path.exists():
                self._read(header)
            self.file = self.path.open("a", encoding="utf-8")
            if not self.path.stat().st_size:
                self._write(header)
        except OSError as error:
            what = error.strerror or str(error)
            raise LayeredError(f"results folder {str(settings.out)!r} cannot be written: {what}. Give another with --out") from None

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record, on disk at once."""
        self.lines[record["key"], record["scene"]] = record
        self._write(record)

    def has(self, row: Row, scene: int) -> bool:
        """Whether that is measured."""
        return (row.key, scene) in self.lines

    def of(self, scenes: Sequence[int]) -> list[dict[str, Any]]:
        """The records of the suite's rows, under their present names."""
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
                fix = "Delete that line (its scene is measured again), or start anew with --fresh"
                raise LayeredError(f"results file {str(self.path)!r}, line {number}, is broken. {fix}") from None
            if number == 1 and entry != header:
                other = ", ".join(f"{k} {entry.get(k)!r} (now {v!r})" for k, v in header.items() if entry.get(k) != v)
                fix = "Give another folder with --out, or --fresh to measure anew"
                raise LayeredError(f"results file {str(self.path)!r} was made with {other}. {fix}")
        if lines[-1]:
            # Cut short while it was written: that scene is measured again, all others stay.
            sys.stderr.write(f"layered: {self.path}: the last line is cut short; that scene is measured again\n")
            kept = text[: len(text) - len(lines[-1])]
            with self.path.open("r+b") as file:
                file.truncate(len(kept.encode()))


class Worker:
    """What one process needs to measure."""

    def __init__(self, suite: Suite, settings: Settings) -> None:
        self.suite, self.settings = suite, settings
        self.pipeline = LayeredDiffusionPipeline.from_pretrained(settings.model, device=settings.device, sampler=suite.sampler)
        self.examiner = Examiner(find_model(settings.model), settings.clip)
        self.cases: list[Case] = CASES[suite.scenes](settings.count)

    def measure(self, row: Row, scenes: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Make and judge the pictures of some scenes; seeds are the scenes' numbers."""
        cases = [self.cases[i] for i in scenes]
        began = time.perf_counter()
        pictures = METHODS[row.method](
            self.pipeline, cases, seeds=list(scenes), steps=self.settings.steps, guidance=self.settings.guidance, **row.parameters
        )
        seconds = (time.perf_counter() - began) / len(cases)
        yield from self.judged(row, scenes, pictures, seconds)

    def judged(self, row: Row, scenes: Sequence[int], pictures: torch.Tensor, seconds: float) -> Iterator[dict[str, Any]]:
        """The records of finished pictures; those of the first scenes are kept on disk."""
        for scene, picture, kept in zip(scenes, pictures, self.examiner.examine([self.cases[i] for i in scenes], pictures), strict=True):
            if scene < SHOWN:
                path = picture_path(self.settings.out, self.suite, row, scene)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_picture(picture.permute(1, 2, 0), path)
            yield {"key": row.key, "scene": scene, "seconds": round(seconds, 5), **kept}


def picture_path(out: Path, suite: Suite, row: Row, scene: int) -> Path:
    """Where the picture of a row and scene is kept."""
    return out / "pictures" / suite.name / slug(row.name) / f"{scene:03d}.png"


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


def weights_checksum(model: Path) -> str:
    """Of the model's and the judge's weights, 12 digits."""
    digest = hashlib.sha256()
    for path in sorted(find_model(model).rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str:
    """The commit of the repository, with a + where files differ from it; ``unknown`` outside of one."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "layered_core", "layered_diffusers", "demo", "benchmarks")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measured_at(suite: Suite, settings: Settings) -> str:
    """The commit that the results of a suite were measured at."""
    with (settings.out / f"{suite.name}.jsonl").open(encoding="utf-8") as file:
        return str(json.loads(file.readline())["commit"])


def default_out() -> Path:
    """``results/<date>-<commit>``."""
    return Path("results") / f"{datetime.date.today().isoformat()}-{commit().rstrip('+')}"


def _check_keys(where: str, entry: object, allowed: set[str], needed: set[str]) -> None:
    if not isinstance(entry, dict):
        raise invalid(where, entry, f"a mapping with {', '.join(sorted(needed))}")
    for key in entry:
        if key not in allowed:
            raise invalid(f"{where}: key", key, ", ".join(sorted(allowed)))
    for key in sorted(needed):
        if key not in entry:
            raise LayeredError(f"{where}: {key} is missing")


def _missing(suite: Suite, settings: Settings, records: Records) -> list[tuple[Row, list[int]]]:
    """What is still to measure: all methods on some scenes, then all on the next, so that their times are comparable."""
    batches = []
    for start in range(0, settings.count, suite.batch):
        for row in suite.rows:
            scenes = [i for i in range(start, min(start + suite.batch, settings.count)) if not records.has(row, i)]
            if scenes:
                batches.append((row, scenes))
    return batches


def _measured(suite: Suite, settings: Settings, batches: list[tuple[Row, list[int]]]) -> Iterator[dict[str, Any]]:
    """Measure in this process or in several."""
    if not batches:
        return
    if suite.host == "comfyui":
        from benchmarks.bench.comfyui import measured

        yield from measured(Worker(suite, settings), batches)
        return
    groups: dict[int, list[tuple[Row, list[int]]]] = {}
    for row, scenes in batches:
        groups.setdefault(scenes[0] // suite.batch, []).append((row, scenes))
    processes = min(suite.processes or settings.processes, len(groups))
    if processes == 1:
        worker = Worker(suite, settings)
        for row, scenes in batches:
            yield from worker.measure(row, scenes)
        return
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for group in groups.values():
        todo.put(group)
    workers = [context.Process(target=_work, args=(suite, settings, todo, done), daemon=True) for _ in range(processes)]
    for worker_process in workers:
        todo.put(None)
        worker_process.start()
    try:
        running = processes
        while running:
            try:
                record = done.get(timeout=2)
            except queue.Empty:
                if not any(w.is_alive() for w in workers):
                    raise LayeredError("a measuring process died (out of memory?). Run the command again: finished scenes are kept") from None
                continue
            if record is None:
                running -= 1
            elif "error" in record:
                raise LayeredError(record["error"])
            else:
                yield record
    finally:
        for worker_process in workers:
            worker_process.terminate()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(suite: Suite, settings: Settings, todo: Any, done: Any) -> None:  # noqa: ANN401
    """One process: one thread, batches until there are none."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        worker = Worker(suite, settings)
        while (group := todo.get()) is not None:
            for row, scenes in group:
                for record in worker.measure(row, scenes):
                    done.put(record)
        done.put(None)
    except KeyboardInterrupt:
        pass
    except LayeredError as error:
        done.put({"error": str(error)})
    except Exception as error:
        done.put({"error": f"suite {suite.name}: {type(error).__name__}: {error}"})
        raise
