"""The families of transformers on which regions act, a row each.

Facts are of ComfyUI 0.33 and diffusers 0.42; the order of tokens is a host's own matter and not in the table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """How a family of transformers reads text."""

    name: str
    """Name for people."""
    patch: int
    """Side of a patch, latent cells."""
    limit: int
    """Most tokens of one text that the family was trained with."""
    cross: bool = False
    """Whether the picture reads texts by cross-attention; else texts and picture share one attention."""
    positions: str = "none"
    """Where a token of text stands: ``none`` (all at one place), ``start`` (counted from the first token), ``end``
    (counted to the last token, as texts are filled up on the left)."""
    refined: bool = False
    """Whether texts read themselves in blocks of their own before the picture reads them."""
    room: int = 0
    """Fewest tokens to which the host fills up a text; 0: none."""
    multiple: int = 1
    """The sequences of text and of picture are filled up to multiples of this, with tokens that are read."""
    padded: bool = False
    """Whether a layer's text keeps its padding, as the model reads it in texts of any length."""


FAMILIES = {
    "flux": Family("Flux", 2, 512),
    "flux2": Family("Flux 2", 1, 512, positions="end", room=512),
    "chroma": Family("Chroma", 2, 512),
    "qwen": Family("Qwen-Image", 2, 1024, positions="start"),
    "zimage": Family("Z-Image", 2, 512, positions="start", refined=True, multiple=32),
    "lumina2": Family("Lumina 2", 2, 512, positions="start", refined=True),
    "sd3": Family("Stable Diffusion 3", 2, 512),
    "krea2": Family("Krea 2", 2, 512, refined=True),
    "anima": Family("Anima", 2, 512, cross=True, room=512, padded=True),
}
"""By the key that hosts use."""
