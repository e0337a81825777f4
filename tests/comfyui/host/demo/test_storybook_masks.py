"""Storybook Masks finds the things of a drawn picture, with their words, and nothing where there is none."""

import numpy as np
import pytest
import torch
from graph import from_masks, node
from PIL import Image

from demo.world.drawing import draw_background, sprite
from demo.world.vocabulary import Thing


@pytest.fixture
def scene(host):
    """Draw a house and a star in a meadow, 128 x 192 pixels, and return where each is, bool ``[H, W]``."""
    picture = Image.fromarray(draw_background("meadow", np.random.default_rng(3), 128)).convert("RGBA")
    places = []
    for thing, side, corner in (
        (Thing("solid", "red", "house"), 70, (4, 44)),
        (Thing("solid", "yellow", "star"), 52, (72, 30)),
    ):
        cut_out = Image.fromarray(sprite(thing, side)[0])
        picture.alpha_composite(cut_out, corner)
        where = Image.new("L", (128, 128))
        where.paste(cut_out.getchannel("A"), corner)
        places.append(torch.from_numpy(np.asarray(where) > 127))
    picture.convert("RGB").save(host.input / "scene.png")
    return places


def prompt(**inputs):
    return {
        "p": node("LoadImage", image="scene.png"),
        "m": node("LD_StorybookMasks", image=["p", 0], **{"grow": 1, **inputs}),
        "l": from_masks(["p", 0], ["m", 0], layer_prompts=["m", 1], band=2),
    }


def test_each_thing_has_a_mask_and_words(host, scene):
    masks = host.value(prompt(), "m", 0)
    assert masks.shape == (2, 128, 128)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    for mask, where in zip(masks == 1, scene, strict=True):
        assert (mask & where).sum() / (mask | where).sum() > 0.8
    assert host.value(prompt(), "m", 1) == "a red house\na yellow star"
    assert host.value(prompt(), "m", 2) == "a meadow with hills"
    narrow = host.value(prompt(grow=0), "m", 0)
    assert bool((narrow <= masks).all())
    assert bool((narrow.sum((1, 2)) < masks.sum((1, 2))).all())


def test_the_things_become_layers_with_their_words(host, scene):
    stack = host.value(prompt(), "l", 0)
    assert [x["name"] for x in stack["layers"]] == ["background", "a red house", "a yellow star"]


def test_masks_have_the_size_of_a_picture_that_is_no_square(host):
    empty = {
        "p": node("EmptyImage", width=96, height=64, batch_size=1, color=0x80C0FF),
        "m": node("LD_StorybookMasks", image=["p", 0], grow=1),
        "l": from_masks(["p", 0], ["m", 0], layer_prompts=["m", 1]),
    }
    assert host.value(empty, "m", 0).shape == (0, 64, 96)
    assert host.value(empty, "m", 1) == ""
    assert len(host.value(empty, "l", 0)["layers"]) == 1
