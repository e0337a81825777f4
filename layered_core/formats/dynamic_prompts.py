"""Find dynamic prompts in words: choices such as ``{red|blue}``, and comments. ComfyUI's page resolves them in prompt
fields when a run is queued; in a file's words and in prompts of ComfyUI's API they stay as they are.

Source: ``processDynamicPrompt`` of Comfy-Org/ComfyUI_frontend.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..document import Layer

_UNESCAPED = r"(?<!\\)(?:\\\\)*"  # a backslash makes the next letter an ordinary one
_LINE_COMMENT_OR_CHOICE = re.compile(rf"(//.*)|{_UNESCAPED}(\{{[^{{}}]*\}})")
_OPEN_CHOICE = re.compile(rf"{_UNESCAPED}(\{{.*)")  # the page takes one that is not closed too
_SHOWN = 3
"""How many texts are named at most."""
_LONGEST = 40
"""How many letters of each are shown at most."""


def dynamic_part(text: str) -> str:
    """Return the first part of a text that ComfyUI's page would resolve; empty if there is none. A brace after a
    backslash is an ordinary letter."""
    begin = text.find("/*")
    end = text.find("*/", begin + 2) if begin >= 0 else -1
    other = _LINE_COMMENT_OR_CHOICE.search(text) or _OPEN_CHOICE.search(text)
    if end >= 0 and (other is None or begin < other.start()):
        return text[begin : end + 2]
    return other[other.lastindex or 0] if other else ""


def dynamic_remark(layers: Iterable[Layer], prompt: str = "", negative: str = "") -> str:
    """Return one line that names the layers' prompts and negatives, and the whole picture's, that have dynamic parts;
    empty if none has."""
    texts = [("prompt", prompt), ("negative", negative)]
    for layer in layers:
        texts += [(f"layer {layer.name!r}: {kind}", getattr(layer, kind)) for kind in ("prompt", "negative")]
    found = [(where, part) for where, text in texts if (part := dynamic_part(text))]
    if not found:
        return ""
    shown = ", ".join(f"{where} has {_cut(part)!r}" for where, part in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (
        f"{shown}{more}: choices in braces and comments are used as they stand, because only the prompt fields of "
        f"ComfyUI's page resolve them. Write the words out"
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
