"""Files and folders under a temporary name, which get their own name when they are complete.

A process that is killed leaves its temporary file behind. The next one that writes into the folder removes it. While
a file or folder is being written, its process holds a lock on it, which the system gives back when the process ends,
however it ends.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]  # told apart where it is used

ENDING = ".layered.part"
"""Ends the temporary names; they begin with a dot, which hides them."""

_DAY = 24 * 60 * 60


@contextmanager
def part_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` for writing; it is renamed to ``path`` when the block ends, and removed
    if the block raises an exception.

    Raises:
        OSError: the system does not allow it.
    """
    remove_abandoned(path.parent)
    name, handle, lock = _new(path, tempfile.mkstemp)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    finally:
        _finish(name, lock)


@contextmanager
def part_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside ``path``; it is renamed to ``path`` when the block ends, and removed with all
    that is in it if the block raises an exception.

    Raises:
        OSError: the system does not allow it.
    """
    remove_abandoned(path.parent)
    name, _, lock = _new(path, _make_folder)
    try:
        yield Path(name)
        os.chmod(name, 0o777 & ~_umask())
        os.rename(name, path)
    finally:
        _finish(name, lock)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make a temporary folder in ``parent``, and remove it with all that is in it when the block ends.

    Raises:
        OSError: the system does not allow it.
    """
    remove_abandoned(parent)
    name, _, lock = _new(parent / "scratch", _make_folder)
    try:
        yield Path(name)
    finally:
        _finish(name, lock)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders in ``folder`` whose process has ended."""
    with suppress(OSError), os.scandir(folder) as entries:
        found = [e.path for e in entries if e.name.startswith(".") and e.name.endswith(ENDING)]
    for name in found:
        with suppress(OSError):  # it is in use, just gone, or not ours
            _remove_abandoned(name)


def _remove_abandoned(name: str) -> None:
    info = os.lstat(name)
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        return
    if fcntl is None:
        if time.time() - info.st_mtime > _DAY:
            _remove(name)
        return
    lock = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(name)
    finally:
        os.close(lock)


def _new(path: Path, make: Callable[..., tuple[int, str]]) -> tuple[str, int, int]:
    """Return the name of a new temporary file or folder of ``path``, a handle of it, and one that holds its lock, -1
    on a system without locks."""
    while True:
        # The whole name could make this one too long.
        handle, name = make(dir=path.parent, prefix=f".{path.name[:20]}.", suffix=ENDING)
        if fcntl is None:
            return name, handle, -1
        lock = os.dup(handle) if stat.S_ISREG(os.fstat(handle).st_mode) else handle
        with suppress(OSError):  # a file system without locks, on which nothing is removed either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(name):  # no other process has taken it for an abandoned one before it was locked
            return name, handle, lock
        os.close(lock)
        if lock != handle:
            os.close(handle)


def _make_folder(**name: Any) -> tuple[int, str]:
    folder = tempfile.mkdtemp(**name)
    return (-1 if fcntl is None else os.open(folder, os.O_RDONLY)), folder


def _finish(name: str, lock: int) -> None:
    """Remove what is left under a temporary name, which is nothing after success, and give its lock back."""
    with suppress(OSError):
        _remove(name)
    if lock >= 0:
        os.close(lock)


def _remove(name: str) -> None:
    if os.path.isdir(name):
        shutil.rmtree(name, ignore_errors=True)
    else:
        os.unlink(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
