"""Tiny transformers with random weights and the controls that patch them, in ComfyUI's own classes."""

from dataclasses import dataclass
from typing import Any

import comfy.ldm.anima.lllite
import comfy.ldm.lumina.controlnet
import comfy.ldm.wan.uni3c
import comfy.ldm.wan.vae
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import tiny_transformers as tiny
import torch
from comfy_extras import nodes_model_patch

import nodes as comfy_nodes

CPU = torch.device("cpu")
WORDS = tiny.WIDTH
"""Width of the encoded words."""

WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 3,
    "in_dim": 16, "out_dim": 16, "text_dim": WORDS, "freq_dim": 32,
}  # fmt: skip
LENS = {
    "patch_size": 2, "in_channels": 128, "out_channels": 32, "num_layers": 2, "attention_head_dim": 32,
    "num_attention_heads": 2, "enc_hidden_dim": WORDS // 2, "axes_dims_rope": (8, 12, 12),
    "selected_layer_index": (0, 1),
}  # fmt: skip
MAGE_FLOW = {
    "in_channels": 128, "out_channels": 128, "num_layers": 2, "attention_head_dim": 32,
    "num_attention_heads": 2, "joint_attention_dim": WORDS, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip


def filled(module, seed=0):
    """Fill a module with random weights, and return it."""
    tiny.fill(module, seed)
    return module.eval()


@dataclass
class Transformer:
    """A tiny model with conditionings for it."""

    model: Any
    latents: torch.Tensor
    """Empty ones, of the size that is sampled."""
    positive: Any
    negative: Any

    @property
    def size(self):
        """Height and width in pixels."""
        return 8 * self.latents.shape[-2], 8 * self.latents.shape[-1]

    def sampled(self, model, steps=2, positive=None, negative=None, cfg=3.0, noise_mask=None):
        """Return the samples of a model. By default words and no words are one batch."""
        latent = {"samples": self.latents}
        if noise_mask is not None:
            latent["noise_mask"] = noise_mask
        with torch.inference_mode():
            return comfy_nodes.common_ksampler(
                model, 7, steps, cfg, "euler", "simple", positive or self.positive, negative or self.negative,
                latent,
            )[0]["samples"]  # fmt: skip


def transformer(kind, config, shape, width=WORDS):
    """Return a tiny model of one of ComfyUI's kinds; ``shape``: of its latents."""
    settings = kind({**kind.unet_config, **config})
    settings.unet_config = {**settings.unet_config, **config}
    settings.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = settings.get_model({}, device=CPU)
        filled(model.diffusion_model)
    generator = torch.Generator().manual_seed(1)
    positive, negative = ([[torch.randn(1, 7, width, generator=generator), {}]] for _ in range(2))
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
    return Transformer(patcher, torch.zeros(shape), positive, negative)


def of_family(name, shape, width=WORDS, **changed):
    kind, config, _ = tiny.MODELS[name]
    return transformer(kind, {**config, **changed}, shape, width)


def qwen(shape=(1, 16, 1, 8, 12)):
    return of_family("qwen", shape)


def z_image(shape=(1, 16, 8, 12)):
    return of_family("zimage", shape, n_layers=4, n_refiner_layers=2)


def lumina2(shape=(1, 16, 8, 12)):
    return of_family("lumina2", shape)


def anima(shape=(1, 16, 1, 8, 12)):
    return of_family("anima", shape, width=1024)


def wan(shape=(1, 16, 3, 8, 12)):
    return transformer(comfy.supported_models.WAN21_T2V, WAN, shape)


def lens(shape=(1, 128, 8, 12)):
    return transformer(comfy.supported_models.Lens, LENS, shape)


def mage_flow(shape=(1, 128, 8, 12)):
    return transformer(comfy.supported_models.MageFlow, MAGE_FLOW, shape)


def krea2(shape=(1, 16, 1, 8, 12)):
    return of_family("krea2", shape)


def plain_vae():
    """Return a VAE of 16 channels."""
    return comfy.sd.VAE(sd=filled(comfy.taesd.taesd.TAESD(latent_channels=16)).state_dict())


def video_vae():
    """Return a small Wan VAE, which Qwen-Image has too."""
    net = comfy.ldm.wan.vae.WanVAE(
        dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True], dropout=0.0,
    )  # fmt: skip
    return comfy.sd.VAE(sd=filled(net).state_dict())


def model_patch(build):
    """Return a MODEL_PATCH with random weights, as Load Model Patch does."""
    with torch.inference_mode(False):
        net = filled(build(device=CPU, dtype=torch.float32, operations=comfy.ops.manual_cast), seed=5)
    return comfy.model_patcher.ModelPatcher(net, load_device=CPU, offload_device=CPU)


def picture(size, seed=0):
    """Return a control picture ``[1, H, W, 3]`` of 0 and 1."""
    return (torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(seed)) > 0.5).float()


