"""Inputs that the nodes of stages share."""

from __future__ import annotations

from comfy_api.latest import io

from ...layered_core.painting.stages import ALPHAS

CATEGORY = "layered diffusion/stages"


MAX_SEED = 2**64 - 1


ALPHA = io.Combo.Input(
    "alpha", options=list(ALPHAS), default=ALPHAS[0],
    tooltip="How the new layer gets its alpha. difference: opaque where the picture changed. mask: its "
        "whole soft mask. transparent: LayerDiffuse paints it alone, with an alpha of its own. Neutral: "
        "mask, the layer is the whole region. The default is difference, which cuts the new thing out of its "
        "region.",
)  # fmt: skip
