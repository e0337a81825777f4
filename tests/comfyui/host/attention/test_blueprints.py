"""The blueprints Render Layers and Redo Layers work with models of every kind, here small random ones."""

import sys

import pytest
import tiny_transformers as tiny
import torch
from boot import PACK
from graph import from_image, node

import nodes

sys.path.insert(0, str(PACK / "tests/browser"))

import blueprints

SIDE = 128
FAMILIES = ("flux", "qwen", "zimage", "sd3")
BOX = {"x": 64, "y": 64, "width": 64, "height": 64}


class TinyVae:
    """A VAE of eight pixels a cell, whose latents have a family's shape and whose pictures show their first
    channel."""

    def __init__(self, family):
        self.channels, *self.frames = tiny.MODELS[family][2][:-2]

    def spacial_compression_encode(self):
        return 8

    def encode(self, pixels):
        cells = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8).mean(1)
        return cells.reshape(1, 1, *self.frames, *cells.shape[1:]).repeat_interleave(self.channels, 1)

    def decode(self, latents):
        cells = latents[:, 0].reshape(1, 1, *latents.shape[-2:]).sigmoid()
        return torch.nn.functional.interpolate(cells, scale_factor=8).expand(-1, 3, -1, -1).movedim(1, -1)


class TinyLoader:
    """A node that outputs a small transformer, its text encoder and a VAE."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"family": ("STRING",)}}

    def load(self, family):
        return tiny.shared_model(family), tiny.clip(family), TinyVae(family)


@pytest.fixture(autouse=True)
def tiny_loader(host, monkeypatch):
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestTinyLoader", TinyLoader)
    host.fresh()


def prompt_of(blueprint, family, words="a tall white lighthouse", noise=0.8, **face):
    """Return the prompt of a blueprint on a picture that fills the canvas and a layer of words in :data:`BOX`."""
    infos = {
        kind: {"input": nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()}
        for kind, _, _ in blueprint.nodes.values()
    }
    models = {name: ["tiny", slot] for slot, name in enumerate(("model", "clip", "vae"))}
    values = {"layers": ["box", 0], "prompt": "a meadow", "steps": 2, "cfg": 1.0, **models, **face}
    return {
        "tiny": node("TestTinyLoader", family=family),
        "picture": node("EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=0x336699),
        "meadow": from_image(name="meadow", image=["picture", 0], noise=noise),
        "box": from_image(name="box", prompt=words, layers=["meadow", 0], **BOX),
        **blueprints.prompt_of(blueprint, infos, **values),
    }


def inside(height, width):
    """Return where the box of words is, as a mask of that size."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 2 :, width // 2 :] = True
    return mask


@pytest.mark.parametrize("family", FAMILIES)
def test_rendered_words_act_where_the_layer_is(host, family):
    one, other = (
        host.value(prompt_of(blueprints.RENDER, family, words), "104")["samples"]
        for words in ("a tall white lighthouse", "a small red fox in the grass")
    )
    assert bool(torch.isfinite(one).all())
    changed = (one - other).abs().flatten(0, -3).amax(0)
    box = inside(*changed.shape)
    assert float(changed[box].mean()) > 3 * float(changed[~box].mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rendered_layer_of_noise_0_keeps_its_pixels_exactly(host, family):
    prompt = prompt_of(blueprints.RENDER, family, noise=0.0)
    before, after = host.value(prompt, "picture")[0], host.value(prompt, "106")[0]
    box = inside(SIDE, SIDE)
    assert torch.equal(after[~box], before[~box])
    assert bool((after[box] != before[box]).any(-1).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_redoing_changes_what_is_marked_and_no_other_pixel(host, family):
    prompt = prompt_of(blueprints.REDO, family, marked="box", image=["picture", 0], grow=0, feather=0)
    before, after = host.value(prompt, "picture")[0], host.value(prompt, "108")[0]
    box = inside(SIDE, SIDE)
    assert torch.equal(after[~box], before[~box])
    assert bool((after[box] != before[box]).any(-1).all())


def test_redoing_nothing_gives_the_same_picture_and_loads_no_model(host):
    # Loading a model of this family would fail.
    prompt = prompt_of(blueprints.REDO, "no such family", marked=" \n", image=["picture", 0])
    assert torch.equal(host.value(prompt, "108"), host.value(prompt, "picture"))
    prompt = prompt_of(blueprints.REDO, "no such family", marked="box", image=["picture", 0])
    assert "no such family" in host.error_of({**prompt, "end": node("TestCatch", value=["108", 0])})


@pytest.mark.parametrize("blueprint", [blueprints.RENDER, blueprints.REDO], ids=lambda b: b.name)
def test_the_stack_comes_out_as_it_came(host, pack, blueprint):
    prompt = prompt_of(blueprint, "flux", image=["picture", 0])
    read = pack("nodes.layers.socket").read_stack
    out = blueprint.outputs["layers"]
    before, after = read(host.value(prompt, "box")), read(host.value(prompt, str(out.node), out.slot))
    assert [(x.name, x.prompt, x.recipe) for x in before] == [(x.name, x.prompt, x.recipe) for x in after]
