"""``layered batch``: makes pictures of any number of documents and prompts, each once."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from layered_cli.batching import ways
from layered_cli.shared import Bar, Commands, complain, number

if TYPE_CHECKING:
    from layered_cli.batching.items import Item, Shard
    from layered_cli.batching.work import Outcome, Plan

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # told apart where it is used


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "batch",
        parents=ways.parsers(),
        conflict_handler="resolve",
        help="make pictures of many documents and prompts, each once, on one machine or many",
        description="Make a picture or layered file of every document and every prompt of a list. A result appears "
        "complete or not at all. What is made already is left alone as long as its document, its options and the "
        "weights are the same, so a batch that was stopped goes on when it is started again. What fails is written "
        "to failures.jsonl with the reason, the others are made all the same, and the exit code is 1.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="DOCS",
        help="layered files (.psd, .psb, .ora, .json), folders with such files at any depth, and lists (.jsonl) "
        'with a line such as {"document": "a.psd", "name": "a", "options": {"strength": 0.2}} or {"prompt": "a red '
        'ball", "options": {"seed": 3}} for each',
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the results; it is made if it is not there",
    )
    parser.add_argument(
        "--as",
        dest="made_as",
        choices=tuple(ways.WAYS),
        default="render",
        help="how documents are made: as by layered render or layered stage, with the same options; generate is "
        "for lists of prompts alone (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=("png", "psd", "psb", "ora"),
        help="format of the results (default: png; of stages and of generate --layers: psd)",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        default="0/1",
        help="make only the items I, I+N, I+2N … of the list, I from 0 to N-1: several machines share the work",
    )
    parser.add_argument(
        "--engine",
        choices=("here", "ray"),
        default="here",
        help="here: one item after another in this process; ray: several workers on Ray, here or on the cluster of "
        "RAY_ADDRESS, each of which is started again if it dies (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=number(1, 4096, whole=True),
        metavar="N",
        help="with --engine ray: number of workers, each with a GPU, or else its share of the cores (default: 1)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the batch; return 1 if an item failed, else 0."""
    from layered_cli.batching.items import Shard, items_of
    from layered_cli.batching.recipes import Identities
    from layered_cli.batching.work import Plan
    from layered_core.errors import LayeredError, invalid

    shard = Shard.of(options.shard)
    if options.workers is not None and options.engine != "ray":
        raise LayeredError("--workers is used with --engine ray only. Give it too, or leave --workers out")
    foreign = ways.changed(options.made_as, vars(options))
    if foreign:
        raise invalid("--as", options.made_as, f"a way that has the option {foreign[0]}")
    common = _common(options)

    def items() -> Iterator[Item]:
        return items_of(options.sources, options.made_as, options.format or "", options.layers)

    total = sum(1 for _ in items())
    if total == 0:
        raise invalid("batch", "empty", "at least one document or prompt", "The folders and lists have none")
    identities = Identities()
    identities.of_all(argparse.Namespace(**common))  # raises its errors before anything is made
    options.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(Path(os.path.abspath(options.out)), common, identities.known)
    share = (x for number, x in enumerate(items()) if shard.has(number))
    size = len(range(shard.index, total, shard.count))
    with _alone(plan.out, shard), ExitStack() as stack:
        engine = _outcomes(plan, share, options.engine, options.workers or 1)
        stack.callback(engine.close)
        return _follow(engine, plan.out / _named("failures", ".jsonl", shard), size)


def _common(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that say how items are made, with absolute paths."""
    own = ("sources", "out", "made_as", "format", "shard", "engine", "workers", "run")
    common = {k: v for k, v in vars(options).items() if k not in own}
    return {k: Path(os.path.abspath(v)) if isinstance(v, Path) else v for k, v in common.items()}


def _outcomes(plan: Plan, items: Iterator[Item], engine: str, workers: int) -> Generator[Outcome, None, None]:
    """Yield what becomes of each item."""
    if engine == "ray":
        from layered_cli.batching.ray_workers import by_ray

        yield from by_ray(plan, items, workers)
        return
    from layered_cli.batching.work import Worker

    worker = Worker(plan)
    for item in items:
        yield worker.make(item)


def _follow(outcomes: Iterator[Outcome], failures: Path, total: int) -> int:
    """Show how far a batch of ``total`` items is and write its ``failures``; return its exit code."""
    failures.unlink(missing_ok=True)
    counts = {"made": 0, "kept": 0, "failed": 0}
    processes = set()
    with Bar("batch", "item") as bar, ExitStack() as stack:
        file: TextIO | None = None
        bar.step(0, total)
        for done, outcome in enumerate(outcomes, 1):
            counts[outcome.state] += 1
            processes |= {outcome.process} if outcome.is_made else set()
            for warning in outcome.warnings:
                bar.say(warning)
            if outcome.is_failed:
                file = file or stack.enter_context(failures.open("a", encoding="utf-8"))
                line = {"source": outcome.item.source, "name": outcome.item.name, "reason": outcome.reason}
                file.write(f"{json.dumps(line)}\n")
                file.flush()
                bar.say(f"layered: {outcome.item.source}: {outcome.reason}")
            bar.step(done, total)
    by = f" (by {len(processes)} processes)" if len(processes) > 1 else ""
    sys.stdout.write(f"{counts['made']} made{by}, {counts['kept']} were there, {counts['failed']} failed\n")
    if counts["failed"]:
        complain(f"{counts['failed']} of {total} items failed; {failures} says why")
    return 1 if counts["failed"] else 0


@contextmanager
def _alone(out: Path, shard: Shard) -> Iterator[None]:
    """Hold the lock of a share of a folder; the system gives it back however this process ends.

    Raises:
        LayeredError: another batch holds it.
    """
    from layered_core.errors import LayeredError

    folder = out / ".layered"
    folder.mkdir(exist_ok=True)
    with (folder / _named("lock", "", shard)).open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LayeredError(
                    f"another batch writes the same items into {str(out)!r}. Wait for it, or give another --out"
                ) from None
            except OSError:  # a file system without locks: renaming keeps every result whole there, too
                pass
        yield


def _named(name: str, ending: str, shard: Shard) -> str:
    """Return the name of a file of which every share of a batch has its own."""
    return f"{name}{'' if shard.count == 1 else f'-{shard.index}-of-{shard.count}'}{ending}"
