"""Two layers with words of their own side by side, Regional Prompt Attention on them, and what a model then
takes for the picture."""

import comfy.samplers
import torch
from graph import regional

WIDGETS = {k: v for k, v in regional("a")["inputs"].items() if k not in ("model", "clip", "layers")}
MODES = ("regions", "joint", "collage", "paint with words")


def halves(regions, left="a red ball", right="a blue star", **more):
    pair = [
        regions.document.Layer(f"layer {i}", x=64 * i, y=0, width=64, height=128, prompt=x, **more)
        for i, x in enumerate((left, right))
    ]
    return regions.layers.write_stack(regions.document.LayerDocument(128, 128, tuple(pair)))


def apply(regions, model, clip, stack=None, **values):
    stack = halves(regions) if stack is None else stack
    return regions.node.execute(model, clip, stack, **{**WIDGETS, **values}).result


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def once(model, positive, negative, sigma=5.0, batch=1, cfg=3.0, seed=0, size=(16, 16)):
    """One look at noise of ``sigma``: the ``input``, what the model takes for the picture (``cond``,
    ``uncond``), and what the sampler is given after guidance (``guided``)."""
    caught = {}
    # In front of all others: what they make of the prediction is in what the sampler is given.
    options = model.clone()
    before = options.model_options.get("sampler_post_cfg_function", [])
    options.model_options["sampler_post_cfg_function"] = [
        lambda a: caught.update(a) or a["denoised"],
        *before,
    ]
    noise = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))

    def look(m, x, sigmas, extra_args=None, **_):
        caught["guided"] = m(x, sigmas[:1].expand(len(x)), **extra_args)
        return caught["guided"]

    guider = comfy.samplers.CFGGuider(options)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    with torch.inference_mode():
        guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(look), torch.tensor([sigma, 0.0]), seed=0
        )
    return {
        "input": caught["input"],
        "cond": caught["cond_denoised"],
        "uncond": caught["uncond_denoised"],
        "guided": caught["guided"],
    }


def predicted(*model_and_words, **how):
    """Noisy input at ``sigma``, and what the model takes for the picture: conditional and unconditional."""
    seen = once(*model_and_words, **how)
    return seen["input"], seen["cond"], seen["uncond"]


def left_and_right(change):
    """Mean change of both halves of a latent, clear of their border."""
    return float(change[..., :6].abs().mean()), float(change[..., 10:].abs().mean())