def diffsynth(scene, model=None, strength=1.0, seed=0):
    """Return Qwen with a DiffSynth ControlNet."""
    patch = model_patch(
        lambda **how: nodes_model_patch.QwenImageBlockWiseControlNet(num_layers=3, in_dim=64, dim=64, **how)
    )
    node = nodes_model_patch.QwenImageDiffsynthControlnet()
    with torch.inference_mode():
        return node.diffsynth_controlnet(
            model or scene.model, patch, video_vae(), picture(scene.size, seed), strength
        )[0]


def fun(scene, model=None, strength=1.0, seed=0, layers=15):
    """Return Z-Image with a Fun ControlNet: the first version (6 layers), or Union 2.1 (15)."""
    new = {"additional_in_dim": 17, "refiner_control": True} if layers != 6 else {}
    patch = model_patch(
        lambda **how: comfy.ldm.lumina.controlnet.ZImage_Control(
            dim=256, n_heads=8, n_kv_heads=8, n_control_layers=layers, **new, **how
        )
    )
    node = nodes_model_patch.ZImageFunControlnet()
    with torch.inference_mode():
        return node.diffsynth_controlnet(
            model or scene.model, patch, plain_vae(), picture(scene.size, seed), strength
        )[0]


def lllite(scene, model=None, strength=1.0, seed=0):
    """Return Anima with a LLLite."""
    targets = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "cross_attn_q_proj", "mlp_layer1")
    shapes = {
        "lllite_conditioning1.conv1.weight": (8, 3, 4, 4),
        "lllite_conditioning1.conv3.weight": (16, 8, 4, 4),
        "lllite_conditioning1.proj.weight": (16, 16, 1, 1),
    }
    for name in (f"lllite_dit_blocks_{i}_{target}" for i in range(3) for target in targets):
        shapes[f"{name}.down.weight"], shapes[f"{name}.cond_to_film.weight"] = (8, 64), (16, 16)
    state = {name: torch.empty(shape) for name, shape in shapes.items()}
    patch = model_patch(lambda **how: comfy.ldm.anima.lllite.AnimaLLLite(state, {}, **how))
    node = nodes_model_patch.AnimaLLLiteApply()
    with torch.inference_mode():
        return node.apply_patch(model or scene.model, patch, picture(scene.size, seed), strength, 0.0, 1.0)[0]


def uni3c(scene, model=None, strength=1.0, seed=0):
    """Return Wan with a Uni3C ControlNet."""
    patch = model_patch(
        lambda **how: comfy.ldm.wan.uni3c.WanUni3CControlnet(
            in_channels=36, conv_out_dim=48, dim=48, ffn_dim=64, num_heads=2, num_layers=3, time_embed_dim=48,
            out_proj_dim=48, mid_channels=8, **how,
        )
    )  # fmt: skip
    node = nodes_model_patch.WanUni3CControlnetApply()
    with torch.inference_mode():
        video = picture(scene.size, seed).repeat(9, 1, 1, 1)
        return node.apply_patch(model or scene.model, patch, video_vae(), video, strength, 0.0, 1.0)[0]


class OtherPack:
    """A patch of another pack: it writes into all image tokens."""

    def __init__(self, strength=0.3):
        self.strength = strength

    def __call__(self, arguments):
        tokens = arguments["img"]
        tokens += self.strength * torch.sin(tokens.roll(1, -1))
        return arguments


def written(scene, model=None, strength=0.3, seed=0):
    """Return a model with another pack's patch after every block."""
    clone = (model or scene.model).clone()
    patch = OtherPack(strength + seed / 10)
    clone.set_model_double_block_patch(patch)
    clone.set_model_noise_refiner_patch(patch)
    return clone


CONTROLS = {
    "qwen diffsynth": (qwen, diffsynth), "z-image fun": (z_image, fun),
    "z-image fun 1": (z_image, lambda *a, **k: fun(*a, layers=6, **k)), "anima lllite": (anima, lllite),
    "wan uni3c": (wan, uni3c), "qwen, another pack": (qwen, written), "z-image, another pack": (z_image, written),
    "lumina 2, another pack": (lumina2, written),
}  # fmt: skip
"""By name: a model, and a function that gives it a control."""


def mask_of(scene, value=1.0):
    return torch.full((1, *scene.size), value)


def left_half(scene):
    mask = mask_of(scene, 0.0)
    mask[..., : scene.size[1] // 2] = 1
    return mask


def layers_of(pack, scene, *controls):
    """Return LAYERS side by side over the canvas, one a control (hint, strength, start, end)."""
    document = pack("layered_core.document")
    height, width = scene.size
    side = width // len(controls)
    made = [
        document.Layer(
            f"layer {i}", x=i * side, width=side, height=height, prompt="a ball",
            recipe=document.Recipe(control=document.Control(*control)),
        )
        for i, control in enumerate(controls)
    ]  # fmt: skip
    return pack("nodes.layers.socket").write_stack(document.LayerDocument(width, height, tuple(made)))
