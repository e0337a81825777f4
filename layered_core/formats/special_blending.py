"""Blending that Photoshop has and a document's layer has not: fill opacity in the special modes, darker and lighter
color, and the range of colours below a layer in which it shows (blend-if).

Sources: Adobe's "Photoshop File Formats Specification" for the ranges; for fill opacity the previews that Photoshop
stores. In eight modes, fill opacity moves the source's colour towards the mode's neutral one instead of fading the
result: ``B(b, n + fill (s - n))``. Hard mix, which has no neutral colour, becomes the soft curve of
:func:`_soft_hard_mix`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas.blend_modes import RULES

NEUTRAL = {
    "color-burn": 1.0, "linear-burn": 1.0, "color-dodge": 0.0, "linear-dodge": 0.0, "difference": 0.0,
    "vivid-light": 0.5, "linear-light": 0.5, "hard-mix": None,
}  # fmt: skip
"""The modes in which fill opacity is not opacity, and the grey that changes nothing in them; None: there is none."""

Range = tuple[int, int, int, int]
"""Where colours count, 0..255: nothing below the first, all from the second to the third, nothing above the
fourth."""

_WEIGHTS = (0.3, 0.59, 0.11)


def darker_color(b: Tensor, s: Tensor) -> Tensor:
    """Return the darker of the two colours, by their luma; ``b`` if they are equal."""
    return torch.where(_luma(s) < _luma(b), s, b)


def lighter_color(b: Tensor, s: Tensor) -> Tensor:
    """Return the lighter of the two colours, by their luma; ``b`` if they are equal."""
    return torch.where(_luma(s) > _luma(b), s, b)


def blend(mode: str, b: Tensor, s: Tensor) -> Tensor:
    """Return the blended colour ``B(b, s)`` of two pictures ``[3, H, W]`` by Photoshop's rules, 0..1."""
    if mode == "normal":
        return s
    own = {"darker-color": darker_color, "lighter-color": lighter_color}.get(mode)
    return (own or RULES["photoshop"].blends[mode])(b, s).clamp(0, 1)


@dataclass(frozen=True)
class Special:
    """How a layer is blended, where a document's layer cannot be blended so."""

    mode: str
    """A document's blend mode, ``darker-color`` or ``lighter-color``."""
    fill: float = 1.0
    """Fill opacity in one of the modes of :data:`NEUTRAL`, 0..1. Neutral: 1."""
    shapes: bool = True
    """Whether the layer's alpha limits it (Photoshop's "transparency shapes layer"); otherwise it multiplies the
    fill opacity."""
    below: tuple[Range | None, ...] = ()
    """The ranges of what is below the layer in which it shows: grey, red, green, blue; empty: everywhere."""

    @property
    def name(self) -> str:
        """What it is, in words."""
        if self.below:
            return "its limit to some colours below it (blend-if)"
        if self.mode in NEUTRAL:
            return f"its fill opacity in the blend mode {self.mode}"
        return f"its blend mode {self.mode}"

    def filled(self, alpha: Tensor) -> tuple[float | Tensor, Tensor]:
        """Return the fill opacity and the shape ``[H, W]`` of a layer with ``alpha``."""
        return (self.fill, alpha) if self.shapes else (self.fill * alpha, (alpha > 0).to(alpha.dtype))

    def share(self, backdrop: Tensor, alpha: Tensor) -> Tensor | float:
        """Return how far the layer shows over a backdrop ``[3, H, W]`` with ``alpha``: ``[H, W]``, or 1. Nothing is
        asked of transparent backdrops."""
        if not self.below:
            return 1.0
        return 1 - alpha * (1 - in_ranges(backdrop, self.below))

    def mixed(self, colour: Tensor, fill: float | Tensor) -> Tensor:
        """Return the colour moved towards the neutral one by 1 - ``fill``."""
        neutral = NEUTRAL.get(self.mode)
        return colour if neutral is None else neutral + fill * (colour - neutral)

    def over(
        self, backdrop: Tensor, alpha: Tensor, colour: Tensor, fill: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what the layer gives where it shows wholly: premultiplied colour ``[3, H, W]`` and alpha
        ``[H, W]``.

        Args:
            backdrop: straight colour below the layer, ``[3, H, W]``.
            alpha: alpha below the layer, ``[H, W]``.
            colour: the layer's colour, ``[3, H, W]``.
            fill: fill opacity, 0..1, a number or ``[H, W]``.
        """
        soft = self.mode == "hard-mix" and not (isinstance(fill, float) and fill == 1)
        blended = (
            _soft_hard_mix(backdrop, colour, fill)
            if soft
            else blend(self.mode, backdrop, self.mixed(colour, fill))
        )
        return alpha * blended + (1 - alpha) * fill * colour, alpha + (1 - alpha) * fill


def _soft_hard_mix(b: Tensor, s: Tensor, fill: float | Tensor) -> Tensor:
    """Return hard mix at a fill opacity below 1: ``(b - fill (1 - s)) / (1 - fill)`` in 0..1. At two thirds it is
    ``3 b - 2 (1 - s)``, Krita's "hard mix softer (Photoshop)"."""
    rest = torch.as_tensor(1 - fill, dtype=b.dtype).clamp_min(1e-6)
    return ((b - fill * (1 - s)) / rest).clamp(0, 1)


def in_ranges(colour: Tensor, ranges: tuple[Range | None, ...]) -> Tensor:
    """Return how far colours ``[3, H, W]`` lie in the ranges of grey, red, green and blue: ``[H, W]``, 0..1."""
    out = torch.ones(colour.shape[-2:])
    for values, limits in zip((_luma(colour)[0], *colour), ranges, strict=False):
        if limits is not None:
            out *= _in_range(values * 255, limits)
    return out


def _in_range(x: Tensor, limits: Range) -> Tensor:
    nothing_below, low, high, nothing_above = limits
    tiny = 1e-2  # lumas of whole numbers are not quite whole
    if low > nothing_below:
        up = ((x - nothing_below) / (low - nothing_below)).clamp(0, 1)
    else:
        up = (x >= low - tiny).to(x.dtype)
    if nothing_above > high:
        return up * ((nothing_above - x) / (nothing_above - high)).clamp(0, 1)
    return up * (x <= high + tiny)


def _luma(colour: Tensor) -> Tensor:
    red, green, blue = _WEIGHTS
    return red * colour[0:1] + green * colour[1:2] + blue * colour[2:3]
