"""Storybook Masks finds the things of a drawn picture, with their words, and nothing where there is none."""

import torch
from graph import from_masks, node

THINGS = (("house", "red", 70, (4, 44)), ("star", "yellow", 52, (72, 30)))
"""Kind, colour, side and left top corner, pixels, of what is in the picture."""


def drawn(what, colour, size):
    return node("LD_StorybookPicture", what=what, colour=colour, material="solid", size=size, seed=3)


def prompt(**inputs):
    """Return a prompt that takes a drawn meadow with :data:`THINGS` apart."""
    nodes, last = {"meadow": drawn("meadow", "red", 128)}, "meadow"
    for kind, colour, size, (x, y) in THINGS:
        nodes[kind] = drawn(kind, colour, size)
        nodes[f"{kind} mask"] = node("InvertMask", mask=[kind, 1])
        nodes[f"with {kind}"] = node(
            "ImageCompositeMasked", destination=[last, 0], source=[kind, 0], mask=[f"{kind} mask", 0],
            x=x, y=y, resize_source=False,
        )  # fmt: skip
        last = f"with {kind}"
    nodes["m"] = node("LD_StorybookMasks", image=[last, 0], **{"grow": 1, **inputs})
    nodes["l"] = from_masks([last, 0], ["m", 0], layer_prompts=["m", 1], band=2)
    return nodes


def test_each_thing_has_a_mask_and_words(host):
    nodes = prompt()
    wide, words, background = (host.value(nodes, "m", slot) for slot in range(3))
    narrow = host.value(prompt(grow=0), "m", 0)
    assert words == "a red house\na yellow star"
    assert background == "a meadow with hills"
    assert wide.shape == narrow.shape == (2, 128, 128)
    assert {*wide.unique().tolist(), *narrow.unique().tolist()} == {0.0, 1.0}
    for found, wider, (kind, _, size, (x, y)) in zip(narrow == 1, wide == 1, THINGS, strict=True):
        where = torch.zeros(128, 128, dtype=torch.bool)
        where[y : y + size, x : x + size] = host.value(nodes, f"{kind} mask", 0)[0] > 0.5
        assert (found & where).sum() / (found | where).sum() > 0.8
        # The outline is in it.
        assert (wider & where).sum() / where.sum() > 0.97
        assert bool((found <= wider).all())


def test_the_things_become_layers_with_their_words(host):
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
