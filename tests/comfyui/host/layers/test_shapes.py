"""Every node takes the same shapes of IMAGE and MASK, and names the input and the shape of any other."""

import re

import pytest
import torch
from graph import from_image, load, node
from PIL import Image
from sampling import LOADER, of_ours
from test_no_leaks import EXAMPLES

import nodes as comfy_nodes

PICTURES = [
    ("LD_AddLayerByPrompt", "image"), ("LD_AttentionPreview", "image"), ("LD_DecomposePicture", "image"),
    ("LD_FillBehindLayers", "background"), ("LD_FindPlace", "before"), ("LD_FindPlace", "draft"),
    ("LD_JoinLayer", "image"), ("LD_LayerFromImage", "image"), ("LD_LayersFromLayout", "image"),
    ("LD_LayersFromMasks", "background"), ("LD_LayersFromMasks", "depth"), ("LD_LayersFromMasks", "image"),
    ("LD_LayersFromPictures", "image"), ("LD_LayersFromPictures", "original"), ("LD_LayoutMetrics", "image"),
    ("LD_MaskedControlNetApply", "image"),
    ("LD_PasteBack", "image"), ("LD_RegenerateLayers", "image"), ("LD_SplitFrames", "image"),
    ("LD_StageLayer", "image"), ("LD_StorybookMasks", "image"), ("LD_TransparentDecode", "image"),
    ("LD_TransparentEncode", "image"),
]  # fmt: skip
UNREAD = [("LD_ArrangeLayers", "picture")]
"""Inputs of which only the connection counts."""
MASKS = [
    ("LD_AddLayerByPrompt", "mask"), ("LD_JoinLayer", "alpha"), ("LD_LayerFromImage", "mask"),
    ("LD_LayersFromMasks", "masks"), ("LD_LayoutMetrics", "detections"),
    ("LD_MaskedControlNetApply", "mask"), ("LD_MaskedModelPatch", "mask"),
    ("LD_RegenerateLayers", "mask"), ("LD_TransparentEncode", "mask"),
]  # fmt: skip


class Give:
    """A node that gives any value."""

    value = None
    RETURN_TYPES = ("*",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls):  # noqa: N802
        return float("nan")

    def give(self):
        return (Give.value,)


@pytest.fixture(autouse=True)
def odd_input(host, monkeypatch):
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "TestGive", Give)
    Image.new("RGBA", (16, 16), (255, 0, 0, 255)).save(host.input / "red.png")


def given(node_id, **inputs):
    """Return the example of a node with ``inputs`` of it changed, and a node "odd" that gives the value."""
    example = EXAMPLES[node_id]
    it = {**example["it"], "inputs": {**example["it"]["inputs"], **inputs}}
    return {**LOADER, **example, "it": it, "odd": node("TestGive")}


def error_of(host, prompt, value):
    Give.value = value
    return host.error_of({**prompt, "end": node("TestCatch", value=["it", 0])})


def test_no_input_is_forgotten(host):
    found = {"IMAGE": [], "MASK": []}
    for node_id in of_ours():
        inputs = comfy_nodes.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
        for name, kind in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
            if kind[0] in found:
                found[kind[0]].append((node_id, name))
    assert sorted(found["IMAGE"]) == sorted(PICTURES + UNREAD)
    assert sorted(found["MASK"]) == sorted(MASKS)


@pytest.mark.parametrize("shape", [(1, 16, 16, 1), (1, 16, 16, 2), (3, 16, 16, 5), (16, 16, 3)])
@pytest.mark.parametrize(("node_id", "name"), PICTURES)
def test_pictures_of_other_shapes_are_refused_by_their_shape(host, node_id, name, shape):
    text = error_of(host, given(node_id, **{name: ["odd", 0]}), torch.full(shape, 0.5))
    allowed = "[batch, height, width, 3 or 4]"
    assert f"{name}'s shape is {list(shape)}; allowed: {allowed}" in text
    if node_id in ("LD_JoinLayer", "LD_LayerFromImage", "LD_StageLayer"):
        assert re.match(r"layer '(red|layer)': image's", text)


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (2, 3, 16, 16), (16,), (1, 0, 16)])
@pytest.mark.parametrize(("node_id", "name"), MASKS)
def test_masks_of_other_shapes_are_refused_by_their_shape(host, node_id, name, shape):
    text = error_of(host, given(node_id, **{name: ["odd", 0]}), torch.full(shape, 0.5))
    allowed = "[batch, height, width], [height, width], or either with one channel"
    assert f"{name}'s shape is {list(shape)}; allowed: {allowed}" in text


