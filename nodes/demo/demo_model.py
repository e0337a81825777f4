"""Load the storybook model through ComfyUI's own classes: to every other node it is a small SD1.5 model, or a
small Flux."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ...demo.world.places import MODEL, TRANSFORMER, TRANSFORMER_SCHEDULER
from ...layered_core.errors import LayeredError
from ..layers.remarks import warn

SIDE = 128
"""Width and height, pixels, of the pictures that the networks were trained on."""

SHORTER, LONGER = (96, 128), (104, 160)
"""Least and greatest shorter and longer side, pixels, of pictures that still show what the words say. Smaller ones
lack things; larger ones show them several times."""

_CELL = 8
"""Pixels a side of a latent cell."""

NETWORKS = ("UNet", "transformer")
"""The networks that the node loads; the first is the default."""


class StorybookLatents(comfy.latent_formats.SD15):
    """SD1.5's latents, unscaled: the storybook VAE was trained to latents of standard deviation 1."""

    def __init__(self) -> None:
        super().__init__(scale_factor=1.0)
        # SD1.5's preview colours and preview decoder do not fit these latents.
        self.latent_rgb_factors = None
        self.taesd_decoder_name = None


class Storybook(comfy.supported_models.SD15):
    """SD1.5 of another size, trained on v-prediction."""

    latent_format = StorybookLatents

    def __init__(self, unet_config: dict[str, Any], heads: int) -> None:
        # ComfyUI tells models apart by size, and its SD1.5 has eight heads.
        self.unet_extra_config = {"num_heads": heads, "num_head_channels": -1}
        super().__init__(unet_config)

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        """Return v-prediction, whatever the weights are."""
        return comfy.model_base.ModelType.V_PREDICTION


class StorybookTransformer(comfy.supported_models.FluxSchnell):
    """Flux without an input for guidance, of another size and for the storybook's latents."""

    latent_format = StorybookLatents

    def __init__(self, unet_config: dict[str, Any], shift: float) -> None:
        super().__init__(unet_config)
        self.sampling_settings["shift"] = shift


def load_unet(folder: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Load a MODEL from ``folder``/unet. ComfyUI calls this to load it again, too
    (``cached_patcher_init``)."""
    shape = read_config(folder, "unet", "config.json")
    config = Storybook(unet_config(shape), heads=int(shape["attention_head_dim"]))
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    weights = {names[k]: v for k, v in read_weights(folder, "unet").items()}
    patcher = _patcher(config, weights, disable_dynamic)
    patcher.cached_patcher_init = (load_unet, (folder,))
    return patcher


def load_transformer(folder: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Load a MODEL from ``folder``/transformer and ``folder``/transformer_scheduler, as :func:`load_unet`
    does from ``folder``/unet."""
    shape = read_config(folder, TRANSFORMER.name, "config.json")
    schedule = read_config(folder, TRANSFORMER_SCHEDULER.name, "scheduler_config.json")
    config = StorybookTransformer(transformer_config(shape), shift=float(schedule["shift"]))
    weights = comfy.model_detection.convert_diffusers_mmdit(read_weights(folder, TRANSFORMER.name))
    patcher = _patcher(config, weights, disable_dynamic)
    patcher.cached_patcher_init = (load_transformer, (folder,))
    return patcher


def _patcher(
    config: comfy.supported_models_base.BASE, weights: dict[str, Tensor], disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """Return a MODEL with ``weights``, by ComfyUI's names, in the data type that ComfyUI chooses here."""
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    kinds = config.supported_inference_dtypes
    dtype = comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights), supported_dtypes=kinds
    )
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, kinds))
    # Weights made under the executor's inference mode could never be trained.
    with torch.inference_mode(False):
        model = config.get_model({}, device=offload)
        kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        patcher = kind(model, load_device=device, offload_device=offload)
        model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "storybook", _sample)
    return patcher


