"""Layered diffusion for ComfyUI. ComfyUI imports this folder as a custom node pack; everything else is
imported when it asks for the nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import LayeredDiffusionExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> LayeredDiffusionExtension:
    """Return the pack's nodes; ComfyUI calls this when it starts."""
    from .nodes import LayeredDiffusionExtension

    return LayeredDiffusionExtension()
