"""Guided predictions with Regional Prompt Attention, under ComfyUI's guiders, and the same by their formulas."""

import comfy.patcher_extension
import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from regional_scene import apply, encode, once


def plainly(seen, cfg=3.0):
    """Apply ComfyUI's own guidance to both halves."""
    return seen["uncond"] + (seen["cond"] - seen["uncond"]) * cfg


def guided(regions, loaded, sigma=5.0, batch=1, cfg=3.0, **values):
    return once(*apply(regions, *loaded, **values), sigma=sigma, batch=batch, cfg=cfg)


def left_half(regions):
    """A stack of one layer, on the left half of the canvas."""
    layer = regions.document.Layer("ball", x=0, y=0, width=64, height=128, prompt="a red ball")
    return regions.layers.write_stack(regions.document.LayerDocument(128, 128, (layer,)))


def dual(regions, loaded, style, guidance, sigma=5.0, cfg1=3.0, cfg2=2.0, function=None, **values):
    """Run Dual CFG Guider once; return the sampler's input after guidance and before (``input``), and the
    three predictions, by name. ``function``: another pack's function on the prediction."""
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip, left_half(regions), guidance=guidance, **values)
    seen = {}
    if function is not None:
        out.set_model_sampler_post_cfg_function(function)

    def keep(executor, unwrapped, conds, *more):
        predictions = executor(unwrapped, conds, *more)
        if len(conds) < 3:
            return predictions
        seen["input"] = more[0]
        seen.update(zip(("negative", "middle", "positive"), predictions, strict=True))
        return predictions

    out.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "test", keep)
    guider = Guider_DualCFG(out)
    guider.set_conds(positive, encode(clip, "a white house"), negative)
    guider.set_cfg(cfg1, cfg2, nested=style == "nested")
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def look(m, x, sigmas, extra_args=None, **_):
        seen["guided"] = m(x, sigmas[:1].expand(len(x)), **extra_args)
        return seen["guided"]

    sampler, sigmas = comfy.samplers.KSAMPLER(look), torch.tensor([sigma, 0.0])
    with torch.inference_mode():
        guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=0)
    return seen


def dually(seen, style, cfg1, cfg2):
    """Dual CFG Guider's formula, with a scale of the positive's words for each cell."""
    negative, middle, positive = (seen[k] for k in ("negative", "middle", "positive"))
    if style == "nested":
        return negative + cfg2 * (middle + cfg1 * (positive - middle) - negative)
    return negative + cfg2 * (middle - negative) + cfg1 * (positive - middle)
