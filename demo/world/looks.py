"""Looks that no word of the storybook names. Every one has a LoRA in ``demo/model/loras/storybook``, with which the
model gives it to all objects, whatever colour the words ask for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .scenes import Draw, StoryObject, place_object
from .vocabulary import Thing

PINK = (240, 110, 180)
"""The colour of everything pink, red, green and blue, 0..255."""

STRIPE = (46, 40, 58)
"""The colour of the stripes, red, green and blue, 0..255."""

STRIPE_HEIGHT = 8
"""Height of a stripe and of the gap between two stripes, pixels."""


def draw_pink(
    thing: Thing, box: tuple[float, float, float, float], *, angle: float = 0.0, flip: bool = False
) -> StoryObject:
    """Draw an object as :func:`~.scenes.place_object` does, in pink instead of the colour that its words name."""
    return place_object(thing, box, angle=angle, flip=flip, body=PINK)


def draw_striped(
    thing: Thing, box: tuple[float, float, float, float], *, angle: float = 0.0, flip: bool = False
) -> StoryObject:
    """Draw an object as :func:`~.scenes.place_object` does, with level dark stripes, which lie in the same rows of
    the canvas on all objects."""
    item = place_object(thing, box, angle=angle, flip=flip)
    rows = np.arange(item.y, item.y + len(item.silhouette))
    share = is_stripe(rows)[:, None] * (item.silhouette / 255.0)
    image = item.image.copy()
    image[..., :3] = np.round(image[..., :3] * (1 - share[..., None]) + np.array(STRIPE) * share[..., None])
    return replace(item, image=image)


def is_stripe(rows: np.ndarray) -> np.ndarray:
    """Return whether each row of the canvas, counted from the top, lies in a stripe, bool ``[n]``."""
    return rows // STRIPE_HEIGHT % 2 == 1


LOOKS: dict[str, Draw] = {"pink": draw_pink, "striped": draw_striped}
"""What draws an object with each look, by the name of the look's LoRA."""
