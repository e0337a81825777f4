"""Draw how a training went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#9a7d0a", "#6c3483", "#117a65")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 640, 360, 64, 16, 40


def loss_plot(
    losses: Sequence[float], errors: Sequence[tuple[int, Sequence[float]]], names: Sequence[str]
) -> Tensor:
    """Draw the loss of each step in grey, and each word's error at fixed noise in colour, ``[H, W, 3]`` in 0..1.

    Args:
        losses: one for each step.
        errors: steps at which the words' errors were measured, each with the error of every word.
        names: of the words.
    """
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    ends = [max(len(losses), 1), max((step for step, _ in errors), default=1)]
    most_x = max(ends)
    measured = [e for _, row in errors for e in row]
    usual = [float(np.percentile(losses, 98))] if len(losses) else []
    most_y = max([*measured, *usual], default=1.0)
    most_y = most_y * 1.05 or 1.0

    def at(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - 16) * step / most_x
        return x, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - min(value / most_y, 1.0))

    for share in (0.0, 0.5, 1.0):
        (x0, y), (x1, _) = at(0, share * most_y), at(most_x, 0)
        pen.line([(x0, y), (x1, y)], fill="#dddddd")
        pen.text((4, y - 7), f"{share * most_y:.3g}", fill="black", font=font)
        x, bottom = at(share * most_x, 0)
        pen.text((x - 8, bottom + 4), f"{share * most_x:.0f}", fill="black", font=font)
    if len(losses) > 1:
        pen.line([at(i + 1, x) for i, x in enumerate(losses)], fill="#bbbbbb")
    for number, name in enumerate(names):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [at(step, row[number]) for step, row in errors]
        if len(points) > 1:
            pen.line(points, fill=colour, width=2)
        for x, y in points:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        pen.text((_LEFT + 8 + 140 * (number % 4), _HEIGHT - 18), name[:20], fill=colour, font=font)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
