"""Pictures and a short run for LayerDiffuse on tiny models."""

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.utils
import torch

import nodes as comfy_nodes

SIDE = 64


def picture(seed, channels=3, batch=1, side=SIDE):
    return torch.rand(batch, side, side, channels, generator=torch.Generator().manual_seed(seed))


def sample(model, words, *, batch=6, side=SIDE, steps=2, watch=None):
    if watch is not None:
        model = model.clone()
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "watch", watch)
    with torch.inference_mode():
        latent = {"samples": torch.zeros(batch, 4, side // 8, side // 8)}
        return comfy_nodes.common_ksampler(
            model, 7, steps, 3.0, "euler", "normal", words("a tree"), words(""), latent
        )[0]["samples"]


PICTURES = {"foreground": picture(1, 4), "background": picture(2), "blend": picture(3)}
