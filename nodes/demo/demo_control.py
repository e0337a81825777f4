"""Load the storybook ControlNet through ComfyUI's own class: to every other node it is a small SD1.5
ControlNet."""

from __future__ import annotations

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ...demo.world.places import MODEL
from .demo_model import read_config, read_weights, unet_config


def load_control(folder: str) -> comfy.controlnet.ControlNet:
    """Load a CONTROL_NET from ``folder``/controlnet, a diffusers ControlNet of any size."""
    shape = read_config(folder, "controlnet", "config.json")
    weights = read_weights(folder, "controlnet")
    config = unet_config(shape)
    names = {**comfy.utils.unet_to_diffusers(config), **_own_names(weights)}
    device = comfy.model_management.get_torch_device()
    dtype = comfy.model_management.unet_dtype(model_params=comfy.utils.calculate_parameters(weights))
    cast = comfy.model_management.unet_manual_cast(dtype, device)
    for key in (
        "out_channels",
        "transformer_depth_output",
        "use_temporal_attention",
        "use_temporal_resblock",
    ):
        config.pop(key, None)
    # Weights made under the executor's inference mode could never be trained.
    with torch.inference_mode(False):
        net = comfy.cldm.cldm.ControlNet(
            **config, num_heads=int(shape["attention_head_dim"]),
            hint_channels=int(shape["conditioning_channels"]), dtype=dtype,
            device=comfy.model_management.unet_offload_device(),
            operations=comfy.ops.pick_operations(dtype, cast),
        )  # fmt: skip
        net.load_state_dict({names[k]: v for k, v in weights.items()})
    return comfy.controlnet.ControlNet(net.eval(), load_device=device, manual_cast_dtype=cast)


def _own_names(weights: dict[str, Tensor]) -> dict[str, str]:
    """Map diffusers' names of the weights that a ControlNet has beside the UNet's blocks to ComfyUI's
    names."""
    last = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("controlnet_cond_embedding.blocks."))
    names = {}
    for key in weights:
        if key.startswith("controlnet_down_blocks."):
            _, index, kind = key.split(".")
            names[key] = f"zero_convs.{index}.0.{kind}"
        elif key.startswith("controlnet_mid_block."):
            names[key] = f"middle_block_out.0.{key.rsplit('.', 1)[1]}"
        elif key.startswith("controlnet_cond_embedding."):
            part, kind = key.removeprefix("controlnet_cond_embedding.").rsplit(".", 1)
            number = {"conv_in": 0, "conv_out": last + 1}.get(part)
            number = int(part.split(".")[1]) + 1 if number is None else number
            names[key] = f"input_hint_block.{2 * number}.{kind}"
    return names


class LoadDemoControlNet(io.ComfyNode):
    """Load the shipped ControlNet; there is nothing to choose."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LoadDemoControlNet",
            display_name="Load Demo ControlNet",
            category="layered diffusion/models",
            description="Load the small ControlNet of the storybook model: white edges on black, as Canny "
            "and Layer Control Hint draw them.",
            search_aliases=["storybook", "demo", "controlnet loader", "canny", "edges"],
            inputs=[],
            outputs=[
                io.ControlNet.Output(display_name="ControlNet", tooltip="For the model of Load Demo Model.")
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Load the ControlNet."""
        return io.NodeOutput(load_control(str(MODEL)))