def _sample(
    executor: comfy.patcher_extension.WrapperExecutor, noise: Tensor, *more: Any, **named: Any
) -> Tensor:
    """Wrap a sampling run: warn of a size that the networks were not made for."""
    height, width = (_CELL * side for side in noise.shape[-2:])
    shorter, longer = sorted((height, width))
    if shorter > SHORTER[1] or longer > LONGER[1]:
        _warn_of_size(width, height, "shows things several times")
    elif shorter < SHORTER[0] or longer < LONGER[0]:
        _warn_of_size(width, height, "lacks things")
    return executor(noise, *more, **named)


def _warn_of_size(width: int, height: int, effect: str) -> None:
    warn(
        "Load Demo Model",
        f"the demo model was made for {SIDE}x{SIDE} pixels, and at {width}x{height} it {effect}. Connect the latent "
        f"of Load Demo Model to the sampler, or take a picture whose shorter side is {SHORTER[0]} to {SHORTER[1]} "
        f"pixels and whose longer side is {LONGER[0]} to {LONGER[1]}",
    )


def load_clip(folder: str, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Load a CLIP from ``folder``/text_encoder and ``folder``/tokenizer."""
    shape = read_config(folder, "text_encoder", "config.json")

    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, **options: Any) -> None:
            super().__init__(
                tokenizer_path=str(Path(folder, "tokenizer")),
                embedding_size=shape["hidden_size"],
                embedding_key="clip_l",
                **options,
            )

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, **options: Any) -> None:
            super().__init__(textmodel_json_config=dict(shape), return_projected_pooled=False, **options)

    class StorybookTokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, **options: Any) -> None:
            super().__init__(tokenizer=Tokenizer, **options)

    class StorybookEncoder(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, **options: Any) -> None:
            super().__init__(clip_model=Encoder, **options)

    prefix = "text_model."
    weights = {prefix + k.removeprefix(prefix): v for k, v in read_weights(folder, "text_encoder").items()}
    # SD1.5 never uses this weight, but ComfyUI's class has it and would leave it uninitialised.
    weights["text_projection.weight"] = torch.eye(shape["hidden_size"])
    with torch.inference_mode(False):
        clip = comfy.sd.CLIP(
            comfy.supported_models_base.ClipTarget(StorybookTokenizer, StorybookEncoder),
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
            parameters=comfy.utils.calculate_parameters(weights),
            state_dict=[weights],
            disable_dynamic=disable_dynamic,
        )
    clip.patcher.cached_patcher_init = (_clip_patcher, (folder,))
    return clip


def load_vae(folder: str) -> comfy.sd.VAE:
    """Load a VAE from ``folder``/vae."""
    weights = {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    for name, weight in read_weights(folder, "vae").items():
        half, _, number, rest = name.split(".", 3)
        # ComfyUI's decoder counts the clamp in front of the first convolution as a layer.
        weights[f"taesd_{half}.{int(number) + (half == 'decoder')}.{rest}"] = weight
    with torch.inference_mode(False):
        vae = comfy.sd.VAE(sd=weights)
    vae.patcher.cached_patcher_init = (_vae_patcher, (folder,))
    return vae


class LoadDemoModel(io.ComfyNode):
    """Load the shipped model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LoadDemoModel",
            display_name="Load Demo Model",
            category="layered diffusion/models",
            description=(
                "Load the small storybook model that comes with this pack: pictures of 128x128 pixels, "
                "no download. A prompt for it reads 'a red ball and a blue star in a meadow'."
            ),
            search_aliases=["storybook", "demo", "tiny model", "checkpoint loader", "test model", "flux"],
            inputs=[
                io.Combo.Input(
                    "network", options=list(NETWORKS), default=NETWORKS[0], optional=True,
                    tooltip="UNet: as Stable Diffusion 1.5 has it, with cross-attention; draws best. "
                        "transformer: as Flux has it, with joint attention and flow matching. Both read the "
                        "same words and make the same latents. Neutral: none.",
                )
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="An SD1.5 UNet of small width, v-prediction; or a Flux transformer of small "
                    "width, for cfg above 1.",
                ),
                io.Clip.Output(
                    display_name="clip", tooltip="A small CLIP text encoder with CLIP's own tokenizer."
                ),
                io.Vae.Output(display_name="vae", tooltip="An autoencoder in the TAESD layout."),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="An empty latent of the size that the model was made for, 128x128 pixels, for the "
                    "sampler.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, network: str = NETWORKS[0]) -> io.NodeOutput:
        """Load the network, text encoder and VAE, and make an empty latent."""
        folder = str(MODEL)
        load = load_unet if network == NETWORKS[0] else load_transformer
        empty = torch.zeros(
            1, 4, SIDE // _CELL, SIDE // _CELL, device=comfy.model_management.intermediate_device()
        )
        return io.NodeOutput(load(folder), load_clip(folder), load_vae(folder), {"samples": empty})


def _clip_patcher(folder: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_clip(folder, disable_dynamic).patcher


def _vae_patcher(folder: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_vae(folder).patcher


def unet_config(shape: dict[str, Any]) -> dict[str, Any]:
    """Return ComfyUI's description of a UNet, from diffusers' one. Depth lists have one entry for each block,
    from the outermost inwards."""
    widths = shape["block_out_channels"]
    blocks = [shape["layers_per_block"]] * len(widths)
    deep = [int("CrossAttn" in kind) for kind in shape["down_block_types"]]
    return {
        "image_size": 32, "in_channels": shape["in_channels"],
        "out_channels": shape.get("out_channels", shape["in_channels"]),
        "model_channels": widths[0],
        "channel_mult": [w // widths[0] for w in widths], "num_res_blocks": blocks, "adm_in_channels": None,
        "use_spatial_transformer": True, "use_linear_in_transformer": False,
        "context_dim": shape["cross_attention_dim"],
        "transformer_depth": [d for d, n in zip(deep, blocks, strict=True) for _ in range(n)],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [d for d, n in zip(deep, blocks, strict=True) for _ in range(n + 1)],
        "legacy": False, "use_temporal_attention": False, "use_temporal_resblock": False,
    }  # fmt: skip


def transformer_config(shape: dict[str, Any]) -> dict[str, Any]:
    """Return ComfyUI's description of a Flux transformer for patches of 2 x 2 latents, from diffusers' one."""
    channels = shape["in_channels"] // 4
    heads, width = shape["num_attention_heads"], shape["attention_head_dim"]
    return {
        "image_model": "flux", "patch_size": 2, "in_channels": channels, "out_channels": channels,
        "hidden_size": heads * width, "num_heads": heads, "mlp_ratio": 4.0,
        "depth": shape["num_layers"], "depth_single_blocks": shape["num_single_layers"],
        "context_in_dim": shape["joint_attention_dim"], "vec_in_dim": shape["pooled_projection_dim"],
        "axes_dim": shape["axes_dims_rope"], "theta": 10000, "txt_ids_dims": [],
        "qkv_bias": True, "guidance_embed": shape["guidance_embeds"],
    }  # fmt: skip


def read_config(folder: str, *parts: str) -> dict[str, Any]:
    path = Path(folder, *parts)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, error) from None


def read_weights(folder: str, part: str) -> dict[str, Tensor]:
    path = next(iter(sorted(Path(folder, part).glob("*.safetensors"))), Path(folder, part, "*.safetensors"))
    try:
        return comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:  # safetensors raises an error class of its own for a cut file
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> LayeredError:
    other = ", or choose network 'UNet'" if path.parent.name.startswith(TRANSFORMER.name) else ""
    return LayeredError(
        f"demo model: file {str(path)!r} is missing or broken ({error}). Install the pack again, or 'git "
        f"checkout -- demo/model' in its folder{other}"
    )
