"""Whose turn it is: one run at a time uses the model, and a run can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from layered_core.errors import LayeredError
from layered_core.progress import reporting

Report = Callable[[int, int], object]
"""Told how many steps of a run are done, and how many there are."""

_model = threading.Lock()
"""Held by the run that uses the model now, whichever page of this process it is of."""

_PATIENCE = 0.1
"""Seconds after which a run that waits for the model looks whether it was stopped."""


class StoppedError(BaseException):
    """The person stopped the run. It is no ``Exception``, which a reader of files might take for a broken file: see
    :mod:`layered_core.progress`."""


class Turn:
    """The runs of one person: one at a time. A run is asked for with :meth:`take`, made in :meth:`running`, and ended
    early by :meth:`stop`, which may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ticket = 0
        """Number of the run that was asked for last."""
        self._taken: threading.Event | None = None
        """Of the run that was asked for; set when it is to stop. None: there is no run."""
        self._runs = False

    @property
    def is_taken(self) -> bool:
        """Whether a run is being made, or was asked for."""
        return self._taken is not None

    def take(self) -> int:
        """Ask for a run; return its ticket.

        Raises:
            LayeredError: another one is not done yet.
        """
        with self._lock:
            if self._taken is not None:
                raise LayeredError("the last run is not done yet. Wait for it, or press Cancel")
            self._taken = threading.Event()
            self._ticket += 1
            return self._ticket

    def stop(self) -> Literal["made", "asked for", "none"]:
        """Stop the run before its next step; one that has not begun never does. Return whether it was being made, and
        now ends by itself; was asked for; or there was none, and nothing is done."""
        with self._lock:
            if self._taken is None:
                return "none"
            self._taken.set()
            if self._runs:
                return "made"
            self._taken = None
            return "asked for"

    @contextmanager
    def running(self, ticket: int, report: Report) -> Iterator[Report]:
        """Wait for the model, and let the run of this ticket be made in this block. Yields the function to call
        after each of its steps.

        Raises:
            StoppedError: the run was stopped, before the block or from the function in it.
        """
        with self._lock:
            stopped = self._taken
            if stopped is None or self._runs or ticket != self._ticket:
                raise StoppedError
            self._runs = True

        def look(*_: int) -> None:
            if stopped.is_set():
                raise StoppedError

        def step(done: int, total: int) -> None:
            look()
            report(done, total)

        held = False
        try:
            while not (held := _model.acquire(timeout=_PATIENCE)):
                look()
            look()
            with reporting(look):
                yield step
        finally:
            if held:
                _model.release()
            with self._lock:
                self._taken, self._runs = None, False
