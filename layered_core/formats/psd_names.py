"""Names that Photoshop's files use: blend modes, and the block that holds what is ours."""

from __future__ import annotations

from psd_tools.constants import BlendMode

PSD_MODES = {
    "normal": BlendMode.NORMAL, "multiply": BlendMode.MULTIPLY, "screen": BlendMode.SCREEN,
    "overlay": BlendMode.OVERLAY,
    "darken": BlendMode.DARKEN, "lighten": BlendMode.LIGHTEN, "color-dodge": BlendMode.COLOR_DODGE,
    "color-burn": BlendMode.COLOR_BURN,
    "hard-light": BlendMode.HARD_LIGHT, "soft-light": BlendMode.SOFT_LIGHT,
    "difference": BlendMode.DIFFERENCE,
    "exclusion": BlendMode.EXCLUSION, "linear-dodge": BlendMode.LINEAR_DODGE,
    "linear-burn": BlendMode.LINEAR_BURN,
    "vivid-light": BlendMode.VIVID_LIGHT, "pin-light": BlendMode.PIN_LIGHT,
    "linear-light": BlendMode.LINEAR_LIGHT,
    "hard-mix": BlendMode.HARD_MIX, "subtract": BlendMode.SUBTRACT, "divide": BlendMode.DIVIDE,
    "hue": BlendMode.HUE,
    "saturation": BlendMode.SATURATION, "color": BlendMode.COLOR, "luminosity": BlendMode.LUMINOSITY,
}  # fmt: skip
"""Blend modes that Photoshop has."""


NEAREST = {"grain-extract": BlendMode.SUBTRACT, "grain-merge": BlendMode.LINEAR_LIGHT}
"""What is written for those it lacks; the true one is in the private data."""


BLOB = b"layered-diffusion "
"""What our image resources begin with; the key, a line feed and the compressed pixels follow. They have no
name: Krita spoils a file with one."""


NAMES = {mode: name for name, mode in PSD_MODES.items()}
