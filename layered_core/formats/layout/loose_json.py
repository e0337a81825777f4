"""Read JSON as language models write it.

Besides JSON it takes: prose around it, Markdown fences, comments, trailing and missing commas, keys without quotes,
single and curved quotes, quotes inside a text that were not escaped, Python's tuples and literals, and a text that
breaks off. Nothing is evaluated. The time is proportional to the length of the text.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ...errors import invalid

MAX_TEXT = 200_000
"""Greatest length of a text, letters."""

_DEPTH = 16
"""Greatest depth of lists and objects in each other."""

_CLOSING = {"[": "]", "(": ")", "{": "}"}
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "`": "`"}
_NAMED = {"true": True, "false": False, "null": None, "none": None, "undefined": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_GAP = re.compile(r"\s+|//[^\n]*|#[^\n]*")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])")
_BARE = re.compile(r"[^\s,:=\[\](){}\"'“”‘’`#][^\s,:=\[\](){}\"“”`#]*")
_AFTER_STRING = re.compile(r"\s*(?:[,:\]})]|=>|\Z|//|#|/\*)|[ \t\r]*\n\s*[\"'“]")
_OPENING = re.compile(r"[\[{]")
_FENCED = re.compile(
    r"(?:^[ \t>]*```\s*\w*|```\w*[ \t]*\n)\s*(.*?)(?:(?<=[\]})])[ \t]*```|^[ \t>]*```|\Z)",
    re.DOTALL | re.MULTILINE,
)
"""A fence: it begins a line, or a line ends with it; three backticks inside a text are none. Its end begins a line, or
follows a bracket."""
_THOUGHT = re.compile("</think(?:ing)?>(?![\"'”’,\\]}])")  # inside a text, a quote follows
_HEX = re.compile("[0-9a-fA-F]{4}")
_MAX_DIGITS = 15
"""Greatest length of a number that is read as a whole one."""


class _BrokenError(Exception):
    """The text cannot be read on at ``at``."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


def read_values(text: str, where: str) -> list[tuple[Any, bool]]:
    """Return the lists and objects of a text, in its order, each with whether some of it could not be read.

    A JSON string is read as the text in it. Fenced blocks are read if they hold any list or object; else the whole
    text is. What a model wrote while thinking, before the last ``</think>``, is left out if anything follows.

    Args:
        text: the text.
        where: the input, for the error.

    Raises:
        LayeredError: the text has more than 200,000 letters.
    """
    if len(text) > MAX_TEXT:
        raise invalid(
            f"{where}: length",
            f"{len(text):,} letters",
            f"at most {MAX_TEXT:,}",
            "Give only the list of elements",
        )
    whole = text.strip()
    if whole[:1] in ("[", "{", '"'):
        try:
            value = json.loads(whole)
            return read_values(value, where) if isinstance(value, str) else [(value, False)]
        except (ValueError, RecursionError):
            pass
    answer = _THOUGHT.split(text)[-1]
    for parts in (_fenced(answer), [answer], [text]):
        values = [value for part in parts for value in _Reader(part).values()]
        if values:
            return values
    return []


def _fenced(text: str) -> list[str]:
    """Return what stands in Markdown's fences, without the name of the language."""
    return [fence[1] for fence in _FENCED.finditer(text)]


