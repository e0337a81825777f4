"""LoRAs as text: ``ink:0.5, people/anna``, or as prompts often have them, ``<lora:ink:0.5>``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..document import Lora

_TAG = re.compile(r"<lora:([^<>]*)>")
_LORA = re.compile(r"(?P<name>.*?)(?:\s*:\s*(?P<strength>-?\d*\.?\d+(?:e-?\d+)?))?")


def read_loras(text: str) -> tuple[Lora, ...]:
    """Return the LoRAs that a text names, in its order.

    Args:
        text: names with folder and ending or without, each with ``:strength`` if that is not 1, and with a comma or a
            new line between two. ``web/js/board/loras.js`` reads the same.

    Raises:
        LayeredError: a strength is not within -4..4, or a name leads out of the host's folder.
    """
    parts = (part.strip() for part in re.split(r"[,\n]", _TAG.sub(r"\1,", text)))
    return tuple(_lora(part) for part in parts if part)


def loras_as_text(loras: Iterable[Lora]) -> str:
    """Return the text that :func:`read_loras` reads as ``loras``, if none of their names has a comma."""
    return ", ".join(f"{lora.name}:{repr(float(lora.strength)).removesuffix('.0')}" for lora in loras)


def _lora(part: str) -> Lora:
    found = _LORA.fullmatch(part)
    assert found is not None  # both groups may be empty
    name = found["name"].strip().replace("\\", "/")
    return Lora(name) if found["strength"] is None else Lora(name, float(found["strength"]))
