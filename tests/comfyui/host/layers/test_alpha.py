"""A picture with four channels, as VAE Decode gives it of a VAE that knows alpha, is taken as RGBA by every node; the
one that does not use the alpha says so."""

import pytest
import torch
from boot import PACK
from graph import node
from layers.test_shapes import PICTURES, Give, given, odd_input, tensors  # noqa: F401  # a fixture

import nodes as comfy_nodes

SIZES = {
    "LD_AddLayerByPrompt": 64, "LD_AttentionPreview": 128, "LD_DecomposePicture": 48,
    "LD_FillBehindLayers": 64, "LD_FindPlace": 32, "LD_LayersFromMasks": 32,
    "LD_LayoutMetrics": 32, "LD_MaskedControlNetApply": 128, "LD_TransparentDecode": 64,
    "LD_TransparentEncode": 64,
}  # fmt: skip
"""Sides of the picture that the example of a node needs, pixels; 16 for the others."""

KEEP = ("LD_AddLayerByPrompt", "LD_JoinLayer", "LD_LayerFromImage", "LD_SplitFrames")
"""Nodes that put the picture's pixels out again, with those that are transparent."""

OTHERWISE = [("LD_LayersFromPictures", "image"), ("LD_LayersFromMasks", "depth")]
"""Inputs that need an alpha, or whose example has only one thing, which no depth can put before another."""

NOT_USED = ("LD_TransparentDecode",)
"""Nodes that make an alpha of their own and say so."""


def picture(node_id, hidden=0.0, alpha=True):
    """Return a picture with clear, soft and opaque places; ``hidden`` is the colour of the clear ones."""
    side, batch = SIZES.get(node_id, 16), 3 if node_id == "LD_SplitFrames" else 1
    random = torch.Generator().manual_seed(2)
    pixels = torch.rand(1, side, side, 4, generator=random)
    pixels[..., 3] = (
        (3 * torch.rand(1, 4, 4, generator=random) - 1)
        .clamp(0, 1)
        .repeat_interleave(side // 4, 1)
        .repeat_interleave(side // 4, 2)
    )
    pixels = torch.where(pixels[..., 3:] > 0, pixels, torch.tensor([hidden] * 3 + [0.0]))
    return (pixels if alpha else pixels[..., :3]).expand(batch, -1, -1, -1).contiguous()


def example(node_id, name):
    """Return the prompt of a node with the picture at one of its inputs."""
    inputs = {name: ["odd", 0]}
    if node_id == "LD_LayersFromPictures":
        return {**given(node_id, **inputs), "j": node("TestLayers")}
    if node_id == "LD_DecomposePicture":
        inputs["long_side"] = 64
    if node_id == "LD_StageLayer":
        inputs["alpha"] = "difference"
    if node_id == "LD_AttentionPreview":
        return {**given(node_id, **inputs), "odd": node("TestGiveAfter", after=["d", 0])}
    return given(node_id, **inputs)


class GiveAfter(Give):
    """A node that gives any value after another node has run."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"after": ("IMAGE",)}}

    def give(self, after):
        return super().give()


class Layers:
    """A node that gives a background and a thing, both with alpha."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def give(self):
        layers = torch.full((2, 16, 16, 4), 0.5)
        layers[0, ..., 3] = 1
        return (layers,)


def results(host, node_id, name, pixels):
    """Return every tensor that a node puts out for a picture, a ControlNet's hint too."""
    if name == "depth":  # is grey
        pixels = torch.cat([pixels[..., :1].expand(-1, -1, -1, 3), pixels[..., 3:]], -1)
    Give.value = pixels
    outputs = comfy_nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA().outputs
    found = []
    for slot, output in enumerate(outputs):
        if output.get_io_type() == "MODEL":
            continue
        value = host.value(example(node_id, name), "it", slot)
        if node_id == "LD_MaskedControlNetApply":
            found.append(value[0][1]["control"].inner.cond_hint_original)
        found += tensors(value)
    return found


def alike(first, second):
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


@pytest.fixture(autouse=True)
def layers(host, monkeypatch):
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "TestLayers", Layers)
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "TestGiveAfter", GiveAfter)


@pytest.mark.parametrize(
    ("node_id", "name"),
    [x for x in PICTURES if x[0] not in NOT_USED and x not in OTHERWISE],
)
def test_the_alpha_of_a_picture_counts(host, node_id, name):
    with_alpha, without = (results(host, node_id, name, picture(node_id, alpha=a)) for a in (True, False))
    assert not alike(with_alpha, without)


@pytest.mark.parametrize(("node_id", "name"), [x for x in PICTURES if x[0] not in (*NOT_USED, *KEEP)])
def test_the_colours_of_transparent_pixels_do_not_count(host, node_id, name):
    first, second = (results(host, node_id, name, picture(node_id, hidden)) for hidden in (0.0, 1.0))
    assert alike(first, second)


@pytest.mark.parametrize("node_id", NOT_USED)
def test_a_node_that_does_not_use_the_alpha_says_so(host, node_id, caplog):
    with_alpha, without = (results(host, node_id, "image", picture(node_id, alpha=a)) for a in (True, False))
    assert alike(with_alpha, without)
    assert sum("the picture has an alpha of its own, which is not used" in m for m in caplog.messages) >= 1
    page = (PACK / f"web/docs/{node_id}/en.md").read_text(encoding="utf-8")
    assert "An alpha channel in it is ignored" in page
