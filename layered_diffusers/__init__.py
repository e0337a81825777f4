"""Layered pictures without ComfyUI: the core's methods on a diffusers model, and the ``layered`` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

__all__ = ["LayeredDiffusionPipeline"]


def __getattr__(name: str) -> object:
    # diffusers takes seconds to import; ``layered --help`` must not wait for it.
    if name == "LayeredDiffusionPipeline":
        from layered_diffusers.pipeline import LayeredDiffusionPipeline

        return LayeredDiffusionPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
