"""Layered Rendering on two layers side by side, and its parts where a test looks into a run."""

import comfy.samplers
import torch
from graph import rendering
from regional_scene import halves
from sampling import sample

import nodes as comfy_nodes

WIDGETS = {k: v for k, v in rendering("a")["inputs"].items() if k not in ("model", "clip", "layers")}
PLAIN = {"then": "prompt", "strength": 0.0, "share": 1.0}
"""Layers kept apart for the whole run, and nothing planted."""


def render(regions, model, clip, stack=None, **values):
    """Return model, positive and negative of the node."""
    node = comfy_nodes.NODE_CLASS_MAPPINGS["LD_LayeredRendering"]
    stack = halves(regions) if stack is None else stack
    return node.execute(model, clip, stack, **{**WIDGETS, **values}).result


def rendered(regions, loaded, stack=None, **values):
    """Sample the storybook in three steps."""
    return sample(*render(regions, *loaded, stack, **values))


def guided(model, positive, negative, noise, sigmas, *, cfg=3.0, sampler="euler", seed=0, **more):
    """Sample with ComfyUI's guider from given noise; return latents in the VAE's scale."""
    with torch.inference_mode():
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object(sampler), sigmas, seed=seed,
            disable_pbar=True, **more,
        )  # fmt: skip
