"""Docstrings of the core, as Markdown: examples, roles and literal blocks are written for Python's own tools."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|mod|meth|data|attr):`~?([^`]+)`")


class PlainMarkdown(griffe.Extension):
    """Turns every docstring into Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring with examples in fences, and names of functions in place of roles."""
    text = ROLE.sub(r"`\1`", text)
    text = re.sub(r"::$", ":", text, flags=re.M)
    lines, example = [], False
    for line in text.splitlines():
        begins = line.lstrip().startswith(">>> ")
        if begins and not example:
            lines += ["", "```pycon"]
        example = (example or begins) and bool(line.strip())
        if not example and lines and not line.strip() and _open(lines):
            lines.append("```")
        lines.append(line.strip() if begins else line)
    return "\n".join([*lines, *(["```"] if _open(lines) else [])])


def _open(lines: list[str]) -> bool:
    """Whether a fence was opened and not closed."""
    return sum(line.startswith("```") for line in lines) % 2 == 1
