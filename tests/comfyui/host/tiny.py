"""Tiny random models with the structure of SD1.5, SDXL and Flux, and LayerDiffuse files for them with the published
keys."""

import json
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch
from boot import BASE
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

KEYS = json.loads(
    (Path(__file__).resolve().parents[2] / "data" / "sd15_attention_sharing_keys.json").read_text()
)
FOLDER = BASE / "models" / "layer_model"
"""The folder in which the nodes look for files."""
CONTEXT = 64
"""Width of the encoded words, which is that of the storybook's text encoder."""
RANK = 4

_SHAPES = {
    "sd15": {
        "block_out_channels": (32, 64, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "attention_head_dim": 8,
    },
    "sdxl": {
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 8),
        "transformer_layers_per_block": (1, 1, 2), "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip


def config(family, depths, mults, channels, context=CONTEXT):
    """Return ComfyUI's configuration of the UNet, as it detects it from a checkpoint."""
    shape = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels,
        "channel_mult": mults,
        "num_res_blocks": [2] * len(mults), "use_spatial_transformer": True, "context_dim": context,
        "legacy": False,
        "transformer_depth": [d for d in depths for _ in range(2)],
        "transformer_depth_middle": depths[-1] or 1,
        "transformer_depth_output": [d for d in depths for _ in range(3)], "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "use_linear_in_transformer": family == "sdxl", "adm_in_channels": 2816 if family == "sdxl" else None,
    }  # fmt: skip
    if family == "sdxl":
        shape["num_classes"] = "sequential"
    kind = {"sd15": comfy.supported_models.SD15, "sdxl": comfy.supported_models.SDXL}[family]

    class Tiny(kind):
        unet_extra_config = (
            {"num_heads": 8, "num_head_channels": -1}
            if family == "sd15"
            else {"num_heads": -1, "num_head_channels": 16}
        )

    Tiny.__name__ = kind.__name__
    return Tiny(shape)


CONFIGS = {
    "sd15": lambda: config("sd15", [1, 1, 1, 0], [1, 2, 2, 2], 32),
    "sdxl": lambda: config("sdxl", [0, 1, 2], [1, 2, 4], 32),
}


def build(family, folder):
    """Return a MODEL of the family with random weights, which are also written to ``folder`` in the diffusers
    layout."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **_SHAPES[family],
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        cross_attention_dim=CONTEXT,
    )
    unet.save_pretrained(folder)
    return load(family, folder)


def load(family, folder, disable_dynamic=False):
    """Load a MODEL from a folder of :func:`build`."""
    settings = CONFIGS[family]()
    names = comfy.utils.unet_to_diffusers(settings.unet_config)
    weights = {names[k]: v for k, v in load_file(folder / "diffusion_pytorch_model.safetensors").items()}
    settings.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = settings.get_model({}, device="cpu")
        patcher = comfy.model_patcher.CoreModelPatcher(
            model, load_device=comfy.model_management.get_torch_device(), offload_device=torch.device("cpu")
        )
        model.load_model_weights(weights, "")
    patcher.cached_patcher_init = (load, (family, folder))
    return patcher


def flux(channels=16):
    """Return a random flow model with 16 latent channels, built by ComfyUI from its own configuration."""
    config = comfy.supported_models.Flux(
        {
            "image_model": "flux", "in_channels": channels, "out_channels": channels, "vec_in_dim": 16,
            "context_in_dim": 16, "hidden_size": 48,
            "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 8, 8],
            "theta": 10000, "qkv_bias": True,
            "guidance_embed": False, "patch_size": 2, "txt_ids_dims": [],
        }
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = config.get_model({}, device="cpu")
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )


def shapes_of(model):
    """Return the names and shapes of the UNet's weights."""
    return {name: tuple(p.shape) for name, p in model.model.diffusion_model.named_parameters()}


def is_attention(name):
    return any(
        name.endswith(f".{a}.{p}.weight")
        for a in ("attn1", "attn2")
        for p in ("to_q", "to_k", "to_v", "to_out.0")
    )


def is_time(name):
    return name.startswith(("time_embed", "label_emb"))


def chosen(task, shapes):
    """Return the names of the weights that the published SDXL file for a task changes, according to its
    size."""
    if task in ("fg2ble", "bg2ble", "fgble2bg"):
        inside = ("in_layers", "emb_layers", "out_layers", "skip_connection", ".op.", ".conv.")
        return [
            k for k in shapes if any(i in k for i in inside) or k.startswith(("input_blocks.0.0.", "out."))
        ]
    return [
        k
        for k in shapes
        if not is_time(k) and not any(k.endswith(f".{p}.weight") for p in ("to_q", "to_k", "to_v"))
    ]


def random_like(shape, seed, std=0.03):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(std).half()


def forge_lora(shapes):
    """Return tensors named as in layer_xl_transparent_attn, half of them with an alpha."""
    file = {}
    for i, (name, shape) in enumerate((n, s) for n, s in shapes.items() if is_attention(n)):
        file[f"diffusion_model.{name}::lora::0"] = random_like((shape[0], RANK), 2 * i, 0.1)
        file[f"diffusion_model.{name}::lora::1"] = random_like((RANK, shape[1]), 2 * i + 1, 0.1)
        if i % 2:
            file[f"diffusion_model.{name}::lora::2"] = torch.tensor(2.0).half()
    return file


def forge_diff(shapes, task):
    """Return tensors named as in layer_xl_transparent_conv, layer_xl_fg2ble and so on."""
    further = {"fg2ble": 4, "bg2ble": 4, "fgble2bg": 8, "bgble2fg": 8}.get(task, 0)
    file = {}
    for i, name in enumerate(chosen(task, shapes)):
        shape = shapes[name]
        if name == "input_blocks.0.0.weight":
            shape = (shape[0], shape[1] + further, *shape[2:])
        file[f"diffusion_model.{name}::diff::0"] = random_like(shape, i)
    return file


def sharing(task, heads=8):
    """Return tensors with every key of layer_sd15_joint and so on, in the tiny model's widths."""
    published = {"transparent": "layer_sd15_transparent_attn", "joint": "layer_sd15_joint"}.get(
        task, "layer_sd15_fg2bg / bg2fg"
    )
    small = {320: 32, 640: 64, 1280: 64, 768: CONTEXT, 256: 8}
    file = {}
    for i, (key, shape) in enumerate(KEYS[published].items()):
        file[key] = random_like([small.get(n, n) for n in shape], i, 0.1)
        if "temporal_n.weight" in key:
            file[key] += 1
    return file


def write(folder, name, file):
    """Save a file under a published name and return the name."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in file.items()}, folder / f"{name}.safetensors")
    return f"{name}.safetensors"


FILES = {
    "transparent layer": ("sdxl", "layer_xl_transparent_attn", forge_lora),
    "foreground to blend": ("sdxl", "layer_xl_fg2ble", lambda s: forge_diff(s, "fg2ble")),
    "background to blend": ("sdxl", "layer_xl_bg2ble", lambda s: forge_diff(s, "bg2ble")),
    "foreground and blend to background": ("sdxl", "layer_xl_fgble2bg", lambda s: forge_diff(s, "fgble2bg")),
    "background and blend to foreground": ("sdxl", "layer_xl_bgble2fg", lambda s: forge_diff(s, "bgble2fg")),
    "foreground, background and blend": ("sd15", "layer_sd15_joint", lambda s: sharing("joint")),
    "foreground to background and blend": ("sd15", "layer_sd15_fg2bg", lambda s: sharing("fg2bg")),
    "background to foreground and blend": ("sd15", "layer_sd15_bg2fg", lambda s: sharing("bg2fg")),
}
"""For every mode: a base model, a published name and the file's contents."""

MORE = [
    ("transparent layer", "sdxl", "layer_xl_transparent_conv", lambda s: forge_diff(s, "transparent")),
    ("transparent layer", "sd15", "layer_sd15_transparent_attn", lambda s: sharing("transparent")),
]
"""Further files for these modes."""

CASES = [(mode, *rest) for mode, rest in FILES.items()] + MORE
