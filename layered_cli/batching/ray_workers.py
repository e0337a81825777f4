"""Many workers of a batch on Ray Core: one actor a GPU, or a set of cores, on this machine or on a cluster."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layered_cli.batching.items import Item
from layered_cli.batching.work import Outcome, Plan, Worker, failed
from layered_core.errors import LayeredError, invalid

TRIES = 3
"""How often an item is begun whose worker dies."""

PATIENCE_S = 60.0
"""Seconds for which idle workers leave an item to one that has not started."""


def by_ray(plan: Plan, items: Iterable[Item], workers: int) -> Generator[Outcome, None, None]:
    """Make items with ``workers`` workers; yield what became of each, in the order in which they are done.

    For a worker that dies another is started, and its item is begun again, at most :data:`TRIES` times in all. If that
    one cannot start, as where its machine is gone for good, the others make its item when they have no more. With
    the environment's ``RAY_ADDRESS`` the workers run on that cluster, whose machines must see the same files;
    otherwise on this machine.

    Raises:
        LayeredError: Ray is not installed, or there are not as many GPUs or cores; or what a worker raises to stop
            the batch.
    """
    with _ray(workers) as ray:
        new_actor = _starter(ray, plan, workers)
        actors = deque(new_actor() for _ in range(workers))
        running: dict[Any, tuple[_Actor, Item, int]] = {}
        again: deque[tuple[Item, int]] = deque()
        left = iter(items)
        while True:
            while actors:
                if not again and (item := next(left, None)) is not None:
                    again.append((item, 1))
                if not again:
                    break
                item, tries = again.popleft()
                actor = actors.popleft()
                running[actor.remote.make.remote(item)] = actor, item, tries
            if not running:
                return
            finished = ray.wait(list(running), timeout=PATIENCE_S if actors else None)[0]
            if not finished and any(_has_started(ray, actor) for actor in actors):
                for reference, (actor, item, tries) in list(running.items()):
                    if not _has_started(ray, actor):
                        del running[reference]
                        ray.kill(actor.remote)
                        again.append((item, tries))
            for done in finished:
                actor, item, tries = running.pop(done)
                try:
                    outcome = ray.get(done)
                    actors.append(actor)
                    yield _told(outcome, tries)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError:
                    actors.append(new_actor())
                    if tries < TRIES:
                        again.append((item, tries + 1))
                    else:
                        yield failed(
                            item,
                            f"its worker was ended {TRIES} times while it made this, perhaps because the "
                            f"machine ran out of memory",
                        )


def _told(outcome: Outcome, tries: int) -> Outcome:
    """Return the outcome with a line about the workers that died before it."""
    if tries == 1:
        return outcome
    line = f"layered: {outcome.item.source}: begun {tries} times, since the worker at it was ended"
    return replace(outcome, warnings=(*outcome.warnings, line))


@dataclass(frozen=True)
class _Actor:
    """A worker in a process of Ray's, as the driver knows it."""

    remote: Any
    started: Any
    """Ray's reference to what is done when the worker has started."""


def _has_started(ray: Any, actor: _Actor) -> bool:
    return bool(ray.wait([actor.started], timeout=0)[0])


class _Remote(Worker):
    """A worker in a process of Ray's."""

    def __init__(self, plan: Plan, threads: int) -> None:
        import torch

        super().__init__(plan)
        os.chdir(plan.folder)
        torch.set_num_threads(threads)

    def start(self) -> None:
        """Return when the worker has started."""


def _starter(ray: Any, plan: Plan, workers: int) -> Callable[[], _Actor]:
    """Return a function that starts the actor of one of ``workers`` workers, in the background.

    Raises:
        LayeredError: there are not as many GPUs or cores.
    """
    there = ray.cluster_resources()
    cores, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    on_gpus = gpus > 0 and not str(plan.common.get("device") or "cuda").startswith("cpu")
    most, what = (gpus, "GPUs") if on_gpus else (cores, "cores")
    if workers > most:
        raise invalid("--workers", workers, f"at most {most}, since there are {most} {what}")
    share = max(1, cores // workers)
    threads = min(share, _asked_threads() or share)
    # An actor that Ray restarts refuses items until it is back; a new one lets them wait.
    actor = ray.remote(num_cpus=share, num_gpus=int(on_gpus), max_restarts=0)(_Remote)

    def new_actor() -> _Actor:
        remote = actor.remote(plan, threads)
        return _Actor(remote, remote.start.remote())

    return new_actor


def _asked_threads() -> int:
    """Return the number of threads that the environment's ``OMP_NUM_THREADS`` asks for; 0: it asks for none."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else 0


@contextmanager
def _ray(workers: int) -> Iterator[Any]:
    """Connect to Ray, or start it, for the length of a ``with`` block. It tells nobody of this, and shows no page."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's own value, 15, leaves the workers behind all else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ours = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "")
    if ours not in known.split(os.pathsep):  # workers import this very package
        os.environ["PYTHONPATH"] = os.pathsep.join(x for x in (ours, known) if x)
    try:
        import ray
    except ModuleNotFoundError:
        raise LayeredError(
            "--engine ray needs the package ray: pip install 'layered-diffusion[scale]'"
        ) from None
    try:
        _start(ray, workers)
        with redirect_stdout(sys.stderr):  # there Ray says which workers died
            yield ray
    finally:
        ray.shutdown()


def _start(ray: Any, workers: int) -> None:
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        quiet |= {
            "address": "local",
            "num_cpus": max(workers, os.cpu_count() or 1),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "object_store_memory": 80_000_000,  # paths and options are all that travels
        }
    try:
        ray.init(**quiet)
    except Exception as error:  # Ray raises plain ones, e.g. when it did not start within 30 seconds
        raise LayeredError(
            f"Ray did not start: {error}. Start the batch again, or make shares without Ray with --shard"
        ) from error
