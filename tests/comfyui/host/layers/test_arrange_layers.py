"""Arrange Layers: by hand, and after ComfyUI's own layer editor."""

import json
import math

import numpy as np
import pytest
import torch
from graph import from_image, load, node
from PIL import Image


@pytest.fixture(autouse=True, scope="module")
def pictures(host):
    """Put an opaque picture and a red and a green square with hard edges into ComfyUI's input folder."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(host.input / "opaque.png")
    Image.new("RGBA", (16, 16), (255, 0, 0, 255)).save(host.input / "red.png")
    Image.new("RGBA", (8, 12), (0, 255, 0, 255)).save(host.input / "green.png")


@pytest.fixture
def door(pack):
    return pack("nodes.layers.socket")


@pytest.fixture
def core(pack):
    return pack("layered_core.document")


STACK = {
    "1": load("opaque.png", name="sky", canvas_width=64, canvas_height=48),
    "2": load("red.png", name="red", prompt="a red square", noise=0.25, x=4, y=5, layers=["1", 0]),
    "3": load("green.png", name="green", x=40, y=20, layers=["2", 0]),
}


def arranged(state, stack=STACK, top="3", **inputs):
    return {**stack, "a": node("LD_ArrangeLayers", layers=[top, 0], arrangement=state, **inputs)}


def named(document):
    return [layer.name for layer in document]


def test_nothing_arranged_is_the_same_stack(host, door, core):
    before = door.read_stack(host.value(STACK, "3"))
    for state in ({}, {"version": 1}, "", json.dumps({"version": 1, "layers": {}})):
        assert core.identical(door.read_stack(host.value(arranged(state), "a")), before)
    without = {**STACK, "a": node("LD_ArrangeLayers", layers=["3", 0])}
    assert core.identical(door.read_stack(host.value(without, "a")), before)
    assert host.value(without, "a", 1) == ""


def test_what_was_arranged_is_what_the_composite_shows(host, door):
    state = {
        "version": 1,
        "layers": {"red": {"x": 30, "y": 25}, "green": {"visible": False}},
        "order": ["red", "sky", "green"],
    }
    prompt = arranged(state)
    document = door.read_stack(host.value(prompt, "a"))
    assert named(document) == ["red", "sky", "green"]
    assert (document.layer("red").prompt, document.layer("red").recipe.noise) == ("a red square", 0.25)
    prompt["a"]["inputs"]["arrangement"] = {**state, "order": ["sky", "green", "red"]}
    prompt["c"] = node("LD_LayerComposite", layers=["a", 0], backdrop="transparent")
    image = host.value(prompt, "c")[0]
    red = torch.tensor([1.0, 0.0, 0.0])
    assert bool((image[25:41, 30:46] == red).all())
    assert not bool((image == red).all(-1)[:25].any())
    assert not bool((image == torch.tensor([0.0, 1.0, 0.0])).all(-1).any())


def test_changes_to_a_layer_that_is_gone_wait_and_are_reported(host, door):
    state = {"version": 1, "layers": {"moon": {"x": 30}, "red": {"x": 7}}, "order": ["moon", "green", "red"]}
    prompt = arranged(state)
    assert door.read_stack(host.value(prompt, "a")).layer("red").x == 7
    assert host.value(prompt, "a", 1) == "Changes are kept for layers that are not in the stack: 'moon'."


def test_the_editor_is_told_the_stack_before_its_own_changes_with_small_pictures(host):
    stack = {**STACK, "4": from_image(name="box", width=10, height=9, x=3, prompt="later", layers=["3", 0])}
    host.fresh()
    (shown,) = host.run(arranged({"version": 1, "layers": {"red": {"x": 30}}}, stack, "4"))["a"][
        "arrange_layers"
    ]
    json.dumps(shown, allow_nan=False)
    assert (shown["width"], shown["height"], shown["background"]) == (64, 48, None)
    assert [layer["name"] for layer in shown["layers"]] == ["sky", "red", "green", "box"]
    red = shown["layers"][1]
    assert (red["x"], red["y"], red["width"], red["height"], red["opacity"], red["blend_mode"]) == (
        4,
        5,
        16,
        16,
        1.0,
        "normal",
    )
    assert shown["layers"][3]["picture"] is None
    assert [layer["generated"] for layer in shown["layers"]] == [False, False, False, True]
    file = (
        host.input.parent / red["picture"]["type"] / red["picture"]["subfolder"] / red["picture"]["filename"]
    )
    picture = Image.open(file)
    assert (picture.size, picture.mode, picture.info) == ((16, 16), "RGBA", {})


def test_a_large_layer_is_shown_small(host):
    Image.new("RGBA", (1600, 400), (1, 2, 3, 255)).save(host.input / "large.png")
    (shown,) = host.run(arranged({}, {"1": load("large.png")}, "1"))["a"]["arrange_layers"]
    picture = shown["layers"][0]["picture"]
    assert Image.open(host.input.parent / "temp" / picture["filename"]).size == (512, 128)


def test_layers_of_one_name_and_of_a_batch_are_found_in_their_order_after_the_stack_changed(pack, door, core):
    picture = torch.ones(4, 4, 4)
    stack = door.write_stack(core.LayerDocument(64, 48, (core.Layer("sky", picture),), (0.1, 0.2, 0.3)))
    stack["layers"] += [
        {"image": picture[None], "type": "raster", "z_index": 0, "name": "red"} for _ in range(2)
    ]
    stack["layers"].append(
        {"image": picture.expand(2, 4, 4, 4), "type": "raster", "z_index": 0, "name": "card"}
    )
    document = door.read_stack(stack)
    assert named(document) == ["sky", "red", "red 2", "card 1", "card 2"]
    names = ("background", "red", "red", "card", "card", "card")
    entries = [entry(name, x, 0, 4, 4) for x, name in enumerate(names)]
    saved = {"version": 1, "canvas": {"w": 64, "h": 48}, "inputs": ["of another stack"], "layers": entries}
    after, remarks = pack("nodes.layers.compositor_state").apply_compositor(document, stack, saved)
    assert {layer.name: layer.x for layer in after} == {
        "sky": 0,
        "red": 1,
        "red 2": 2,
        "card 1": 3,
        "card 2": 4,
    }
    assert after.background == (0.1, 0.2, 0.3)
    assert remarks[1:] == ["Layers of that editor that are not in the stack: 'card'."]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"version": 2}, "arrangement: version is 2; allowed: 1"),
        ("{", "arrangement: JSON is '{'"),
        (5, "arrangement: JSON is 5"),
        (
            {"version": 1, "layers": {"red": {"x": float("nan")}}},
            "arrangement: layer 'red': x is nan; allowed: a number -65536..65536",
        ),
        (
            {"version": 1, "layers": {"red": {"width": 100_000}}},
            "arrangement: layer 'red': width is 100000; allowed: a whole number 1..16384",
        ),
        (
            {"version": 1, "layers": {"red": {"blend_mode": "mulitply"}}},
            "arrangement: layer 'red': blend_mode is 'mulitply'",
        ),
    ],
)
def test_a_bad_state_is_refused_before_anything_runs(host, state, told):
    valid, _, _, errors = host.validate(arranged(state))
    assert not valid
    assert told in str(errors)


def entry(name, x, y, w, h, **other):
    """Return one layer as ComfyUI's editor saves it."""
    transform = {"x": x, "y": y, "w": w, "h": h, "rotation": other.pop("rotation", 0)}
    return {
        "name": name,
        "visible": True,
        "opacity": 1,
        "blend": "normal",
        "flipH": False,
        "flipV": False,
        "transform": transform,
    } | other


