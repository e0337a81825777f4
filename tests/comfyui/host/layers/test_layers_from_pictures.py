"""Layers from Pictures in the real host: what goes through ComfyUI's own nodes, and what is refused."""

import numpy as np
import pytest
import torch
from decompose_scene import from_pictures
from graph import fill_behind, node
from PIL import Image

import nodes as comfy_nodes

LAYERS = {
    **{f"l{i}": node("LoadImage", image=f"layer_{i}.png") for i in range(3)},
    **{f"m{i}": node("JoinImageWithAlpha", image=[f"l{i}", 0], alpha=[f"l{i}", 1]) for i in range(3)},
    "b0": node("ImageBatch", image1=["m0", 0], image2=["m1", 0]),
    "batch": node("ImageBatch", image1=["b0", 0], image2=["m2", 0]),
    "picture": node("LoadImage", image="whole.png"),
}


@pytest.fixture(autouse=True)
def pictures(host):
    """Write three layers, soft and opaque, and a picture that they only resemble."""
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, (3, 40, 56, 4), dtype=np.uint8)
    pixels[0, ..., 3] = 255
    pixels[1:, ..., 3] = 0
    pixels[1, 5:20, 6:30, 3] = 128
    pixels[1, 8:17, 9:27, 3] = 254
    pixels[2, 15:33, 20:50, 3] = 200
    for i, layer in enumerate(pixels):
        Image.fromarray(layer).save(host.input / f"layer_{i}.png")
    Image.fromarray(random.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(host.input / "whole.png")


def composite(layers, rules):
    return node("LD_LayerComposite", layers=[layers, 0], backdrop="transparent", rules=rules)


def test_layer_composite_of_the_layers_is_the_original_to_the_bit(host):
    prompt = {**LAYERS, "it": from_pictures(["batch", 0], original=["picture", 0])}
    picture = host.value(prompt, "picture")
    assert torch.equal(host.value({**prompt, "end": composite("it", "photoshop")}, "end"), picture)


def test_by_cores_rules_hard_edges_are_exact_to_8_bits_and_the_original_is_near(host, pack):
    """Soft edges are mixed in linear light there, so that no colours fit both rules."""
    prompt = {**LAYERS, "it": from_pictures(["batch", 0], original=["picture", 0])}
    picture, shown = (
        host.value(prompt, "picture"),
        host.value({**prompt, "end": composite("it", "comfyui")}, "end"),
    )
    document = pack("nodes.layers.socket").read_stack(host.value(prompt, "it"))
    alphas = pack("layered_core.canvas.masks").layer_alphas(document)
    hard = ((alphas == 0) | (alphas == 1)).all(0)
    assert float(hard.float().mean()) > 0.5
    assert torch.equal((255 * shown[0][hard]).round(), (255 * picture[0][hard]).round())


def test_core_nodes_pass_the_layers_and_their_origin_on(host, pack):
    key = pack("nodes.layers.socket").KEY
    made = from_pictures(
        ["batch", 0],
        names="sky\nglass\nball",
        original=["picture", 0],
        made_by="a model",
        prompt="a scene",
        seed=9,
    )
    prompt = {
        **LAYERS,
        "it": made,
        "more": node("AddLayer", image=["picture", 0], layers=["it", 0], name="top"),
    }
    items = host.value(prompt, "more")["layers"]
    assert [item["name"] for item in items] == ["sky", "glass", "ball", "top"]
    wanted = {"model": "a model", "prompt": "a scene", "seed": 9}
    assert [item[key]["origin"] for item in items[:3]] == [{**wanted, "slot": i} for i in range(3)]
    document = pack("nodes.layers.socket").read_stack({"version": 1, "layers": items[:3], "canvas": (56, 40)})
    assert [(x.prompt, x.recipe.noise) for x in document] == [("sky", 0), ("glass", 0), ("ball", 0)]
    assert document.prompt == "a scene"


def test_the_report_tells_what_was_left_out_and_how_far_the_pictures_were_from_the_original(host):
    empty = {
        "clear": node("EmptyImage", width=56, height=40, batch_size=1, color=0),
        "mask": node("SolidMask", value=1.0, width=56, height=40),
        "nothing": node("JoinImageWithAlpha", image=["clear", 0], alpha=["mask", 0]),
        "all": node("ImageBatch", image1=["batch", 0], image2=["nothing", 0]),
    }
    prompt = {**LAYERS, **empty, "it": from_pictures(["all", 0], original=["picture", 0])}
    lines = host.value(prompt, "it", 1).splitlines()
    assert lines[0] == "Picture 4, 'layer 4', is empty and was left out."
    assert lines[1].startswith("The pictures as they came, put together, differ from the original by ")


def test_the_whole_picture_in_front_becomes_no_layer(host, pack):
    prompt = {**LAYERS, "it": from_pictures(["batch", 0], first="the whole picture")}
    document = pack("nodes.layers.socket").read_stack(host.value(prompt, "it"))
    assert len(document) == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"image": ["picture", 0]},
            "image: number of channels is 3; allowed: 4, RGBA. Decode with the model's VAE",
        ),
        (
            {"image": ["video", 0]},
            "image: number of layers is 81; allowed: 1..50. A model's layers are a batch",
        ),
        ({"original": ["batch", 0]}, "original: number of pictures is 3; allowed: 1. Take one out"),
        (
            {"original": ["tall", 0]},
            "image: size is '56x40'; allowed: the original's shape, 40x96 at any scale",
        ),
    ],
)
def test_what_cannot_become_layers_is_named(host, monkeypatch, change, text):
    class Video:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "give"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            return {"required": {}}

        def give(self):
            return (torch.rand(81, 8, 8, 4),)

    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "TestVideo", Video)
    extra = {
        "video": node("TestVideo"),
        "tall": node("EmptyImage", width=40, height=96, batch_size=1, color=9),
    }
    made = from_pictures(**{"image": ["batch", 0], "original": ["picture", 0], **change})
    assert text in host.error_of({**LAYERS, **extra, "it": made, "end": node("TestCatch", value=["it", 0])})


def test_the_hole_of_an_added_background_is_filled_and_the_composite_stays(host, pack):
    prompt = {**LAYERS, "it": from_pictures(["b1", 0], original=["picture", 0])}
    prompt["b1"] = node("ImageBatch", image1=["m1", 0], image2=["m2", 0])
    prompt["filled"] = fill_behind(["it", 0], background=["l0", 0])
    read = pack("nodes.layers.socket").read_stack
    before, after = (read(host.value(prompt, k)).layer("background").image[..., 3] for k in ("it", "filled"))
    assert bool((before == 0).any())
    assert bool((after == 1).all())
    shown = host.value({**prompt, "end": composite("filled", "photoshop")}, "end")
    assert torch.equal(shown, host.value(prompt, "picture"))
