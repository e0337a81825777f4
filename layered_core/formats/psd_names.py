"""Names in Photoshop's files: blend modes, and the prefix of this project's image resources."""

from __future__ import annotations

from psd_tools.constants import BlendMode

from .file_layers import MISSING_IN_PSD

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
"""Photoshop's blend modes under the names of a document."""


NEAREST = {mode: PSD_MODES[shown] for mode, shown in MISSING_IN_PSD.items()}
"""Photoshop's modes for those that it lacks."""


BLOB = b"layered-diffusion "
"""Prefix of this project's image resources; the key, a line feed and the compressed pixels follow. The
resources have no name, as Krita damages files with named ones."""


NAMES = {mode: name for name, mode in PSD_MODES.items()}
"""The inverse of ``PSD_MODES``."""
