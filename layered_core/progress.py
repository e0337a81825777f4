"""Tell the host how far long work is, and let it stop the work.

The core knows no host. A host that shows progress, or that lets people cancel a run, calls the core inside
:func:`reporting`; the core calls :func:`step` between the pieces of long work, and the host's function may raise an
exception to stop it there. That must not be a subclass of ``Exception``, just as ``KeyboardInterrupt`` is none: some
readers turn every ``Exception`` into an error about the file.

>>> from layered_core.progress import reporting, steps
>>> with reporting(lambda done, total: print(f"{done} of {total}")):
...     squares = [n * n for n in steps([1, 2])]
0 of 2
1 of 2
2 of 2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import IO, Any, BinaryIO, TypeVar, cast

from torch import Tensor

Report = Callable[[int, int], object]
"""A function of the host: how many pieces are done, and how many there are. The next work starts at 0 again."""

PIECE = 2**20
"""Bytes of a file that are read, written or hashed between two calls of :func:`step`."""

T = TypeVar("T")


class _Work:
    """The work of one host: whom to tell, and what it was told last."""

    def __init__(self, report: Report) -> None:
        self.report, self.last = report, (0, 1)
        self.outer = 0, 1
        """The piece of the work around, of how many, within which :func:`step` counts: see :func:`part`."""


_work: ContextVar[_Work | None] = ContextVar("work", default=None)


@contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Let ``report`` be called between the pieces of the work in this block, in the thread that runs it."""
    before = _work.set(_Work(report))
    try:
        yield
    finally:
        _work.reset(before)


def step(done: int, total: int) -> None:
    """Report that ``done`` of ``total`` pieces are done. Raises what the host raises to stop the work."""
    work = _work.get()
    if work is not None:
        before, pieces_around = work.outer
        work.last = before * total + done, pieces_around * total
        work.report(*work.last)


@contextmanager
def part(done: int, total: int) -> Iterator[None]:
    """Let the work in this block, however it counts its own pieces, be piece number ``done``, from 0, of ``total``:
    what is reported then never falls back to 0."""
    work = _work.get()
    if work is None:
        yield
        return
    around = work.outer
    work.outer = around[0] * total + done, around[1] * total
    try:
        yield
    finally:
        work.outer = around


def pause() -> None:
    """Report again what was reported last: a place inside a long piece where the host may stop the work."""
    work = _work.get()
    if work is not None:
        work.report(*work.last)


def steps(items: Sequence[T]) -> Iterator[T]:
    """Yield the items, and report before each and after the last. Work on an item counts as its part."""
    for done, item in enumerate(items):
        step(done, len(items))
        with part(done, len(items)):
            yield item
    step(len(items), len(items))


def row_bands(height: int, width: int, channels: int = 1, values: int = 2**24) -> list[slice]:
    """Return slices that cut ``height`` rows of ``width`` pixels into bands of about ``values`` numbers, at least one
    row each; work done band by band needs little memory and can be stopped between two bands."""
    rows = max(1, values // max(1, width * channels))
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def by_rows(function: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Return ``function(pixels)``, computed in bands of rows of ``pixels`` ``[H, W, ...]``; the function must keep the
    number of rows and compute each of them alone."""
    bands = row_bands(len(pixels), pixels[:1].numel())
    if len(bands) < 2:
        return function(pixels)
    first = function(pixels[bands[0]])
    out = first.new_empty(len(pixels), *first.shape[1:])
    out[bands[0]] = first
    for rows in steps(bands[1:]):
        out[rows] = function(pixels[rows])
    return out


def watched(file: BinaryIO, total: int = 0) -> BinaryIO:
    """Return an open file that calls :func:`step` while it is read or written: every :data:`PIECE` bytes, and ten
    times a second. ``total`` is the number of bytes to expect, 0 if that is not known."""
    return cast(BinaryIO, _Watched(file, total))


def read_all(file: IO[bytes], most: int) -> bytes:
    """Read at most ``most`` bytes of a file, in pieces."""
    pieces = []
    while most > 0 and (piece := file.read(min(most, 16 * PIECE))):
        pieces.append(piece)
        most -= len(piece)
        pause()
    return b"".join(pieces)


def pieces(data: Any) -> Iterator[memoryview]:
    """Yield the bytes of data that lie in one piece, 16 MiB at a time; the host may stop the work between them."""
    view = memoryview(data).cast("B")
    for start in range(0, len(view), 16 * PIECE):
        pause()
        yield view[start : start + 16 * PIECE]


class _Watched:
    def __init__(self, file: BinaryIO, total: int) -> None:
        self._file, self._total = file, total
        self._done = self._told = 0
        self._when = monotonic()

    def read(self, *size: int) -> bytes:
        data = self._file.read(*size)
        self._count(len(data))
        return data

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE):
            self._file.write(view[start : start + PIECE])
            self._count(min(PIECE, len(view) - start))
        return len(view)

    def _count(self, size: int) -> None:
        self._done += size
        now = monotonic()
        if self._done - self._told >= PIECE or now - self._when >= 0.1:
            self._told, self._when = self._done, now
            step(self._done, max(self._total, self._done + PIECE))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
