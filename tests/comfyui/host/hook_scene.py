"""A CLIP with hooks: a LoRA on the UNet and the text encoder, with or without keyframes."""

import comfy.hooks
import comfy.lora
import torch
from comfy_extras.nodes_hooks import SetClipHooks

TWO = ((0.0, 1.0), (0.5, 0.2))
THREE = ((0.0, 0.3), (0.4, 1.0), (0.8, 0.0))
"""Start and strength of every keyframe."""


def made(model, clip):
    """A LoRA on all cross-attention keys of the UNet and on the text encoder's MLPs."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    names = {k: v for k, v in keys.items() if "attn2_to_k" in k and k.startswith("lora_unet")}
    of_model, of_texts = model.model.state_dict(), clip.cond_stage_model.state_dict()
    weights = {name: of_model[key] for name, key in names.items()}
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    names = {k: v for k, v in keys.items() if "mlp_fc1" in k and k.startswith("lora_te_")}
    weights |= {name: of_texts[key] for name, key in names.items()}
    generator = torch.Generator().manual_seed(0)
    lora = {}
    for name, weight in weights.items():
        lora[f"{name}.lora_up.weight"] = torch.randn(len(weight), 2, generator=generator) * 0.3
        lora[f"{name}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator) * 0.3
    return lora


def with_hooks(model, clip, keyframes=(), schedule=True, to_model=True):
    """Return a CLIP with hooks that no run has used: ComfyUI's keyframes remember the sigma of the last one."""
    hooks = comfy.hooks.create_hook_lora(made(model, clip), 1.0, 1.0)
    if keyframes:
        group = comfy.hooks.HookKeyframeGroup()
        for start, strength in keyframes:
            group.add(comfy.hooks.HookKeyframe(strength, start))
        hooks.set_keyframes_on_hooks(group)
    return SetClipHooks().apply_hooks(clip, schedule, to_model, hooks)[0]