def masked(node_id, name):
    """Return a prompt in which a node gets a mask of 32x32 pixels, and the slot whose value it decides."""
    picture = {"p": node("EmptyImage", width=32, height=32, batch_size=1, color=0x80FF40)}
    mask = {name: ["odd", 0]}
    if node_id == "LD_LayerFromImage":
        return {**given(node_id, image=["p", 0], **mask), **picture}, 0
    if node_id == "LD_JoinLayer":
        return {**given(node_id, image=["p", 0], **mask), **picture}, 0
    if node_id == "LD_LayoutMetrics":
        return given(node_id, **mask), 2
    if node_id == "LD_AddLayerByPrompt":
        both = given(node_id, image=["p", 0], steps=1, width=0, height=0, alpha="mask", feather=0, **mask)
        return {**both, **picture}, 3
    if node_id == "LD_RegenerateLayers":
        return {**given(node_id, image=["p", 0], **mask), **picture, "a": from_image(image=["p", 0])}, 4
    if node_id == "LD_TransparentEncode":
        return {**given(node_id, image=["p", 0], **mask), **picture}, 0
    return given(node_id, **mask), 0


def tensors(value):
    """Return every tensor in a node's output, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, float):
        return [torch.tensor(value)]
    if type(value).__name__ == "MaskedControl":
        return [value.map.masks]
    if hasattr(value, "model_options"):
        patches = value.model_options["transformer_options"]["patches"]["double_block"]
        return [patch.mask.map.masks for patch in patches]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for part in parts for t in tensors(part)]


@pytest.mark.parametrize(("node_id", "name"), MASKS)
def test_a_mask_acts_alike_in_each_of_its_shapes(host, node_id, name):
    prompt, slot = masked(node_id, name)
    mask = torch.zeros(32, 32)
    mask[4:20, 8:30] = 1
    mask[20:24, 8:30] = 0.5
    out = []
    for shaped in (mask[None], mask, mask[None, None], mask[None, ..., None]):
        Give.value = shaped
        out.append(tensors(host.value(prompt, "it", slot)))
    assert out[0]
    for other in out[1:]:
        assert all(torch.equal(a, b) for a, b in zip(out[0], other, strict=True))


def test_a_batch_of_masks_with_a_channel_is_a_batch(host, pack):
    masks = torch.rand(3, 8, 8)
    Give.value = masks[:, None]
    prompt = given("LD_LayerFromImage", image=["p", 0], mask=["odd", 0])
    prompt["p"] = node("EmptyImage", width=8, height=8, batch_size=3, color=255)
    document = pack("nodes.layers.socket").read_stack(host.value(prompt, "it"))
    assert torch.equal(torch.stack([layer.mask for layer in document]), 1 - masks)


@pytest.mark.parametrize("shape", [(8, 8), (1, 1, 8, 8), (1, 8, 8, 1)])
def test_a_layer_of_another_pack_has_its_mask_in_any_shape(pack, shape):
    mask = torch.rand(8, 8)
    item = {"image": torch.ones(1, 8, 8, 3), "mask": mask.reshape(shape), "type": "raster", "name": "ball"}
    (layer,) = pack("nodes.layers.socket").read_stack({"version": 1, "layers": [item]})
    assert torch.equal(layer.mask, 1 - mask)


def test_a_layer_of_another_pack_without_a_batch_is_refused_by_its_shape(host):
    Give.value = {
        "version": 1,
        "canvas": (99, 99),
        "layers": [{"image": torch.ones(99, 99, 3), "name": "ball"}],
    }
    prompt = {"odd": node("TestGive"), "a": load("red.png", layers=["odd", 0])}
    text = host.error_of({**prompt, "end": node("LD_LayerPreview", layers=["a", 0], size=64)})
    assert "layer 'ball': image's shape is [99, 99, 3]" in text


def test_stage_layer_refuses_a_batch_by_name(host):
    text = error_of(host, given("LD_StageLayer", image=["odd", 0]), torch.rand(3, 16, 16, 3))
    assert text.startswith("layer 'red': number of pictures in image is 3; allowed: 1. Take one out")


@pytest.mark.parametrize("name", ["before", "draft"])
def test_find_place_refuses_a_batch_by_name(host, name):
    text = error_of(host, given("LD_FindPlace", **{name: ["odd", 0]}), torch.rand(2, 32, 32, 3))
    assert text.startswith(f"{name}: number of pictures is 2; allowed: 1. Take one out")


def test_a_given_picture_of_layer_diffuse_is_refused_by_its_shape(pack):
    apply, errors = pack("nodes.transparency.layer_diffuse_apply"), pack("layered_core.errors")
    with pytest.raises(errors.LayeredError, match=r"background's shape is \[1, 8, 8, 2\]"):
        apply._picture("background", {"background": torch.ones(1, 8, 8, 2), "mode": "any"})
