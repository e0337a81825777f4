"""Put what psd-tools says of broken files into words, and keep its log lines off the console."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .file_layers import clean_text

_LOGGER = logging.getLogger("psd_tools")
_FAILED = re.compile(r"Failed to read tagged block <Tag\.(UNICODE_LAYER_NAME|BLEND_FILL_OPACITY)")
"""psd-tools' remark on a block that it could not read, one of those that a document keeps. Others are told of by the
reader, as blocks that it does not know."""

_TOO_MUCH = re.compile(r"max_(objects|nesting_depth) exceeded: \d+ > (\d+)")
_SUMMED = {
    "objects": "the file holds over {} values",
    "nesting_depth": "the file is nested over {} levels deep",
}
"""How psd-tools' limits are named."""

_LOCK = threading.Lock()
_MOST = 200
"""Greatest number of letters of a message."""


class _Listener(logging.Handler):
    """Collects the blocks of a file that psd-tools could not read, in the thread that made it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: dict[str, int] = {}
        self._made_in = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Note the name of the part."""
        part = _FAILED.match(record.getMessage())
        if part and record.thread == self._made_in:
            name = part[1].lower().replace("_", " ")
            self.found[name] = self.found.get(name, 0) + 1


_listeners: list[_Listener] = []
_before = (logging.NOTSET, True)


@contextmanager
def listening(warnings: list[str]) -> Iterator[None]:
    """Keep psd-tools' log lines, one for every block that it does not know, off the console, and add one line to
    ``warnings`` if it could not read a layer's name or fill opacity."""
    global _before
    listener = _Listener()
    with _LOCK:
        if not _listeners:
            _before = _LOGGER.level, _LOGGER.propagate
            _LOGGER.setLevel(logging.ERROR)
            _LOGGER.propagate = False
        _listeners.append(listener)
        _LOGGER.addHandler(listener)
    try:
        yield
    finally:
        with _LOCK:
            _listeners.remove(listener)
            _LOGGER.removeHandler(listener)
            if not _listeners:
                _LOGGER.setLevel(_before[0])
                _LOGGER.propagate = _before[1]
        if listener.found:
            names = ", ".join(listener.found)
            warnings.append(
                f"{sum(listener.found.values())} blocks of the file are damaged or of an unknown form and are left "
                f"out: {names}"
            )


def in_words(error: Exception) -> str:
    """Return what an exception of psd-tools says as one short line without the names of Python objects.

    A failed check of a field raises attrs' ``(message, attribute, options, value)``.
    """
    arguments = error.args
    name = getattr(arguments[1], "name", None) if len(arguments) > 1 else None
    if isinstance(name, str):
        what = f"the {name.replace('_', ' ')} of a part of the file"
        if len(arguments) == 4 and isinstance(arguments[2], (tuple, list, set, frozenset)):
            allowed = ", ".join(sorted(map(str, arguments[2]), key=lambda item: (len(item), item)))
            text = f"{what} is {arguments[3]!r}; allowed: {allowed}"
        else:
            text = f"{what} is not allowed"
    elif limit := _TOO_MUCH.match(str(error)):
        text = _SUMMED[limit[1]].format(f"{int(limit[2]):,}")
    elif "must be in range []" in str(error):
        text = "a number of the file is out of its range"
    elif arguments and isinstance(arguments[0], str):
        text = arguments[0]
    else:
        text = str(error)
    text = clean_text(text).rstrip(". ") or type(error).__name__
    return text if len(text) <= _MOST else text[: _MOST - 1] + "…"