def edited(host, layers, stack=STACK, top="3", **other):
    """Return a prompt with a stack in Create Layered Image, arranged in its editor, and Arrange Layers after
    it."""
    prompt = {**stack, "i": node("ImageCompositor", layers=[top, 0], compositor={})}
    fingerprints = host.run(prompt)["i"]["compositor_inputs"]
    state = {"version": 1, "canvas": {"w": 64, "h": 48}, "inputs": fingerprints, "layers": layers, **other}
    prompt["i"]["inputs"]["compositor"] = state
    prompt["a"] = node("LD_ArrangeLayers", layers=[top, 0], arrangement={}, picture=["i", 0])
    prompt["c"] = node("LD_LayerComposite", layers=["a", 0], backdrop="transparent")
    return prompt


MOVED = [
    entry("sky", 0, 0, 64, 48),
    entry("red", 20, 9, 16, 16),
    entry("green", 22, 11, 8, 12, visible=True),
]
"""The red square is moved, and the green one is moved onto it."""


def test_what_was_arranged_in_cores_editor_is_done_to_the_stack(host, door):
    prompt = edited(host, MOVED, order=[0, 2, 1])
    theirs, ours = host.value(prompt, "i"), host.value(prompt, "c")
    assert theirs.shape == ours.shape == (1, 48, 64, 3)
    assert float((theirs - ours).abs().max()) <= 1 / 255
    document = door.read_stack(host.value(prompt, "a"))
    assert named(document) == ["sky", "green", "red"]
    assert document.layer("red").prompt == "a red square"
    assert host.value(prompt, "a", 1) == ""


