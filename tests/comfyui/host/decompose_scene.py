"""A small random Qwen-Image-Layered with a VAE that knows alpha, and prompts that take pictures apart with it."""

import functools

import comfy.ldm.wan.vae
import comfy.sd
import tiny_transformers as tiny
import torch
from graph import node


@functools.cache
def layered_model():
    """Return MODEL, CLIP and VAE, built of ComfyUI's own classes."""
    model = tiny.model("qwen", use_additional_t_cond=True, default_ref_method="negative_index")
    return model, tiny.clip("qwen"), rgba_vae()


def rgba_vae():
    """Return a small random VAE with the structure of Qwen-Image-Layered's: four channels in and out."""
    with torch.inference_mode(False):
        network = comfy.ldm.wan.vae.WanVAE(
            dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], image_channels=4, conv_out_channels=4, dropout=0.0,
        )  # fmt: skip
        tiny.fill(network)
        return comfy.sd.VAE(sd=network.state_dict())


class LayeredModel:
    """A node that outputs :func:`layered_model`."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def load(self):
        return layered_model()


def decompose(**inputs):
    values = {
        "mode": "all layers", "names": "", "prompt": "a red ball in a meadow", "negative": "", "layer_count": 2,
        "long_side": 64, "seed": 3, "steps": 1, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple",
    }  # fmt: skip
    loaded = {"model": ["layered", 0], "clip": ["layered", 1], "vae": ["layered", 2], "image": ["picture", 0]}
    return node("LD_DecomposePicture", **{**values, **loaded, **inputs})


def scene(**inputs):
    """Return a prompt that takes a picture of 60x40 pixels apart."""
    return {
        "layered": node("TestLayeredModel"),
        "picture": node("EmptyImage", width=60, height=40, batch_size=1, color=0x3080C0),
        "it": decompose(**inputs),
    }


def from_pictures(image, **inputs):
    return node("LD_LayersFromPictures", image=image, **{"names": "", "first": "a layer", **inputs})
