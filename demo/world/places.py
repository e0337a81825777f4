"""Where the shipped model, its parts and the example files lie."""

from __future__ import annotations

from pathlib import Path

_DEMO = Path(__file__).resolve().parents[1]

MODEL = _DEMO / "model"
"""The storybook model, in the diffusers layout."""

CONTROL = MODEL / "controlnet"
"""Its ControlNet for edges."""

TRANSPARENT = MODEL / "transparent"
"""What makes and reads its transparent layers: decoder, encoder, LoRA, joint generator."""

JUDGE = MODEL / "judge"
"""The networks that read pictures back and that see what is pasted."""

EXAMPLES = _DEMO / "files"
"""Layered files to open."""