class _Reader:
    """Reads one text from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.broken = text, 0, False
        self.last_comment = text.rfind("*/")

    def values(self) -> list[tuple[Any, bool]]:
        """Return every list and object that is not inside another one, and whether it was broken."""
        found = []
        while start := _OPENING.search(self.text, self.at):
            self.at, self.broken = start.start(), False
            try:
                value = self._value(0)
            except _BrokenError as error:
                self.at = max(error.at, start.end())
                continue
            if isinstance(value, (list, dict)) and value:
                found.append((value, self.broken))
        return found

    def _gap(self) -> None:
        """Go past spaces and comments."""
        while True:
            if gap := _GAP.match(self.text, self.at):
                self.at = gap.end()
            elif self.at < self.last_comment and self.text.startswith("/*", self.at):
                self.at = self.text.index("*/", self.at) + 2
            else:
                return

    def _next(self) -> str:
        """Return the next letter after spaces and comments; empty at the end."""
        self._gap()
        return self.text[self.at : self.at + 1]

    def _value(self, depth: int) -> Any:
        letter = self._next()
        if letter in _CLOSING and letter:
            if depth >= _DEPTH:
                raise _BrokenError(self.at)
            self.at += 1
            return self._object(depth) if letter == "{" else self._list(_CLOSING[letter], depth)
        if letter in _QUOTES and letter:
            return self._string()
        if number := _NUMBER.match(self.text, self.at):
            self.at = number.end()
            plain = number[0].lstrip("+-").isdigit() and len(number[0]) <= _MAX_DIGITS
            return int(number[0]) if plain else float(number[0])
        if word := _BARE.match(self.text, self.at):
            self.at = word.end()
            return _NAMED.get(word[0].lower(), word[0])
        raise _BrokenError(self.at)

    def _list(self, closing: str, depth: int) -> list[Any]:
        """Read a list after its bracket. A broken object in it is read as None, and reading goes on at the next one."""
        found: list[Any] = []
        while (letter := self._next()) and letter != closing:
            if letter in ",;":
                self.at += 1
                continue
            start = self.at
            try:
                found.append(self._value(depth + 1))
            except _BrokenError as error:
                after = self.text.find("{", max(error.at, start + 1))
                if letter != "{" or after < 0:
                    raise
                found.append(None)
                self.at, self.broken = after, True
        self._close(letter)
        return found

    def _object(self, depth: int) -> dict[str, Any]:
        """Read an object after its bracket. The outermost one, if it is broken, keeps what was read of it."""
        found: dict[str, Any] = {}
        try:
            while (letter := self._next()) and letter != "}":
                if letter in ",;":
                    self.at += 1
                    continue
                key = self._key()
                if self.text.startswith(("=>", ":", "="), self.at):
                    self.at += 2 if self.text.startswith("=>", self.at) else 1
                elif self._next():
                    raise _BrokenError(self.at)
                else:
                    break
                if self._next():
                    found[key] = self._value(depth + 1)
        except _BrokenError:
            if depth or not any(isinstance(value, (list, dict)) for value in found.values()):
                raise
            self.broken = True
            return found
        self._close(self._next())
        return found

    def _close(self, letter: str) -> None:
        """Go past the closing bracket ``letter``; where the text breaks off there is none."""
        self.broken |= not letter
        self.at += len(letter)

    def _key(self) -> str:
        letter = self._next()
        if letter in _QUOTES:
            key = self._string()
        elif word := _BARE.match(self.text, self.at):
            self.at, key = word.end(), word[0]
        else:
            raise _BrokenError(self.at)
        self._gap()
        return key

    def _string(self) -> str:
        """Read a quoted text. A quote ends it only if what follows fits; any other one belongs to the text."""
        closing = _QUOTES[self.text[self.at]]
        self.at += 1
        pieces: list[str] = []
        special = re.compile(rf"[\\{re.escape(closing)}]")
        while True:
            mark = special.search(self.text, self.at)
            if mark is None:
                self.broken = True
                pieces.append(self.text[self.at :])
                self.at = len(self.text)
                break
            pieces.append(self.text[self.at : mark.start()])
            self.at = mark.end()
            if mark[0] == "\\":
                pieces.append(self._escape())
            elif _AFTER_STRING.match(self.text, self.at):
                break
            else:
                pieces.append(mark[0])
        return "".join(pieces)

    def _escape(self) -> str:
        """Return the letter that an escape stands for, after its backslash."""
        letter = self.text[self.at : self.at + 1]
        self.at += len(letter)
        code = _HEX.match(self.text, self.at) if letter == "u" else None
        if code:
            self.at = code.end()
            return chr(int(code[0], 16))
        return _ESCAPES.get(letter, letter)
