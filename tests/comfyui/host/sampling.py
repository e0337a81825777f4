"""The storybook model, sampled in a few steps: by calls and as nodes of a graph."""

import torch
from graph import node

import nodes as comfy_nodes

LOADER = {"loader": node("LD_LoadDemoModel")}


def models(host):
    """Return MODEL, positive and negative conditioning: the same objects that every prompt with "loader" gets
    while the executor caches it."""
    words = {
        "p": node("CLIPTextEncode", text="a red ball in a meadow", clip=["loader", 1]),
        "n": node("CLIPTextEncode", text="", clip=["loader", 1]),
    }
    prompt = {**LOADER, **words}
    return host.value(prompt, "loader", 0), host.value(prompt, "p"), host.value(prompt, "n")


def sample(model, positive, negative, callback=None):
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        if callback is not None:
            model = model.clone()
            model.set_model_sampler_post_cfg_function(callback)
        return comfy_nodes.common_ksampler(model, 7, 3, 3.0, "euler", "normal", positive, negative, latent)[
            0
        ]["samples"]


def explode(arguments):
    raise RuntimeError("broken on purpose")


def of_ours():
    return sorted(k for k in comfy_nodes.NODE_CLASS_MAPPINGS if k.startswith("LD_"))


def words():
    return {
        "p": node("CLIPTextEncode", text="a red ball in a meadow", clip=["loader", 1]),
        "n": node("CLIPTextEncode", text="", clip=["loader", 1]),
    }


def sampled(model, latent, **inputs):
    values = {
        "seed": 7,
        "steps": 3,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    return node(
        "KSampler",
        model=model,
        positive=["p", 0],
        negative=["n", 0],
        latent_image=latent,
        **{**values, **inputs},
    )