def test_every_field_of_cores_editor_is_taken_over(host, door):
    red = entry(
        "red",
        20.5,
        9.25,
        30.4,
        10,
        rotation=math.pi / 3,
        visible=False,
        opacity=0.25,
        blend="screen",
        flipH=True,
        flipV=True,
    )
    prompt = edited(
        host,
        [MOVED[0], red, MOVED[2]],
        canvas={"w": 100, "h": 80},
        background={"color": "#ff8000", "opacity": 1, "visible": True},
    )
    document = door.read_stack(host.value(prompt, "a"))
    assert (document.width, document.height, document.background) == (100, 80, (1.0, 128 / 255, 0.0))
    got = document.layer("red")
    assert (got.x, got.y, got.width, got.height) == (20.5, 9.25, 30, 10)
    assert got.rotation == pytest.approx(60)
    assert (got.visible, got.opacity, got.blend_mode, got.flip_h, got.flip_v) == (
        False,
        0.25,
        "screen",
        True,
        True,
    )


def test_changes_made_here_lie_on_top_of_those_of_cores_editor(host, door):
    prompt = edited(host, MOVED, order=[0, 2, 1])
    prompt["a"]["inputs"]["arrangement"] = {"version": 1, "layers": {"red": {"y": 1}}}
    document = door.read_stack(host.value(prompt, "a"))
    assert (document.layer("red").x, document.layer("red").y) == (20, 1)
    assert named(document) == ["sky", "green", "red"]
    (shown,) = host.run(prompt)["a"]["arrange_layers"]
    assert [(layer["name"], layer["x"], layer["y"]) for layer in shown["layers"]] == [
        ("sky", 0, 0),
        ("green", 22, 11),
        ("red", 20, 9),
    ]


def test_a_state_of_a_stack_that_changed_is_applied_by_name_and_reported(host, door):
    prompt = edited(host, MOVED)
    prompt["2"] = load("red.png", name="red", x=1, y=1, layers=["1", 0])  # the user moved it in its node
    prompt["3"] = load("green.png", name="emerald", x=40, y=20, layers=["2", 0])
    document = door.read_stack(host.value(prompt, "a"))
    assert (document.layer("red").x, document.layer("red").y) == (20, 9)
    assert (document.layer("emerald").x, document.layer("emerald").y) == (40, 20)
    report = host.value(prompt, "a", 1)
    assert "The stack changed after it was arranged in Create Layered Image" in report
    assert "not in the stack: 'green'" in report


def test_an_editor_that_was_never_opened_changes_nothing(host, door, core):
    before = door.read_stack(host.value(STACK, "3"))
    for state in ({}, "", "{}"):
        prompt = edited(host, MOVED)
        prompt["i"]["inputs"]["compositor"] = state
        assert core.identical(door.read_stack(host.value(prompt, "a")), before)


