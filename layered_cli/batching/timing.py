"""Time batches beside a plain loop; ``python -m benchmarks.batch`` runs this in a process of its own and explains the
figures."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from time import perf_counter

import torch

from demo.world.scenes import random_scene
from layered_cli.batching.items import Item, items_of
from layered_cli.batching.ray_workers import by_ray
from layered_cli.batching.ways import options_of
from layered_cli.batching.work import Plan, Worker
from layered_cli.command import parser
from layered_core.formats.document_json import write_document


class Timed(Worker):
    """A worker that notes how long it renders, seconds."""

    rendering = 0.0

    def _run(self, item: Item, options: argparse.Namespace, part: Path) -> None:
        begin = perf_counter()
        super()._run(item, options, part)
        self.rendering += perf_counter() - begin


def rate(moments: list[tuple[float, int]]) -> float:
    """Return the items a second while all workers work: from where each has done one to where the first finds no other.
    ``moments`` says when each item was done, seconds, and by which process."""
    first: dict[int, int] = {}
    for number, (_, process) in enumerate(moments):
        first.setdefault(process, number)
    begin, end = max(first.values()), len(moments) - len(first)
    return (end - begin) / (moments[end][0] - moments[begin][0])


def loop(items: list[Item], plan: Plan) -> float:
    """Return the documents a second of a plain loop."""
    worker, begin = Worker(plan), 0.0
    for number, item in enumerate(items):
        worker._run(item, options_of(item.way, plan.common, ()), plan.out / f"{number}.png")
        begin = begin or perf_counter()  # the first loads the model
    return (len(items) - 1) / (perf_counter() - begin)


def on_ray(plan: Plan, items: list[Item], workers: int) -> tuple[float, list[tuple[float, int]]]:
    """Return when a batch on Ray was begun, and the moments of its items for :func:`rate`."""
    begin = perf_counter()
    with closing(by_ray(plan, items, workers)) as outcomes:
        moments = []
        for outcome in outcomes:
            if outcome.is_failed:
                raise RuntimeError(outcome.reason)
            moments.append((perf_counter(), outcome.process))
    return begin, moments


def measure(number: int, steps: int, folder: Path) -> dict[str, float]:
    """Return the figures."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers on Ray
    (folder / "scenes").mkdir()
    for seed in range(number):
        write_document(random_scene(seed, count=3).document(), folder / "scenes" / f"{seed:04}")
    words = ["batch", str(folder / "scenes"), "--out", "x", "--steps", str(steps), "--device", "cpu"]
    common = vars(parser().parse_args(words))
    items = list(items_of([folder / "scenes"], "render", ""))

    def plan(name: str) -> Plan:
        (folder / name).mkdir()
        return Plan(folder / name, common)

    before = loop(items, plan("loop"))
    figures: dict[str, float] = {}
    here = plan("here")
    worker, begin, first = Timed(here), perf_counter(), 0.0
    for item in items:
        worker.make(item)
        first = first or perf_counter() - begin
    whole = perf_counter() - begin
    figures |= {"overhead_item_s": (whole - worker.rendering) / number, "first_s": first}
    begin = perf_counter()
    assert not any(worker.make(item).is_made for item in items)
    figures["kept_item_s"] = (perf_counter() - begin) / number
    rates = {}
    for workers in (1, 2):
        there = plan(f"ray{workers}")
        begin, moments = on_ray(there, items, workers)
        rates[workers] = rate(moments)
        if workers == 1:
            figures["ray_first_s"] = moments[0][0] - begin
            figures["ray_kept_item_s"] = 1 / rate(on_ray(there, items, 1)[1])
    # A machine's speed changes within minutes: the loop runs before and after what is compared with it.
    serial = [before, loop(items, plan("again"))]
    figures |= {"serial_per_s": sum(serial) / 2, "serial_spread": abs(serial[1] - serial[0]) / sum(serial)}
    figures |= {f"scaling_{workers}": each / figures["serial_per_s"] for workers, each in rates.items()}
    pictures = {
        name: [(folder / name / x.name).read_bytes() for x in items] for name in ("here", "ray1", "ray2")
    }
    figures["same_bytes"] = float(pictures["here"] == pictures["ray1"] == pictures["ray2"])
    return figures


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = measure(int(sys.argv[1]), int(sys.argv[2]), Path(folder))
    sys.stdout.write(f"{json.dumps(found)}\n")
