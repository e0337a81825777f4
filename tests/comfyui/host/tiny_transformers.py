"""Tiny transformers of ComfyUI's own classes with random weights, and text encoders of its own tokenizers and
templates that give every token the vector of its id."""

import functools

import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.supported_models as supported
import comfy.supported_models_base
import comfy.text_encoders.anima
import comfy.text_encoders.flux
import comfy.text_encoders.krea2
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import torch
from table_texts import POOLED, encoder

WIDTH = 48
_JOINT = {
    "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 4, "depth": 2, "depth_single_blocks": 2,
    "context_in_dim": WIDTH,
}  # fmt: skip
_FLUX = {
    **_JOINT, "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED, "axes_dim": [4, 6, 6],
    "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
_LUMINA = {
    "patch_size": 2, "in_channels": 16, "dim": 64, "cap_feat_dim": WIDTH, "n_layers": 3, "n_refiner_layers": 1,
    "qk_norm": True, "n_heads": 4, "n_kv_heads": 2, "axes_dims": [4, 6, 6], "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0, "ffn_dim_multiplier": 1.0, "multiple_of": 32,
}  # fmt: skip
_ANIMA = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "concat_padding_mask": True,
    "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True,
    "adaln_lora_dim": 16, "num_blocks": 3, "num_heads": 4, "extra_per_block_abs_pos_emb": False,
    **{f"{kind}_h_extrapolation_ratio": 4.0 if kind == "rope" else 1.0 for kind in ("rope", "extra")},
    **{f"{kind}_w_extrapolation_ratio": 4.0 if kind == "rope" else 1.0 for kind in ("rope", "extra")},
    **{f"{kind}_t_extrapolation_ratio": 1.0 for kind in ("rope", "extra")},
    "rope_enable_fps_modulation": False,
}  # fmt: skip
_SD3 = {
    "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 2, "input_size": None,
    "adm_in_channels": 2 * POOLED, "pos_embed_scaling_factor": None, "num_patches": 64 * 64,
    "pos_embed_max_size": 64, "qk_norm": "rms", "x_block_self_attn_layers": [0], "num_blocks": 3,
    "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 128},
    },
}  # fmt: skip

# Class and configuration of a model, and shape of its latents, [C, h, w] or [C, frames, h, w].
MODELS = {
    "flux": (supported.Flux, _FLUX, (16, 16, 12)),
    "flux2": (
        supported.Flux2,
        {
            **_JOINT, "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "axes_dim": [4, 4, 4, 4],
            "theta": 2000, "patch_size": 1, "qkv_bias": False, "guidance_embed": True, "txt_ids_dims": [3],
            "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
            "default_ref_method": "index", "ref_index_scale": 10.0,
        },
        (128, 8, 6),
    ),
    "chroma": (
        supported.Chroma,
        {
            **_JOINT, "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64, "hidden_dim": 64,
            "n_layers": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2, "qkv_bias": True,
            "txt_ids_dims": [], "vec_in_dim": None,
        },
        (16, 16, 12),
    ),
    "qwen": (
        supported.QwenImage,
        {
            "in_channels": 64, "num_layers": 3, "attention_head_dim": 32, "num_attention_heads": 2,
            "joint_attention_dim": WIDTH, "axes_dims_rope": (8, 12, 12),
        },
        (16, 1, 16, 12),
    ),
    "zimage": (
        supported.Lumina2,
        {
            **_LUMINA, "dim": 256, "n_heads": 8, "n_kv_heads": 8, "axes_dims": [8, 12, 12],
            "rope_theta": 256.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
        },
        (16, 16, 12),
    ),
    "lumina2": (supported.Lumina2, _LUMINA, (16, 16, 12)),
    "sd3": (supported.SD3, _SD3, (16, 16, 12)),
    "krea2": (
        supported.Krea2,
        {
            "features": 64, "tdim": 256, "txtdim": 24, "heads": 4, "kvheads": 2, "multiplier": 2, "layers": 3,
            "patch": 2, "channels": 16, "txtlayers": 2, "txtheads": 4, "txtkvheads": 4,
        },
        (16, 1, 16, 12),
    ),
    "anima": (supported.Anima, _ANIMA, (16, 1, 16, 12)),
}  # fmt: skip


