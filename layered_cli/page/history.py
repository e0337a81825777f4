"""The steps of one person's work, to go back to and forth again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from layered_core.document import LayerDocument
from layered_core.errors import LayeredError

MOST_STEPS = 20
"""Greatest number of steps that can be undone."""

MOST_BYTES = 2**30
"""Greatest memory of the pixels that all steps hold together, bytes; the present step is kept whatever it takes."""


@dataclass(frozen=True)
class Step:
    """What there is after one action."""

    document: LayerDocument | None = None
    """The layers, or None before there are any."""
    selected: str | None = None
    """Name of the selected layer, or None."""
    action: str = ""
    """What was done, as in "added 'a red ball'". Neutral: empty, for the first step."""


class History:
    """Steps in order, one of which is the present one. A document never changes, so steps share the layers that they
    have in common."""

    def __init__(self, first: Step) -> None:
        self._steps = [first]
        self._index = 0

    @property
    def now(self) -> Step:
        """The present step."""
        return self._steps[self._index]

    @property
    def can_undo(self) -> bool:
        return self._index > 0

    @property
    def can_redo(self) -> bool:
        return self._index + 1 < len(self._steps)

    def put(self, step: Step) -> None:
        """Make ``step`` the present one. Steps that were undone are forgotten, and the oldest ones that are too
        many, or whose pixels need too much memory."""
        kept = [*self._steps[: self._index + 1], step][-MOST_STEPS - 1 :]
        while len(kept) > 1 and _bytes(kept) > MOST_BYTES:
            del kept[0]
        self._steps, self._index = kept, len(kept) - 1

    def keep_selected(self, selected: str | None) -> None:
        """Let the present step have another selected layer: that is no step of its own."""
        step = self.now
        self._steps[self._index] = Step(step.document, selected, step.action)

    def undo(self) -> str:
        """Go one step back; return what was undone.

        Raises:
            LayeredError: there is no step before.
        """
        if not self.can_undo:
            raise LayeredError("there is nothing to undo: this is the first step that is kept")
        undone = self.now.action
        self._index -= 1
        return undone

    def redo(self) -> str:
        """Go one step forth again; return what was done again.

        Raises:
            LayeredError: no step was undone.
        """
        if not self.can_redo:
            raise LayeredError("there is nothing to do again: no step was undone")
        self._index += 1
        return self.now.action


def _bytes(steps: Iterable[Step]) -> int:
    """Return the memory of all pixels that steps hold, bytes; what they share counts once."""
    held = {}
    for step in steps:
        for layer in step.document or ():
            for pixels in (layer.image, layer.mask):
                if pixels is not None:
                    held[pixels.untyped_storage().data_ptr()] = pixels.untyped_storage().nbytes()
    return sum(held.values())
