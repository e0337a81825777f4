"""A picture is taken apart in the real host: a small random Qwen-Image-Layered, through core's own nodes."""

import pytest
import tiny_transformers as tiny
import torch
from decompose_scene import from_pictures, scene
from graph import node
from sampling import LOADER

import nodes as comfy_nodes

PICTURE = {"picture": node("LoadImage", image="odd.png")}


class Plain:
    """A node that outputs a small Qwen-Image, which makes no layers."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def load(self):
        return (tiny.shared_model("qwen"),)


@pytest.fixture
def taken_apart(host, pack):
    """Run Decompose Picture on a picture of 101x67 pixels; return document, items and report."""

    def run(**inputs):
        prompt = {**scene(**inputs), **PICTURE}
        stack = host.value(prompt, "it")
        return pack("nodes.layers.socket").read_stack(stack), stack["layers"], host.value(prompt, "it", 1)

    return run


def composite_of(pack, document):
    return pack("layered_core.canvas.compositing").composite(document)[..., :3]


@pytest.mark.parametrize(
    "inputs", [{}, {"layer_count": 4, "seed": 8}, {"mode": "named layers", "names": "a ball\na tree"}]
)
def test_the_layers_put_together_are_the_picture_to_the_bit(host, pack, taken_apart, inputs):
    document, _, report = taken_apart(**inputs)
    picture = host.value(PICTURE, "picture")[0]
    assert (document.width, document.height) == (101, 67)
    assert torch.equal(composite_of(pack, document), picture)
    assert "differ from the original by" in report
    assert all(layer.recipe.noise == 0 for layer in document)


def test_layer_composite_shows_the_picture_to_the_bit(host):
    prompt = {
        **scene(),
        **PICTURE,
        "end": node("LD_LayerComposite", layers=["it", 0], backdrop="transparent", rules="photoshop"),
    }
    assert torch.equal(host.value(prompt, "end"), host.value(PICTURE, "picture"))


def plain(words="a red ball in a meadow", width=64, height=48, layers=2):
    """Return the same run in core's own nodes, as ComfyUI's template has them."""
    words = {"p": words, "n": ""}
    return {
        "layered": node("TestLayeredModel"),
        **PICTURE,
        "s": node("ImageScale", image=["picture", 0], upscale_method="lanczos", width=width, height=height,
        crop="disabled"),
        "e": node("VAEEncode", pixels=["s", 0], vae=["layered", 2]),
        **{k: node("CLIPTextEncode", clip=["layered", 1], text=v) for k, v in words.items()},
        **{f"{k}r": node("ReferenceLatent", conditioning=[k, 0], latent=["e", 0]) for k in words},
        "l": node("EmptyQwenImageLayeredLatentImage", width=width, height=height, layers=layers, batch_size=1),
        "m": node("ModelSamplingAuraFlow", model=["layered", 0], shift=1.0),
        "k": node("KSampler", model=["m", 0], positive=["pr", 0], negative=["nr", 0], latent_image=["l", 0],
                  seed=3, steps=1, cfg=2.5, sampler_name="euler", scheduler="simple", denoise=1.0),
        "c": node("LatentCut", samples=["k", 0], dim="t", index=1, amount=16384),
        "b": node("LatentCutToBatch", samples=["c", 0], dim="t", slice_size=1),
        "d": node("VAEDecode", samples=["b", 0], vae=["layered", 2]),
    }  # fmt: skip


def test_it_is_cores_own_nodes_to_the_bit(host, pack, taken_apart):
    document, _, _ = taken_apart()
    by_hand = {**plain(), "it": from_pictures(["d", 0], original=["picture", 0])}
    assert host.value(by_hand, "d").shape == (2, 48, 64, 4)
    other = pack("nodes.layers.socket").read_stack(host.value(by_hand, "it"))
    assert len(other) == len(document)
    for ours, theirs in zip(document, other, strict=True):
        assert torch.equal(ours.image, theirs.image)


def test_each_layer_says_where_it_comes_from(taken_apart, pack):
    key = pack("nodes.layers.socket").KEY
    _, items, _ = taken_apart()
    origins = [item[key]["origin"] for item in items]
    assert all(
        (x["model"], x["prompt"], x["seed"]) == ("Qwen-Image-Layered", "a red ball in a meadow", 3)
        for x in origins
    )
    slots = [x["slot"] for x in origins]
    assert slots == sorted(set(slots))


def test_in_the_named_mode_each_line_becomes_a_layer_of_its_own_run_and_the_rest_the_background(
    host, pack, taken_apart
):
    document, _, _ = taken_apart(mode="named layers", names="a ball\n\na tall tree", prompt="")
    assert document.layer("a tall tree").prompt == "a tall tree"
    # One frame for each name: LatentCut then cuts nothing off.
    runs = [host.value(plain(words=name, layers=0), "d") for name in ("a ball", "a tall tree")]
    assert [r.shape for r in runs] == [(1, 48, 64, 4)] * 2
    assert not torch.equal(*runs)
    found = pack("layered_core.painting.layers_from_pictures").layers_from_pictures(
        torch.cat(runs), ["a ball", "a tall tree"], original=host.value(PICTURE, "picture")[0]
    )
    assert pack("layered_core.document").identical(document, found.document)


def test_another_seed_gives_other_layers_and_the_same_one_the_same(host, taken_apart):
    first, _, _ = taken_apart()
    host.fresh()
    again, _, _ = taken_apart()
    other, _, _ = taken_apart(seed=4)
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert not all(
        a.image.shape == b.image.shape and torch.equal(a.image, b.image)
        for a, b in zip(first, other, strict=False)
    )


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"mode": "named layers"}, "names: there is none, and mode is named layers. Write one line"),
        (
            {"names": "\n".join(str(i) for i in range(50))},
            "names: number of lines is 50; allowed: at most 49",
        ),
        ({"model": ["loader", 0]}, "model is 'Storybook'; allowed: Qwen-Image-Layered or"),
        ({"model": ["plain", 0]}, "model is 'QwenImage'; allowed: Qwen-Image-Layered or"),
        (
            {"vae": ["loader", 2]},
            "vae: number of channels is 3; allowed: 4, RGBA. Load qwen_image_layered_vae",
        ),
        ({"image": ["two", 0]}, "image: number of pictures is 2; allowed: 1. Take one picture"),
    ],
)
def test_what_cannot_be_taken_apart_is_named_before_sampling(host, monkeypatch, inputs, text):
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "TestPlainQwen", Plain)
    prompt = {
        **scene(**inputs),
        **LOADER,
        "plain": node("TestPlainQwen"),
        "two": node("EmptyImage", width=32, height=32, batch_size=2, color=255),
        "end": node("TestCatch", value=["it", 0]),
    }
    assert text in host.error_of(prompt)


@pytest.mark.parametrize(
    ("size", "side", "fitted"),
    [((1920, 1080), 640, (640, 368)), ((640, 640), 640, (640, 640)), ((101, 67), 64, (64, 48)),
     ((3, 4000), 640, (16, 640)), ((100, 200), 1024, (512, 1024))],
)  # fmt: skip
def test_the_model_works_at_multiples_of_16(pack, size, side, fitted):
    assert pack("nodes.stages.decompose_picture").fitted_size(*size, side) == fitted
