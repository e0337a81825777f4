"""Long work in nodes: the bar on the node, and the button that cancels the run."""

from __future__ import annotations

import functools
from pathlib import Path
from time import monotonic
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ...layered_core.errors import check_memory
from ...layered_core.files import content_hash
from ...layered_core.progress import reporting

_PAUSE = 0.1
"""Seconds between two movements of the bar."""


def cancellable(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Return the node class with an ``execute`` that shows on the node how far the core's work is, and that ends when
    the user cancels the run."""
    execute = node.execute.__func__  # type: ignore[attr-defined]  # a class method has it

    @functools.wraps(execute)
    def run(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> Any:
        with reporting(_Bar().report):
            return execute(cls, *args, **inputs)

    setattr(node, "execute", classmethod(run))  # noqa: B010  # a type checker allows no other way
    return node


class _Bar:
    def __init__(self) -> None:
        self._next = monotonic()

    def report(self, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if monotonic() >= self._next:
            self._next = monotonic() + _PAUSE
            comfy.utils.ProgressBar(max(total, 1)).update_absolute(done)


def fingerprint(path: Path) -> str | float:
    """Return a hash of a file for ComfyUI's cache. If the run is cancelled meanwhile, return NaN, which equals
    nothing: ComfyUI ends the run before the next node, and must not be interrupted here, between nodes."""

    def check(done: int, total: int) -> None:
        if comfy.model_management.processing_interrupted():
            raise _CancelledError

    try:
        with reporting(check):
            return content_hash(path)
    except _CancelledError:
        return float("nan")


class _CancelledError(BaseException):
    pass


def check_main_memory(needed: int, what: str, fix: str) -> None:
    """Raise :class:`LayeredError` if ``what``, work of a node, needs more than the free main memory."""
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    check_memory(what, needed, free, "main memory", fix)
