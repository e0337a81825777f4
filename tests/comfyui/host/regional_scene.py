"""Two layers side by side with words of their own, Regional Prompt Attention on them, and the model's
prediction of the picture."""

import comfy.samplers
import torch
from graph import regional

WIDGETS = {k: v for k, v in regional("a")["inputs"].items() if k not in ("model", "clip", "layers")}
WORDS = "a red ball in a meadow"
_PREDICTED = ("input", "cond_denoised", "uncond_denoised")
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


def everywhere(regions, words=WORDS, **more):
    """A stack of one layer over the whole canvas."""
    layer = regions.document.Layer("all", width=128, height=128, prompt=words, **more)
    return regions.layers.write_stack(regions.document.LayerDocument(128, 128, (layer,)))


def as_layer(regions, model, clip, words=WORDS, **values):
    """Return the model, positive and negative of a layer over the whole canvas that gets all attention."""
    settings = {"prompt": "a white house", "global_weight": 0.0, "emphasis": 0.0, **values}
    return apply(regions, model, clip, everywhere(regions, words), **settings)


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def once(model, positive, negative, sigma=5.0, batch=1, cfg=3.0, seed=0, size=(16, 16)):
    """Run the model once on noise of ``sigma``. Return its ``input``, its predictions of the picture
    (``cond``, ``uncond``), and the sampler's input after guidance (``guided``)."""
    caught = {}
    # This function comes before all others, so that the sampler's input includes their changes of the prediction.
    options = model.clone()
    before = options.model_options.get("sampler_post_cfg_function", [])
    options.model_options["sampler_post_cfg_function"] = [
        lambda a: caught.update({k: a[k] for k in _PREDICTED}) or a["denoised"],
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
    """Return the noisy input at ``sigma`` and the model's cond and uncond predictions of the picture."""
    seen = once(*model_and_words, **how)
    return seen["input"], seen["cond"], seen["uncond"]


def left_and_right(change):
    """Return the mean change of the left and the right half of a latent, without the columns at their
    border."""
    return float(change[..., :6].abs().mean()), float(change[..., 10:].abs().mean())


def in_tiles(model, boxes, together=False, change=lambda x: x):
    """A clone whose passes are over tiles ``(left, right)`` of the latents, one after the other or in one
    batch, laid side by side."""

    def tiled(apply_model, args):
        x, t, c = args["input"], args["timestep"], args["c"]
        tiles, outs = [change(x[..., a:b]) for a, b in boxes], []
        if together:
            n = len(tiles)
            many = {
                k: v.repeat(n, *[1] * (v.ndim - 1)) if isinstance(v, torch.Tensor) else v
                for k, v in c.items()
            }
            outs = apply_model(torch.cat(tiles), t.repeat(n), **many).split(len(x))
        else:
            outs = [apply_model(tile, t, **c) for tile in tiles]
        return torch.cat(outs, -1)

    clone = model.clone()
    clone.set_model_unet_function_wrapper(tiled)
    return clone