_TEXT = comfy.text_encoders
TEXTS = {
    "flux": (
        _TEXT.flux.FluxTokenizer,
        encoder(
            _TEXT.flux.FluxClipModel,
            clip_l={"width": WIDTH, "masked": False}, t5xxl={"width": WIDTH, "masked": False},
        ),
    ),
    "flux2": (
        _TEXT.flux.KleinTokenizer,
        encoder(_TEXT.flux.Flux2TEModel, qwen3_4b={"width": WIDTH // 3, "layers": 3}),
    ),
    "chroma": (
        _TEXT.pixart_t5.PixArtTokenizer,
        encoder(_TEXT.pixart_t5.PixArtT5XXL, t5xxl={"width": WIDTH}),
    ),
    "qwen": (
        _TEXT.qwen_image.QwenImageTokenizer,
        encoder(_TEXT.qwen_image.QwenImageTEModel, qwen25_7b={"width": WIDTH}),
    ),
    "zimage": (
        _TEXT.z_image.ZImageTokenizer,
        encoder(_TEXT.z_image.ZImageTEModel, qwen3_4b={"width": WIDTH}),
    ),
    "sd3": (
        _TEXT.sd3_clip.SD3Tokenizer,
        encoder(
            _TEXT.sd3_clip.SD3ClipModel,
            clip_l={"width": 20, "masked": False}, clip_g={"width": 28, "masked": False},
            t5xxl={"width": 4096, "masked": False},
        ),
    ),
    "krea2": (
        _TEXT.krea2.Krea2Tokenizer,
        encoder(_TEXT.krea2.Krea2TEModel, qwen3vl_4b={"width": 24, "layers": 2}),
    ),
    "anima": (
        _TEXT.anima.AnimaTokenizer,
        encoder(_TEXT.anima.AnimaTEModel, qwen3_06b={"width": 1024}),
    ),
}  # fmt: skip
TEXTS["lumina2"] = TEXTS["zimage"]


def fill(module, seed=0):
    """Give a network random weights under which activations keep their size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in module.named_buffers():
            if name.endswith("pos_embed"):
                values.copy_(0.1 * torch.randn(values.shape, generator=generator))
        for name, values in module.named_parameters():
            noise = torch.randn(values.shape, generator=generator)
            if values.ndim >= 2:
                values.copy_(noise * values[0].numel() ** -0.5)
            elif "norm" in name and name.endswith(("weight", "scale")):
                values.copy_(1 + 0.1 * noise)
            else:
                values.copy_(0.1 * noise)


def model(family, dtype=torch.float32, compute=torch.float32, **changed):
    """Return a tiny transformer of a family as ComfyUI's MODEL, with weights of ``dtype`` that computes in
    ``compute``."""
    kind, config, _ = MODELS[family]
    if family == "sd3":
        width = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}}
        config = {**config, "context_embedder_config": width}
    made = kind({**kind.unet_config, **config, **changed})
    made.unet_config = {**made.unet_config, **config, **changed}
    made.set_inference_dtype(dtype, None if dtype == compute else compute)
    with torch.inference_mode(False):
        whole = made.get_model({}, device=torch.device("cpu")).eval()
        fill(whole.diffusion_model)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(whole, load_device=cpu, offload_device=cpu)


@functools.cache
def shared_model(family):
    """Return :func:`model` with its defaults, the same for all tests: nodes patch clones of it."""
    return model(family)


@functools.cache
def clip(family):
    """Return a text encoder of a family as ComfyUI's CLIP, the same for all tests."""
    tokenizer, encoder = TEXTS[family]
    with torch.inference_mode(False):
        return comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(tokenizer, encoder), parameters=1)


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sampled(patcher, family, positive, negative, *, cfg=1.0, steps=2, batch=1, size=None, seed=1, noise=None):
    """Sample a few Euler steps from noise; return the latents."""
    shape = MODELS[family][2]
    shape = shape if size is None else (*shape[:-2], *size)
    if noise is None:
        noise = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
        return guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, seed=seed,
            disable_pbar=True,
        )  # fmt: skip
