"""Layers from Masks in the real host: with masks and depth of core's nodes, and the picture back to the bit."""

import pytest
import torch
from graph import from_masks, node
from PIL import Image
from torch.nn.functional import interpolate


@pytest.fixture
def scene(host):
    """Write a picture of 64 x 48 pixels, and masks of it as pictures; return a prompt that loads them."""
    noise = torch.Generator().manual_seed(1)
    picture = interpolate(torch.rand(1, 3, 6, 8, generator=noise), (48, 64), mode="bicubic")[0].clamp(0, 1)
    Image.fromarray((picture.movedim(0, -1) * 255).byte().numpy()).save(host.input / "scene.png")
    for name, box in (("left", (4, 8, 36, 40)), ("right", (30, 12, 60, 44))):
        mask = Image.new("L", (64, 48), 0)
        mask.paste(255, box)
        mask.convert("RGB").save(host.input / f"{name}.png")
    return {
        "p": node("LoadImage", image="scene.png"),
        "a": node("LoadImageMask", image="left.png", channel="red"),
        "b": node("LoadImageMask", image="right.png", channel="red"),
        "m": node("MaskBatchTest", a=["a", 0], b=["b", 0]),
    }


class MaskBatch:
    """A node that joins two masks, as a segmenter gives them."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "join"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"a": ("MASK",), "b": ("MASK",)}}

    def join(self, a, b):
        return (torch.cat([a, b]),)


@pytest.fixture(autouse=True)
def segmenter(monkeypatch):
    import nodes as comfy_nodes

    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "MaskBatchTest", MaskBatch)


def composite(rules="photoshop", **inputs):
    return {
        "it": from_masks(["p", 0], ["m", 0], **inputs),
        "c": node("LD_LayerComposite", layers=["it", 0], backdrop="transparent", rules=rules),
    }


@pytest.mark.parametrize("band", [0, 3])
def test_layer_composite_gives_the_picture_to_the_bit(host, scene, band):
    prompt = {**scene, **composite(band=band, layer_prompts="a tree\na dog\n")}
    assert torch.equal(host.value(prompt, "c"), host.value(prompt, "p"))


def test_with_hard_edges_the_hosts_own_rules_give_the_8_bit_picture_too(host, scene):
    prompt = {**scene, **composite("comfyui", band=0)}
    pictures = (host.value(prompt, name) for name in ("c", "p"))
    assert torch.equal(*((x * 255).round() for x in pictures))


def test_layers_have_names_words_noise_and_holes(host, scene, pack):
    prompt = {**scene, **composite(layer_prompts="a green tree\na dog\na cat")}
    document = pack("nodes.layers.socket").read_stack(host.value(prompt, "it"))
    assert [x.name for x in document] == ["background", "a green tree", "a dog"]  # the smaller one is on top
    assert [x.prompt for x in document] == ["", "a green tree", "a dog"]
    assert [x.recipe.noise for x in document] == [0, 0, 0]
    holes = host.value(prompt, "it", 1)
    assert holes.shape == (1, 48, 64)
    assert float(holes[0, 24, 20]) == 1
    assert float(holes[0, 2, 2]) == 0
    assert host.value(prompt, "it", 2) == "There are 3 prompts for 2 masks; those from 'a cat' on are unused."


@pytest.mark.parametrize("near", ["left", "right"])
def test_lighter_depth_is_nearer_and_lies_on_top(host, scene, pack, near):
    depth = {"d": node("LoadImage", image=f"{near}.png")}
    prompt = {**scene, **depth, **composite(layer_prompts="left\nright", depth=["d", 0])}
    document = pack("nodes.layers.socket").read_stack(host.value(prompt, "it"))
    assert document.layers[-1].name == near


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"depth": ["p", 0]},
            "depth is 'a coloured picture'; allowed: a grey one, lighter where it is nearer",
        ),
        ({"masks": ["small", 0]}, "masks: size is '40x40'; allowed: the picture's, 64x48"),
        ({"background": ["square", 0]}, "background: size is '32x32'"),
        ({"image": ["two", 0]}, "image: number of pictures is 2; allowed: 1. Take one out"),
    ],
)
def test_bad_input_is_named(host, scene, changed, says):
    prompt = {
        **scene,
        "small": node("SolidMask", value=1.0, width=40, height=40),
        "square": node("EmptyImage", width=32, height=32, batch_size=1, color=255),
        "two": node("EmptyImage", width=64, height=48, batch_size=2, color=255),
        **composite(),
    }
    prompt["it"]["inputs"] |= changed
    assert says in host.error_of({**prompt, "end": node("PreviewImage", images=["c", 0])})


def test_no_mask_of_the_segmenter_gives_the_picture_and_says_so(host, scene, pack):
    prompt = {**scene, "m": node("SolidMask", value=0.0, width=64, height=48), **composite()}
    assert torch.equal(host.value(prompt, "c"), host.value(prompt, "p"))
    assert host.value(prompt, "it", 2) == "Mask 1 ('layer 1') is empty and was left out."
