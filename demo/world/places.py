"""Paths of the shipped model, its parts and the example files."""

from __future__ import annotations

from pathlib import Path

_DEMO = Path(__file__).resolve().parents[1]

MODEL = _DEMO / "model"
"""The storybook model, in the diffusers layout."""

TRANSFORMER = MODEL / "transformer"
"""The storybook transformer, which shares the model's text encoder and VAE."""

TRANSFORMER_SCHEDULER = MODEL / "transformer_scheduler"
"""The transformer's noise schedule."""

CONTROL = MODEL / "controlnet"
"""The model's ControlNet for Canny edges."""

TRANSPARENT = MODEL / "transparent"
"""Weights for transparent layers: decoder, encoder, LoRA, joint generator, and the network
that makes several layers at once."""

LORAS = MODEL / "loras" / "storybook"
"""LoRAs for the UNet, a file for each of :data:`demo.world.looks.LOOKS`. ComfyUI lists them as ``storybook/…``, among
the user's own."""

JUDGE = MODEL / "judge"
"""The networks that judge pictures: the judge and the harmony classifier."""

EXAMPLES = _DEMO / "files"
"""Layered files that serve as examples."""
