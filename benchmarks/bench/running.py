"""Run a suite of the bench, and keep the record of every picture as soon as it is measured.

``layered bench layout -n 32`` reads ``suites/layout.yaml`` and writes ``results/<date>-<commit>/``:
``layout.jsonl`` (a line for each scene and method, written at once, so that an interrupted run continues
where it stopped), ``layout.json``, ``layout.md`` and plots. A second run measures only what is missing.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.bench.coco_judging import coco_examiner
from benchmarks.bench.records import Records
from benchmarks.bench.suite import COCO, Row, Settings, Suite
from benchmarks.bench.worker import Worker
from layered_core.errors import LayeredError, check_whole
from layered_diffusers.models.loading import find_model


def run_suite(suite: Suite, settings: Settings) -> list[dict[str, Any]]:
    """Measure what is missing, and return a record for every method and scene: ``name``, ``scene``,
    ``seconds`` and the entries of :meth:`Examiner.examine`.

    Raises:
        LayeredError: a results file is of other settings, a folder cannot be written, the model is
            missing, or the suite ``coco`` lacks something.
    """
    check_whole("n", settings.count, 1, 100_000)
    find_model(settings.model)
    if suite.scenes == COCO:
        coco_examiner(settings)
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


def _missing(suite: Suite, settings: Settings, records: Records) -> list[tuple[Row, list[int]]]:
    """Return the batches still to measure: all methods on some scenes, then all on the next ones, so that the
    methods' times are comparable."""
    batches = []
    for start in range(0, settings.count, suite.batch):
        for row in suite.rows:
            scenes = [
                i for i in range(start, min(start + suite.batch, settings.count)) if not records.has(row, i)
            ]
            if scenes:
                batches.append((row, scenes))
    return batches


def _measured(
    suite: Suite, settings: Settings, batches: list[tuple[Row, list[int]]]
) -> Iterator[dict[str, Any]]:
    """Measure batches in this process or in several, and yield their records."""
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
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in _work: times of one and of several processes are comparable
        try:
            worker = Worker(suite, settings)
            for row, scenes in batches:
                yield from worker.measure(row, scenes)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for group in groups.values():
        todo.put(group)
    workers = [
        context.Process(target=_work, args=(suite, settings, todo, done), daemon=True)
        for _ in range(processes)
    ]
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
                    raise LayeredError(
                        "a measuring process ended without an error, perhaps for lack of memory. Run the command "
                        "again: finished scenes are kept"
                    ) from None
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
    """End this process when the one that started it ends, for whatever reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(suite: Suite, settings: Settings, todo: Any, done: Any) -> None:
    """Measure in one process with one thread until there are no more batches."""
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
