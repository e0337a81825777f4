"""Inputs that the nodes of stages share."""

from __future__ import annotations

from comfy_api.latest import io

from ...layered_core.painting.stages import ALPHAS

CATEGORY = "layered diffusion/stages"


MAX_SEED = 2**64 - 1


ALPHA = io.Combo.Input(
    "alpha", options=list(ALPHAS), default=ALPHAS[0],
    tooltip="What of the new layer is opaque: what changed, its whole soft mask, or transparent: painted "
    "alone by LayerDiffuse, with alpha of "
    "its own. Neutral: mask, the layer is the whole region.",
)  # fmt: skip
