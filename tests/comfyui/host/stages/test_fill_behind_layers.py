"""Fill Behind Layers in the real host: what it paints is behind the layers, and what is seen keeps its bits."""

import pytest
import torch
from graph import MODELS, fill_behind, from_masks, node
from PIL import Image
from sampling import LOADER


@pytest.fixture
def apart(host):
    """Return a prompt whose node "l" takes a picture of 128 x 96 pixels apart: two squares that overlap."""
    pixels = torch.rand(96, 128, 3, generator=torch.Generator().manual_seed(2)) / 8
    pixels[..., 2] += 0.6
    for colour, (x, y) in ((0, (20, 20)), (1, (50, 36))):
        pixels[y : y + 44, x : x + 44, colour] += 0.7
    Image.fromarray((pixels.clamp(0, 1) * 255).byte().numpy()).save(host.input / "squares.png")
    for name, (x, y) in (("far", (20, 20)), ("near", (50, 36))):
        mask = Image.new("RGB", (128, 96))
        mask.paste((255, 255, 255), (x, y, x + 44, y + 44))
        mask.save(host.input / f"{name}.png")
    return {
        **LOADER,
        "p": node("LoadImage", image="squares.png"),
        "far": node("LoadImage", image="far.png"),
        "near": node("LoadImage", image="near.png"),
        "two": node("ImageBatch", image1=["far", 0], image2=["near", 0]),
        "m": node("ImageToMask", image=["two", 0], channel="red"),
        "l": from_masks(["p", 0], ["m", 0], layer_prompts="a red ball\na green tree", depth=["near", 0]),
        "white": node("EmptyImage", width=128, height=96, batch_size=1, color=0xFFFFFF),
    }


def composited(layers):
    return node("LD_LayerComposite", layers=[layers, 0], backdrop="transparent", rules="photoshop")


@pytest.fixture
def rim(pack):
    """Return a function that gives the pixels of a document, or of the box of one of its layers, that are an edge over
    the background."""

    def find(document, layer=None):
        found = pack("layered_core.painting.holes").rim_of(document)
        if layer is None:
            return found
        x, y = int(layer.x), int(layer.y)
        return found[y : y + layer.height, x : x + layer.width]

    return find


@pytest.fixture
def documents(host, pack):
    """Return a function that runs a prompt and returns the documents before and after node "it"; the picture of both
    must be the one that was taken apart."""

    def run(prompt):
        prompt = {**prompt, "c": composited("it")}
        assert torch.equal(host.value(prompt, "c"), host.value(prompt, "p"))
        read = pack("nodes.layers.socket").read_stack
        return read(host.value(prompt, "l")), read(host.value(prompt, "it"))

    return run


def _own(layer, before):
    """Return the pixels of a layer, which may have grown, where it was before."""
    x, y = int(before.x - layer.x), int(before.y - layer.y)
    return layer.image[y : y + before.height, x : x + before.width]


def test_a_picture_of_another_tool_fills_the_background_without_a_model(documents, rim, apart):
    before, after = documents({**apart, "it": fill_behind(["l", 0], background=["white", 0])})
    old, new = (x.layers[0].image for x in (before, after))
    hole = old[..., 3] == 0
    assert bool(hole.any())
    assert bool((new[hole] == 1).all())
    stays = ~hole & ~rim(before)
    assert torch.equal(new[stays], old[stays])
    for x, y in zip(before.layers[1:], after.layers[1:], strict=True):
        stays = ~rim(before, x)
        assert torch.equal(_own(y, x)[stays], x.image[stays])


def test_the_background_is_painted_whole_and_everything_else_stays(documents, rim, apart):
    before, after = documents({**apart, "it": fill_behind(["l", 0], prompt="the sea", **MODELS)})
    old, new = (x.layers[0].image for x in (before, after))
    hole = old[..., 3] == 0
    assert bool((new[..., 3] == 1).all())
    stays = ~hole & ~rim(before)
    assert torch.equal(new[stays], old[stays])
    assert float(new[hole][:, :3].std()) > 0
    for x, y in zip(before.layers[1:], after.layers[1:], strict=True):
        stays = ~rim(before, x)
        assert torch.equal(_own(y, x)[stays], x.image[stays])


def test_hidden_parts_are_painted_with_the_layers_own_words(documents, rim, apart):
    before, after = documents({**apart, "it": fill_behind(["l", 0], hidden_parts=True, **MODELS)})
    assert [x.name for x in after] == ["background", "a red ball", "a green tree"]
    assert bool((after.layers[0].image[..., 3] == 1).all())
    ball, whole = before.layer("a red ball"), after.layer("a red ball")
    assert float(whole.image[..., 3].sum()) > float(ball.image[..., 3].sum())
    part = _own(whole, ball)
    seen = (ball.image[..., 3] > 0) & ~rim(before, ball)
    assert torch.equal(part[seen], ball.image[seen])
    tree, stays = before.layers[2], ~rim(before, before.layers[2])
    assert torch.equal(_own(after.layers[2], tree)[stays], tree.image[stays])


def test_the_same_seed_gives_the_same_bits_and_another_does_not(host, documents, apart):
    def background(seed):
        host.fresh()
        return documents({**apart, "it": fill_behind(["l", 0], seed=seed, **MODELS)})[1].layers[0].image

    first = background(1)
    assert torch.equal(background(1), first)
    assert not torch.equal(background(2), first)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "layer 'background': model and clip and vae not connected; allowed: model, clip and vae, or a"),
        ({"hidden_parts": True, "background": ["white", 0]}, "layer 'a red ball': model and clip and vae"),
        ({"layer": "moon"}, "layer name is 'moon'; allowed: 'background', 'a red ball', 'a green tree'"),
        ({"background": ["small", 0]}, "layer 'background': shape of the picture behind is [8, 8, 3]"),
        ({"background": ["many", 0]}, "background: number of pictures is 2; allowed: 1"),
    ],
)
def test_bad_input_is_named(host, apart, inputs, says):
    prompt = {
        **apart,
        "small": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "many": node("EmptyImage", width=128, height=96, batch_size=2, color=0),
        "it": fill_behind(["l", 0], **inputs),
        "c": composited("it"),
    }
    assert says in host.error_of({**prompt, "end": node("PreviewImage", images=["c", 0])})


def test_where_nothing_is_hidden_nothing_happens_and_it_is_said(host, apart, documents):
    prompt = {**apart, "m": node("SolidMask", value=0.0, width=128, height=96), "it": fill_behind(["l", 0])}
    before, after = documents(prompt)
    assert torch.equal(before.layers[0].image, after.layers[0].image)
    assert host.value(prompt, "it", 1) == "Nothing of layer 'background' is hidden."
