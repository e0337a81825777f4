"""A layer with a look of its own in one run: a learnt word, a LoRA, a ControlNet's hint and a freedom of its own,
beside a layer that is frozen."""

import pytest
import torch
from graph import KEPT, from_image, node
from lora_scene import unet_shapes, write_lora

BALL, HOUSE = (8, 64, 48, 48), (64, 40, 60, 60)
"""Boxes of the two things: left, top, width and height, pixels."""


def thing(what, colour, size, name, layers=None, **fields):
    """Return nodes that draw a thing and lay it on a stack, by the keys ``name`` and ``name`` with " picture"."""
    picture = node("LD_StorybookPicture", what=what, colour=colour, material="solid", size=size, seed=0)
    drawn = f"{name} picture"
    below = {} if layers is None else {"layers": [layers, 0]}
    laid = from_image(image=[drawn, 0], mask=[drawn, 1], name=name, **below, **fields)
    return {drawn: picture, name: laid}


@pytest.fixture(scope="module")
def lora(host):
    model = host.value({"loader": node("LD_LoadDemoModel")}, "loader")
    return write_lora("own_look", unet_shapes(model, lambda name: "attn2" in name), std=0.5)


@pytest.fixture
def shown(host, lora):
    """Return the picture, ``[H, W, 3]``, of a graph in which the ball lacks some parts, and where it is frozen."""

    def of(*without):
        look = {
            "embedding": "none" if "word" in without else "keep",
            **({"loras": "none"} if "lora" in without else {"loras": "as text", "loras.text": lora}),
            "control_hint": "canny",
            **({"control_strength": "set", "control_strength.to": 0.0} if "hint" in without else {}),
            "noise": "set",
            "noise.to": 1.0 if "noise" in without else 0.5,
        }
        (left, top, size, _), (x, y, large, _) = BALL, HOUSE
        prompt = {
            "loader": node("LD_LoadDemoModel"),
            "net": node("LD_LoadDemoControlNet"),
            **thing("meadow", "red", 128, "meadow", prompt="in a meadow", noise=0.9),
            **thing("house", "white", large, "house", "meadow", prompt="a white house", noise=0.0, x=x, y=y),
            **thing("ball", "red", size, "ball", "house", prompt="a red ball", x=left, y=top),
            "learn": node(
                "LD_LearnWords", model=["loader", 0], clip=["loader", 1], vae=["loader", 2], layers=["ball", 0],
                which="ball", name="own_look", form="values", steps=4, batch=1, rate=0.5, vectors=1, context="grey",
                seed=0, overwrite=True,
            ),
            "look": node("LD_EditLayer", layers=["learn", 0], layer="ball", **{**KEPT, **look}),
            "regions": node(
                "LD_RegionalPromptAttention", model=["loader", 0], clip=["loader", 1], layers=["look", 0],
                prompt="a white house and a red ball in a meadow", negative="", mode="regions", schedule="auto",
                strength=1.0, start=0.0, end=1.0, global_weight=0.2, emphasis=0.5, guidance=1.0, growth=0.0,
                auto_negative=False, append=False, record=False, rescale=0.0,
            ),
            "freedom": node(
                "LD_PerLayerSDEdit", model=["regions", 0], vae=["loader", 2], layers=["look", 0], background=1.0,
                blur=0, threshold="absolute", noise="fixed", dilation=0, softness=0.0,
            ),
            "edges": node("LD_LayerControlHint", layers=["look", 0], outline=True),
            "control": node(
                "LD_MaskedControlNetApply", positive=["regions", 1], negative=["regions", 2], control_net=["net", 0],
                layers=["look", 0], image=["edges", 0], strength=1.0, start_percent=0.0, end_percent=1.0,
                mode="balanced",
            ),
            "sample": node(
                "KSampler", model=["freedom", 0], positive=["control", 0], negative=["control", 1],
                latent_image=["freedom", 1], seed=5, steps=4, cfg=3.0, sampler_name="euler", scheduler="normal",
                denoise=1.0,
            ),
            "decoded": node("VAEDecode", samples=["sample", 0], vae=["loader", 2]),
            "pasted": node(
                "LD_PasteBack", image=["decoded", 0], paste=["freedom", 3], blend="feather", match_colours=False
            ),
        }  # fmt: skip
        return host.value(prompt, "pasted")[0], host.value(prompt, "freedom", 2)[0, ..., 0] == 0

    return of


def inside(picture, box):
    x, y, width, height = box
    return picture[y : y + height, x : x + width]


def test_a_word_a_lora_a_hint_and_a_freedom_act_in_their_layer_in_one_run(shown):
    whole, frozen = shown()
    assert 0.05 < float(frozen.float().mean()) < 0.3
    elsewhere = torch.ones(128, 128, dtype=torch.bool)
    for box in (BALL, HOUSE):
        inside(elsewhere, tuple(v + d for v, d in zip(box, (-8, -8, 16, 16), strict=True)))[:] = False
    for part in ("word", "lora", "hint", "noise"):
        change = (shown(part)[0] - whole).abs().mean(-1)
        assert float(inside(change, BALL).mean()) > 0.001, part
        assert float(inside(change, BALL).mean()) > 3 * float(change[elsewhere].mean()), part
        assert float(change[frozen].max()) == 0, part
