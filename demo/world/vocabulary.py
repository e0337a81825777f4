"""The vocabulary of the storybook world: kinds of objects, colours, materials, landscapes, and their
words."""

from __future__ import annotations

from typing import NamedTuple

CANVAS = 128
"""Side of a scene in pixels."""

KINDS = ("ball", "star", "heart", "house", "tree", "mushroom")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (216, 44, 52),
    "yellow": (252, 208, 48),
    "green": (48, 164, 80),
    "blue": (40, 108, 220),
    "purple": (148, 64, 196),
    "white": (244, 244, 240),
}

ODD_COLOURS: dict[str, tuple[int, int, int]] = {
    "orange": (245, 130, 32),
    "cyan": (60, 200, 210),
    "pink": (244, 130, 180),
    "brown": (120, 72, 40),
}
"""Colours of drawings that no scene of the training has and no caption names."""

MATERIALS = ("solid", "glass", "glowing", "soft")
"""In this order: hard edges, translucent inside, a halo outside, blurred edges. No caption names
``solid``."""

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "a meadow with hills"),
    "sea": ("by the sea", "the sea"),
    "night": ("at night", "a night sky"),
    "desert": ("in the desert", "a desert"),
    "snow": ("in the snow", "snowy mountains"),
    "sunset": ("at sunset", "sunset over the mountains"),
}
"""Names of the backgrounds, each with the phrases that captions use for it."""


class Thing(NamedTuple):
    """An object's material, colour and kind."""

    material: str
    colour: str
    kind: str

    @property
    def words(self) -> str:
        """The object's name in captions, e.g. ``a glass blue star``."""
        return " ".join(["a", *([] if self.material == "solid" else [self.material]), self.colour, self.kind])


THINGS = [Thing(m, c, k) for m in MATERIALS for c in COLOURS for k in KINDS]
"""All 144 objects."""
