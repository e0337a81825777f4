"""Let the model patch of a control act where layers are seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import comfy.model_patcher
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.control.control_map import ControlMap
from ...layered_core.document import Control
from ...layered_core.errors import check_number
from ..layers.socket import LAYERS, read_stack
from .control_masks import single_map, within
from .patch_mask import PatchMask
from .weighed_patch import other_changes, weigh_patches


class MaskedModelPatch(io.ComfyNode):
    """Weigh by masks what the patches of a model change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_MaskedModelPatch",
            display_name="Masked Model Patch",
            category="layered diffusion/control",
            description=(
                "Let a control that comes as a model patch (Qwen-Image DiffSynth, Z-Image Fun, Anima LLLite, Wan "
                "Uni3C) act where layers are seen, each layer with its own strength, start and end. The patch runs "
                "once a step for any number of layers. Several of these nodes can be chained."
            ),
            search_aliases=["controlnet", "model patch", "diffsynth", "z-image fun controlnet", "lllite", "uni3c",
            "regional controlnet", "controlnet mask", "control per layer"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model with the patch: what came out of the node that applies it, e.g. "
                    "Apply Qwen Image DiffSynth ControlNet.",
                ),
                io.Model.Input(
                    "base", tooltip="The same model without the patch: what went into that node. Patches that "
                    "model has and base lacks are weighed.",
                ),
                LAYERS.Input(
                    "layers", optional=True,
                    tooltip="Layers whose recipe has a control hint: the patch acts where each is seen, with its "
                    "own strength, start and end. The control picture itself is connected to the node that "
                    "applies the patch; Layer Control Hint draws it from the layers.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Without layers: where the patch acts, 1 is fully. With layers: their masks are "
                    "multiplied by it. Neutral: all 1.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.01,
                    tooltip="Weight of what the patch changes, 0 to 2; the layers' own strengths are multiplied "
                    "by it. 1 is the patch as it is. Neutral: 0. "
                    "The default is 1, what patches are made for.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Share of the sampling at which the patch begins to act, 0 to 1. Neutral: 0.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Share of the sampling at which the patch stops acting, 0 to 1. Neutral: 1.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model whose patch acts in the masks; for a sampler, or for the next control.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: comfy.model_patcher.ModelPatcher, base: comfy.model_patcher.ModelPatcher, strength: float,
        start_percent: float, end_percent: float, layers: Mapping[str, Any] | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        """Return a clone of the model whose new patches are weighed."""
        check_number("strength", strength, 0, 2)
        check_number("start_percent", start_percent, 0, 1)
        check_number("end_percent", end_percent, start_percent, 1)
        own = Control(strength=strength, start=start_percent, end=end_percent)
        if layers is None:
            control_map = single_map(mask, own)
        else:
            control_map = within(ControlMap.of(read_stack(layers), strength=strength), own, mask)
        patched = weigh_patches(model, base, PatchMask(control_map, on_canvas=layers is not None))
        others = other_changes(model, base)
        if others:
            logging.warning(
                f"Masked Model Patch: besides patches, these differ between base and model, and act everywhere: "
                f"{', '.join(others)}"
            )
        return io.NodeOutput(patched)
