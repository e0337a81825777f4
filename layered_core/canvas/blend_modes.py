"""Blend modes: the formulas that blend the colour of a layer with the colour below it, and the rules by which
the result is composited.

``B(b, s)`` is the blended colour of backdrop ``b`` and source ``s``: tensors ``[..., 3, H, W]`` (red, green,
blue on the third axis from the end) that broadcast, on any device and of any float type. The functions change
neither of them in place. Sources of the formulas: GIMP's layer modes
(https://docs.gimp.org/2.10/en/gimp-concepts-layer-modes.html) for ``comfyui``, W3C Compositing and Blending
Level 1 section 10 and, for what is not in it, Photoshop's behaviour for ``photoshop``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import invalid

Blend = Callable[[Tensor, Tensor], Tensor]
"""A blend function ``B(b, s)``."""

TINY = 1e-6
"""Least divisor; smaller ones are raised to it."""


def multiply(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b s``."""
    return b * s


def screen(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b + s - b s``."""
    return torch.addcmul(b + s, b, s, value=-1)


def overlay(b: Tensor, s: Tensor) -> Tensor:
    """Return hard light with b and s exchanged: multiply where the backdrop is dark, screen where it is
    light."""
    return _multiply_or_screen(s, b)


def hard_light(b: Tensor, s: Tensor) -> Tensor:
    """Return multiply with ``2 s`` where the source is dark, screen with ``2 s - 1`` where it is light; at
    most 1."""
    return _multiply_or_screen(b, s).clamp_max_(1)


def _multiply_or_screen(under: Tensor, switch: Tensor) -> Tensor:
    # One of the two is neutral at every pixel: multiply by 1 or screen by 0.
    return screen(under * (2 * switch).clamp_max_(1), (2 * switch).sub_(1).clamp_min_(0))


def color_dodge(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b / (1 - s)`` in 0..1: 0 on a black backdrop, else 1 under a white source."""
    return (b / (1 - s).clamp_min_(TINY)).clamp_(0, 1)


def color_burn(b: Tensor, s: Tensor) -> Tensor:
    """Return ``1 - (1 - b) / s`` in 0..1: 1 on a white backdrop, else 0 under a black source."""
    return 1 - ((1 - b) / s.clamp_min(TINY)).clamp_(0, 1)


def vivid_light(b: Tensor, s: Tensor) -> Tensor:
    """Return color burn with ``2 s`` where the source is dark, color dodge with ``2 s - 1`` where it is
    light."""
    return color_dodge(color_burn(b, (2 * s).clamp_max_(1)), (2 * s).sub_(1).clamp_min_(0))


def vivid_light_photoshop(b: Tensor, s: Tensor) -> Tensor:
    """Return vivid light in which a black source gives black even on white, and a white source white even on
    black."""
    burnt = 1 - ((1 - b).add_(TINY) / (2 * s).clamp_(TINY, 1)).clamp_(0, 1)
    return (burnt.add_(TINY) / (2 - 2 * s).clamp_(TINY, 1)).clamp_(0, 1)


def soft_light_gimp(b: Tensor, s: Tensor) -> Tensor:
    """Return ``(1 - b) multiply(b, s) + b screen(b, s)``, which is ``b (b + 2 s (1 - b))``."""
    return torch.addcmul(b, 1 - b, s, value=2).mul_(b)


def soft_light_w3c(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b - (1 - 2 s) b (1 - b)`` where the source is dark, ``b + (2 s - 1)(D(b) - b)`` where it is
    light (W3C 10.1)."""
    lighter = torch.where(b <= 0.25, ((16 * b - 12) * b + 4) * b, b.clamp_min(0).sqrt())
    tilt = 2 * s - 1
    return b + tilt.clamp_max(0) * b * (1 - b) + tilt.clamp_min(0) * (lighter - b)


def difference(b: Tensor, s: Tensor) -> Tensor:
    """Return ``|b - s|``."""
    return (b - s).abs_()


def exclusion(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b + s - 2 b s``."""
    return torch.addcmul(b + s, b, s, value=-2)


def linear_dodge(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b + s``."""
    return b + s


def linear_burn(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b + s - 1``."""
    return (b + s).sub_(1)


def linear_light(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b + 2 s - 1``."""
    return torch.add(b, s, alpha=2).sub_(1)


def pin_light(b: Tensor, s: Tensor) -> Tensor:
    """Return ``min(b, 2 s)`` where the source is dark, ``max(b, 2 s - 1)`` where it is light."""
    return torch.where(s > 0.5, torch.maximum(b, 2 * s - 1), torch.minimum(b, 2 * s))


def hard_mix(b: Tensor, s: Tensor) -> Tensor:
    """Return 1 where ``b + s >= 1``, else 0."""
    return (b + s >= 1).to(b.dtype)


def hard_mix_photoshop(b: Tensor, s: Tensor) -> Tensor:
    """Return 1 where ``b + s > 1``, and where ``b + s = 1`` and the backdrop is the lighter of the two; else
    0."""
    total = b + s
    return ((total > 1) | ((total == 1) & (b > 0.5))).to(b.dtype)


def subtract(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b - s``, at least 0."""
    return (b - s).clamp_min_(0)


def divide(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b / s`` in 0..1; 0 where both are 0."""
    return (b / s.clamp_min(TINY)).clamp_(0, 1)


def grain_extract(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b - s + 0.5``."""
    return (b - s).add_(0.5)


def grain_merge(b: Tensor, s: Tensor) -> Tensor:
    """Return ``b + s - 0.5``."""
    return (b + s).sub_(0.5)


def hsv_hue(b: Tensor, s: Tensor) -> Tensor:
    """Return the source's hue with the backdrop's value and saturation (HSV); the backdrop where the source
    is grey."""
    b_max, b_range, s_max, s_range = *_max_range(b), *_max_range(s)
    hued = b_max - (s_max - s) * (b_range / s_range.clamp_min(TINY))
    return torch.where(s_range > TINY, hued, b)


def hsv_saturation(b: Tensor, s: Tensor) -> Tensor:
    """Return the source's saturation with the backdrop's hue and value (HSV); grey backdrops stay grey."""
    b_max, b_range, s_max, s_range = *_max_range(b), *_max_range(s)
    saturation = s_range / s_max.clamp_min(TINY)
    scale = torch.where(b_range > TINY, saturation * b_max / b_range.clamp_min(TINY), 0)
    return b_max - (b_max - b) * scale


def hsl_color(b: Tensor, s: Tensor) -> Tensor:
    """Return the source's hue and saturation with the backdrop's lightness (HSL); grey where the source is
    black or white."""
    b_light, s_light = ((x.amax(-3, keepdim=True) + x.amin(-3, keepdim=True)) / 2 for x in (b, s))
    # Chroma is at most twice the distance of the lightness from black or white; it keeps its share of that
    # maximum.
    room = torch.minimum(s_light, 1 - s_light)
    scale = torch.where(room > TINY, torch.minimum(b_light, 1 - b_light) / room.clamp_min(TINY), 0)
    return b_light + (s - s_light) * scale


def luminance_of_backdrop(b: Tensor, s: Tensor) -> Tensor:
    """Return the backdrop scaled to the source's luminance, ``b Y(s) / Y(b)``; grey of that luminance where
    the backdrop is black."""
    b_light, s_light = _luminance(b), _luminance(s)
    black = b_light <= TINY
    return b * torch.where(black, 0, s_light / b_light.clamp_min(TINY)) + torch.where(black, s_light, 0)


def w3c_hue(b: Tensor, s: Tensor) -> Tensor:
    """Return ``SetLum(SetSat(s, Sat(b)), Lum(b))``."""
    return _set_lum(_set_sat(s, _max_range(b)[1]), _lum(b))


def w3c_saturation(b: Tensor, s: Tensor) -> Tensor:
    """Return ``SetLum(SetSat(b, Sat(s)), Lum(b))``."""
    return _set_lum(_set_sat(b, _max_range(s)[1]), _lum(b))


def w3c_color(b: Tensor, s: Tensor) -> Tensor:
    """Return ``SetLum(s, Lum(b))``."""
    return _set_lum(s, _lum(b))


def w3c_luminosity(b: Tensor, s: Tensor) -> Tensor:
    """Return ``SetLum(b, Lum(s))``."""
    return _set_lum(b, _lum(s))


def _max_range(colour: Tensor) -> tuple[Tensor, Tensor]:
    """Return the greatest channel (HSV's value) and its distance from the least, each ``[..., 1, H, W]``."""
    greatest = colour.amax(-3, keepdim=True)
    return greatest, greatest - colour.amin(-3, keepdim=True)


def _luminance(colour: Tensor) -> Tensor:
    """Return CIE Y of linear sRGB, adapted to D50 as in GIMP, ``[..., 1, H, W]``."""
    return _weighted(colour, 0.2224884, 0.71690369, 0.06060791)


def _lum(colour: Tensor) -> Tensor:
    """Return W3C's ``Lum``, ``[..., 1, H, W]``."""
    return _weighted(colour, 0.3, 0.59, 0.11)


def _weighted(colour: Tensor, red: float, green: float, blue: float) -> Tensor:
    return red * colour[..., 0:1, :, :] + green * colour[..., 1:2, :, :] + blue * colour[..., 2:3, :, :]


def _set_sat(colour: Tensor, saturation: Tensor) -> Tensor:
    """Return W3C's ``SetSat``: the least channel becomes 0, the greatest ``saturation``, the middle one in
    proportion; greys become 0."""
    greatest, spread = _max_range(colour)
    return (colour - greatest + spread) * (saturation / spread.clamp_min(TINY))


def _set_lum(colour: Tensor, lum: Tensor) -> Tensor:
    """Return W3C's ``SetLum``: the colour shifted to ``lum``, then mixed with that grey until every channel
    is in 0..1."""
    shifted = colour + (lum - _lum(colour))
    below = lum / (lum - shifted.amin(-3, keepdim=True)).clamp_min_(TINY)
    above = (1 - lum) / (shifted.amax(-3, keepdim=True) - lum).clamp_min_(TINY)
    return torch.lerp(lum.expand_as(shifted), shifted, torch.minimum(below, above).clamp_(0, 1))


@dataclass(frozen=True)
class Rules:
    """Rules of compositing: how a layer is laid on those below it."""

    blends: Mapping[str, Blend]
    """``B(b, s)`` of every mode except ``normal``, which gives ``s``."""
    linear: bool
    """Whether colours are mixed by alpha in linear light; otherwise in sRGB."""
    linear_modes: frozenset[str]
    """Modes whose ``B`` takes and returns linear light; that of all others takes and returns sRGB."""
    clips: bool
    """Whether modes other than ``normal`` paint only where the backdrop is, and leave its alpha unchanged.
    Otherwise they are source-over: where there is no backdrop, the layer's own colour is used."""
    bounded: bool
    """Whether blended colours are clamped to 0..1 after every layer; otherwise only at the end."""


_SHARED: dict[str, Blend] = {
    "multiply": multiply, "screen": screen, "overlay": overlay, "darken": torch.minimum,
    "lighten": torch.maximum,
    "color-dodge": color_dodge, "color-burn": color_burn, "hard-light": hard_light, "difference": difference,
    "exclusion": exclusion,
    "linear-dodge": linear_dodge, "linear-burn": linear_burn, "pin-light": pin_light,
    "linear-light": linear_light,
    "subtract": subtract, "divide": divide, "grain-extract": grain_extract, "grain-merge": grain_merge,
}  # fmt: skip

RULES: dict[str, Rules] = {
    "comfyui": Rules(
        {
            **_SHARED, "soft-light": soft_light_gimp, "vivid-light": vivid_light, "hard-mix": hard_mix,
            "hue": hsv_hue,
            "saturation": hsv_saturation, "color": hsl_color, "luminosity": luminance_of_backdrop,
        },
        linear=True,
        linear_modes=frozenset({"multiply", "darken", "lighten", "linear-dodge", "subtract", "divide",
        "luminosity"}),
        clips=True,
        bounded=False,
    ),
    "photoshop": Rules(
        {
            **_SHARED, "soft-light": soft_light_w3c, "vivid-light": vivid_light_photoshop,
            "hard-mix": hard_mix_photoshop,
            "hue": w3c_hue, "saturation": w3c_saturation, "color": w3c_color, "luminosity": w3c_luminosity,
        },
        linear=False,
        linear_modes=frozenset(),
        clips=False,
        bounded=True,
    ),
}  # fmt: skip
"""The rules by name. ``comfyui``: like ComfyUI's own layer compositor and GIMP. ``photoshop``: like
Photoshop, OpenRaster and browsers, all in sRGB."""


def find_rules(name: str) -> Rules:
    """Return the rules called ``name``.

    Raises:
        LayeredError: there are none of that name.
    """
    if name not in RULES:
        raise invalid("rules", name, ", ".join(RULES))
    return RULES[name]
