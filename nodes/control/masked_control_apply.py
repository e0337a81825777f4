"""Apply a ControlNet per layer: weight the residuals of one net by where the layers are seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.conds
import comfy.controlnet
import torch
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.control.control_map import CONTROL_MODES, ControlMap
from ...layered_core.control.hints import document_hint
from ...layered_core.document import Control
from ...layered_core.errors import LayeredError, check_number
from ..layers.pictures import opaque
from ..layers.socket import LAYERS, read_stack
from .control_hint import preprocessor
from .control_masks import check_aspect, single_mask, within
from .masked_control_net import IS_POSITIVE_KEY, MaskedControl

_NO_HINT = (0.0, 0.0, 0.0)
"""The colour of a hint where there is nothing to follow."""


class MaskedControlNetApply(io.ComfyNode):
    """Add a ControlNet that acts inside layers to a pair of conditionings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_MaskedControlNetApply",
            display_name="Masked ControlNet Apply",
            category="layered diffusion/control",
            description=(
                "Let a ControlNet act where layers are seen, each layer with its own strength, start and "
                "end. The net runs once a step for any number of layers. Can be chained with ComfyUI's "
                "own Apply ControlNet."
            ),
            search_aliases=["controlnet", "regional controlnet", "controlnet mask", "apply controlnet",
            "control per layer"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="Words the picture follows."),
                io.Conditioning.Input("negative", tooltip="Words the picture avoids."),
                io.ControlNet.Input("control_net", tooltip="The net; it is not changed."),
                LAYERS.Input(
                    "layers", optional=True,
                    tooltip="Layers whose recipe has a control hint: each acts where it is seen, with its "
                    "own strength, start and end.",
                ),
                io.Image.Input(
                    "image", optional=True,
                    tooltip="The hint picture. Not connected: it is drawn from the layers, as Layer "
                        "Control Hint does with its defaults.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Without layers: where the net acts, 1 is full strength. With layers: their "
                        "masks are multiplied by it. Neutral: all 1.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.01,
                    tooltip="Weight of the net's residuals, 0 to 2; the layers' own strengths are "
                        "multiplied by it. Neutral: 0. "
                        "The default is 1, what nets are trained for.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Share of the sampling at which the net begins to act, 0 to 1. Neutral: 0.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Share of the sampling at which the net stops acting, 0 to 1. Neutral: 1.",
                ),
                io.Combo.Input(
                    "mode", options=list(CONTROL_MODES), default="balanced", advanced=True,
                    tooltip="balanced: prompt and control count alike. prompt: the prompt counts more, "
                        "as outer residuals are weaker. control: the control counts more, as the same "
                        "residuals act on the positive alone. Neutral: balanced.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="For nets that read latents (SD3, Flux, Qwen). "
                "Not connected: none."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The conditioning with the "
                    "ControlNet."),
                io.Conditioning.Output(display_name="negative", tooltip="The conditioning with the "
                    "ControlNet."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, positive: Sequence[Any], negative: Sequence[Any], control_net: comfy.controlnet.ControlBase,
        strength: float, start_percent: float,
        end_percent: float, mode: str, layers: Mapping[str, Any] | None = None, image: Tensor | None = None,
        mask: Tensor | None = None,
        vae: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        """Wrap the net and add it to both conditionings, on top of the ControlNets that they have already."""
        check_number("strength", strength, 0, 2)
        check_number("start_percent", start_percent, 0, 1)
        check_number("end_percent", end_percent, start_percent, 1)
        image = None if image is None else opaque(image, backdrop=_NO_HINT)
        if strength == 0:
            return io.NodeOutput(positive, negative)
        own = Control(strength=strength, start=start_percent, end=end_percent)
        if layers is not None:
            document = read_stack(layers)
            control_map = within(ControlMap.of(document, strength=strength, mode=mode), own, mask)
            if image is None:
                image = document_hint(document, preprocess=preprocessor)[None].movedim(1, -1)
        else:
            if image is None:
                raise LayeredError(
                    "image: neither a hint picture nor layers are connected. Connect a hint picture, or "
                    "layers with a control hint"
                )
            shown = torch.ones(1, *image.shape[1:3]) if mask is None else single_mask(mask)
            control_map = ControlMap(shown, (own,), mode)
        check_aspect("image: size of the hint", *image.shape[1:3], control_map.masks)
        net = control_net.copy().set_cond_hint(image[..., :3].movedim(-1, 1), 1.0, (0.0, 1.0), vae=vae)
        control = MaskedControl(net, control_map, on_canvas=layers is not None)
        wrapped: dict[Any, MaskedControl] = {}
        halves = ((positive, 1.0), (negative, 0.0))
        return io.NodeOutput(*(_controlled(c, control, wrapped, is_positive) for c, is_positive in halves))


def _controlled(
    conditioning: Sequence[Any], control: MaskedControl, wrapped: dict[Any, MaskedControl], is_positive: float
) -> list[list[Any]]:
    """Return the conditioning with the net on top of each entry. Entries that shared a ControlNet still share
    one, because ComfyUI batches by identity."""
    out = []
    for words, options in conditioning:
        before = options.get("control")
        if before not in wrapped:
            wrapped[before] = control.copy().set_previous_controlnet(before)
        ours = {"control": wrapped[before], "control_apply_to_uncond": False}
        if control.map.mode == "control":
            ours["model_conds"] = {
                **options.get("model_conds", {}),
                IS_POSITIVE_KEY: comfy.conds.CONDRegular(torch.tensor([is_positive])),
            }
        out.append([words, {**options, **ours}])
    return out
