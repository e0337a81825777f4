"""Phrases of things in a caption."""

from __future__ import annotations

import re

_BREAK = re.compile(r"[.,;:!?()\"]|\b(?:and|with|on|in|at|by|of|near|under|over|behind|from|to|is|are|sitting|"
                    r"standing|lying|holding|wearing|next|front|top|that|which|while|there)\b")  # fmt: skip
_ARTICLE = re.compile(r"\b(?:a|an|the|two|three|four|five|some|several)\b")
_NO_THINGS = frozenset(
    ("picture", "image", "photo", "photograph", "painting", "drawing", "illustration", "view", "background",
     "foreground", "side", "middle")
)  # fmt: skip


def phrases_of(caption: str) -> tuple[str, ...]:
    """Return the phrases of a caption that begin with an article, without those of the picture itself:
    ``a black cat``, ``a red mat`` of ``a black cat sitting on a red mat``."""
    found = []
    for piece in _BREAK.split(caption.lower()):
        starts = [x.start() for x in _ARTICLE.finditer(piece)]
        words = piece[starts[-1] :].split() if starts else []
        if 2 <= len(words) <= 6 and words[-1] not in _NO_THINGS:
            found.append(" ".join(words))
    return tuple(dict.fromkeys(found))