def test_a_new_state_of_cores_editor_is_noticed(host, door):
    prompt = edited(host, MOVED)
    assert door.read_stack(host.value(prompt, "a")).layer("red").x == 20
    prompt["i"]["inputs"]["compositor"] = {
        **prompt["i"]["inputs"]["compositor"],
        "layers": [MOVED[0], entry("red", 33, 9, 16, 16), MOVED[2]],
    }
    assert door.read_stack(host.value(prompt, "a")).layer("red").x == 33


def test_layers_of_a_batch_and_a_background_are_found(host, pack, door, core):
    """ComfyUI counts a batch as several layers and our background colour as one layer."""
    from comfy_extras import nodes_compositor as compositor

    random = torch.Generator().manual_seed(0)
    layers = [core.Layer(f"card {i}", torch.rand(8, 8, 4, generator=random)) for i in (1, 2)]
    stack = door.write_stack(
        core.LayerDocument(
            64, 48, [core.Layer("sky", torch.rand(48, 64, 4, generator=random))], (0.1, 0.2, 0.3)
        )
    )
    stack["layers"].append(
        {"image": torch.stack([x.image for x in layers]), "type": "raster", "z_index": 0, "name": "card"}
    )
    document = door.read_stack(stack)
    assert named(document) == ["sky", "card 1", "card 2"]
    assert door.frame_names(stack) == [None, "sky", "card 1", "card 2"]
    frames = compositor.expand_item_frames(compositor.document_items(stack))
    fingerprints = compositor.input_fingerprints(
        frames, [compositor.frame_alpha(f["tensor"], f["mask"]) for f in frames]
    )
    apply = pack("nodes.layers.compositor_state").apply_compositor
    entries = [
        entry("b", 0, 0, 64, 48),
        entry("s", 0, 0, 64, 48),
        entry("card", 5, 6, 8, 8),
        entry("card", 7, 8, 8, 8),
    ]
    saved = {"version": 1, "canvas": {"w": 64, "h": 48}, "inputs": fingerprints, "layers": entries}
    after, remarks = apply(document, stack, saved)
    assert remarks == []
    assert [(x.x, x.y) for x in after] == [(0, 0), (5, 6), (7, 8)]
    assert after.background == (0.1, 0.2, 0.3)
    entries[0]["visible"] = False
    assert apply(document, stack, saved)[0].background is None


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"version": 2}, "the compositor state is"),
        ({"version": 1, "canvas": {"w": 4, "h": 4}}, "the compositor state is"),
        (
            {"version": 1, "canvas": {"w": 10**6, "h": 4}, "layers": MOVED},
            "canvas w is 1000000; allowed: a whole number 1..16384",
        ),
        ({"version": 1, "canvas": {"w": None, "h": 4}, "layers": MOVED}, "canvas w is None"),
        (
            {"version": 1, "canvas": {"w": 4, "h": 4}, "layers": [entry("red", 0, 0, 10**6, 1)]},
            "layer 'red': width is 1000000",
        ),
        (
            {"version": 1, "canvas": {"w": 4, "h": 4}, "layers": [entry("red", 0, 0, 1, 1, opacity=7)]},
            "layer 'red': opacity is 7",
        ),
    ],
)
def test_a_bad_state_of_cores_editor_is_named(host, state, told):
    prompt = edited(host, MOVED)
    prompt["i"]["inputs"]["compositor"] = state
    error = host.error_of({k: prompt[k] for k in ("1", "2", "3", "i", "a")})
    assert "picture: the compositor state" in error
    assert told in error


def test_a_picture_of_another_node_is_refused(host):
    prompt = arranged({}, picture=["p", 0]) | {"p": node("LoadImage", image="red.png")}
    assert "the node it comes from is 'LoadImage'; allowed: Create Layered Image" in host.error_of(prompt)
