"""Nodes that change, split and join stacks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from graph import KEPT, from_image, load, node
from PIL import Image

import nodes as comfy_nodes


@pytest.fixture(autouse=True, scope="module")
def pictures(host):
    """Put an opaque picture and one with soft alpha into ComfyUI's input folder."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(host.input / "opaque.png")
    Image.fromarray(rng.integers(0, 256, (20, 24, 4), dtype=np.uint8)).save(host.input / "soft.png")


@pytest.fixture
def door(pack):
    return pack("nodes.layers.socket")


@pytest.fixture
def core(pack):
    return pack("layered_core.document")


def edit(**changes):
    """Return the node Edit Layer on :data:`STACK`; ``x=5`` sets a field to a value, ``x=("other",)`` chooses
    another option for it."""
    inputs = {"layers": ["s", 0], "layer": "star", **KEPT}
    for field, value in changes.items():
        choice = field in ("blend_mode", "visible", "flip_h", "flip_v", "control_hint")
        inputs[field] = value if choice else value[0] if isinstance(value, tuple) else "set"
        if inputs[field] == "set":
            inputs[f"{field}.to"] = value
    return node("LD_EditLayer", **inputs)


STACK = {
    "back": load("opaque.png", name="sky", prompt="a sky", canvas_width=64, canvas_height=48),
    "mask": node("SolidMask", value=0.3, width=24, height=20),
    "pixels": node("LoadImage", image="soft.png"),
    "star": from_image(
        image=["pixels", 0], mask=["mask", 0], layers=["back", 0], name="star", prompt="a star",
        negative="a moon", x=5, y=6, width=30, height=10,
        rotation=12.5, opacity=0.5, blend_mode="screen", inside=0.2, outside=0.3, noise=0.4,
        control_hint="canny", control_strength=0.6,
    ),
    "s": load("soft.png", name="tree", prompt="a tree", x=30, layers=["star", 0]),
}  # fmt: skip
"""A stack of sky, star and tree."""


def test_all_kept_is_the_very_stack(host):
    assert host.value({**STACK, "e": edit()}, "e") is host.value(STACK, "s")


NEW = {
    "prompt": "a comet\nwith a tail", "negative": "", "x": -70, "y": 9, "width": 3, "height": 400,
    "rotation": -33.5, "opacity": 0.0,
    "blend_mode": "multiply", "visible": "off", "flip_h": "on", "flip_v": "on", "name": "comet",
    "inside": 0.0, "outside": 1.0, "noise": 0.05, "embedding": "cat", "seed": 2**53,
    "control_hint": "depth", "control_strength": 2.0, "control_start": 0.25, "control_end": 0.5,
}  # fmt: skip


def expected(layer, field, value):
    """Return ``layer`` with one field of the node changed."""
    value = {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value
    if field.startswith("control_"):
        return replace(
            layer,
            recipe=replace(
                layer.recipe, control=replace(layer.recipe.control, **{field.removeprefix("control_"): value})
            ),
        )
    if field in ("inside", "outside", "noise", "embedding", "seed"):
        return replace(layer, recipe=replace(layer.recipe, **{field: value}))
    return replace(layer, **{field: value})


def test_every_field_can_be_changed_here():
    ids = [i.id for i in comfy_nodes.NODE_CLASS_MAPPINGS["LD_EditLayer"].GET_SCHEMA().inputs]
    assert ids[:2] == ["layers", "layer"]
    assert set(ids[2:]) == {*KEPT, "loras"} == {*NEW, "loras"}  # LoRAs: test_lora_fields.py


@pytest.mark.parametrize("field", sorted(NEW))
def test_one_field_changes_and_every_other_keeps_its_bits(host, door, core, field):
    before = door.read_stack(host.value(STACK, "s"))
    after = door.read_stack(host.value({**STACK, "e": edit(**{field: NEW[field]})}, "e"))
    wanted = tuple(expected(layer, field, NEW[field]) if layer.name == "star" else layer for layer in before)
    assert core.identical(after, replace(before, layers=wanted))


def test_all_fields_at_once(host, door, core):
    before = door.read_stack(host.value(STACK, "s"))
    after = door.read_stack(host.value({**STACK, "e": edit(**NEW)}, "e"))
    star = before.layer("star")
    for field, value in sorted(NEW.items(), key=lambda item: item[0] != "control_end"):
        star = expected(star, field, value)
    assert core.identical(after, replace(before, layers=(before.layers[0], star, before.layers[2])))


def test_embedding_and_seed_can_be_taken_away_again(host, door):
    given = {
        **STACK,
        "e": edit(embedding="cat", seed=5),
        "f": edit(embedding=("none",), seed=("the picture's",)),
    }
    given["f"]["inputs"]["layers"] = ["e", 0]
    recipe = door.read_stack(host.value(given, "e")).layer("star").recipe
    assert (recipe.embedding, recipe.seed) == ("cat", 5)
    recipe = door.read_stack(host.value(given, "f")).layer("star").recipe
    assert (recipe.embedding, recipe.seed) == (None, None)


@pytest.mark.parametrize("kind", ["LD_EditLayer", "LD_SplitLayer", "LD_JoinLayer"])
def test_a_wrong_name_is_answered_with_the_names_there_are(host, kind):
    inputs = {"layers": ["s", 0], "layer": "stra"}
    inputs |= {"LD_EditLayer": KEPT, "LD_JoinLayer": {"image": ["pixels", 0]}}.get(kind, {})
    assert "layer name is 'stra'; allowed: 'sky', 'star', 'tree'" in host.error_of(
        {**STACK, "e": node(kind, **inputs), "end": end(kind)}
    )


def end(kind):
    return (
        node("PreviewImage", images=["e", 0])
        if kind == "LD_SplitLayer"
        else node("LD_LayerPreview", layers=["e", 0], size=64)
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "sky"}, "layer name is 'sky'; allowed: names that occur once"),
        ({"name": "  "}, "a layer's name is '  '"),
        ({"opacity": 1.5}, "Value 1.5 bigger than max of 1"),
        ({"opacity": float("nan")}, "layer 'star': opacity is nan"),
        ({"noise": float("nan")}, "layer 'star': noise is nan"),
        ({"control_start": float("nan")}, "layer 'star': control.start is nan"),
        (
            {"control_start": 0.9, "control_end": 0.1},
            "layer 'star': control.end is 0.1; allowed: a number 0.9..1",
        ),
        ({"width": 0}, "Value 0 smaller than min of 1"),
        ({"x": 10**9}, "bigger than max"),
        ({"blend_mode": "mulitply"}, "mulitply"),
        ({"opacity": ("sett",)}, "layer 'star': opacity: its choice is not in the list"),
    ],
)
def test_a_bad_value_is_refused_and_named(host, changes, told):
    assert told in host.error_of(
        {**STACK, "e": edit(**changes), "end": node("LD_LayerPreview", layers=["e", 0], size=64)}
    )


def test_selected_and_rest_are_the_stack(host, door, core):
    whole = door.read_stack(host.value(STACK, "s"))
    prompt = {**STACK, "e": node("LD_SelectLayers", layers=["s", 0], which="t*, 1")}
    selected, rest = (door.read_stack(host.value(prompt, "e", slot)) for slot in (0, 1))
    assert core.identical(selected, replace(whole, layers=(whole.layers[0], whole.layers[2])))
    assert core.identical(rest, replace(whole, layers=(whole.layers[1],)))


def test_all_selected_is_the_same_stack_with_its_background(host, door, core):
    picture = core.LayerDocument(
        64, 48, door.read_stack(host.value(STACK, "s")).layers, (0.1, 0.2, 0.3), "words"
    )
    node_class = comfy_nodes.NODE_CLASS_MAPPINGS["LD_SelectLayers"]
    selected, rest = node_class.execute(door.write_stack(picture), "*").args
    assert core.identical(door.read_stack(selected), picture)
    assert len(door.read_stack(rest)) == 0


def test_a_choice_of_nothing_is_refused(host):
    prompt = {**STACK, "e": node("LD_SelectLayers", layers=["s", 0], which="moon"), "end": end("")}
    assert "layer to select is 'moon'; allowed: 'sky', 'star', 'tree'" in host.error_of(prompt)


@pytest.mark.parametrize("name", ["sky", "star", "tree"])
def test_join_is_the_exact_inverse_of_split(host, door, core, name):
    before = door.read_stack(host.value(STACK, "s"))
    prompt = {**STACK, "p": node("LD_SplitLayer", layers=["s", 0], layer=name)}
    for alpha in ({"alpha": ["p", 1]}, {}):
        prompt["e"] = node("LD_JoinLayer", layers=["s", 0], layer=["p", 2], image=["p", 0], **alpha)
        assert core.identical(door.read_stack(host.value(prompt, "e")), before)


def test_split_gives_straight_colour_opaque_as_1_words_and_place(host):
    pixels = torch.from_numpy(np.asarray(Image.open(host.input / "soft.png")).astype(np.float32) / 255)
    prompt = {
        **STACK,
        "p": node("LD_SplitLayer", layers=["s", 0], layer="tree"),
        "q": node("LD_SplitLayer", layers=["s", 0], layer="star"),
    }
    image, alpha, *words = (host.value(prompt, "p", slot) for slot in range(8))
    assert torch.equal(image, pixels[None, ..., :3])
    assert torch.equal(alpha, pixels[None, ..., 3])
    assert words == ["tree", "a tree", 30, 0, 24, 20]
    assert [host.value(prompt, "q", slot) for slot in range(2, 9)] == ["star", "a star", 5, 6, 30, 10, ""]
    assert torch.allclose(host.value(prompt, "q", 1), torch.tensor(0.7), atol=1e-6)


def test_another_picture_joined_in_is_seen_in_the_layers_place(host, door):
    prompt = {
        **STACK,
        "green": node("EmptyImage", width=6, height=4, batch_size=1, color=0x00FF00),
        "half": node("SolidMask", value=0.25, width=6, height=4),
        "e": node("LD_JoinLayer", layers=["s", 0], layer="star", image=["green", 0], alpha=["half", 0]),
    }
    before, star = (
        door.read_stack(host.value(STACK, "s")),
        door.read_stack(host.value(prompt, "e")).layer("star"),
    )
    assert torch.allclose(star.image, torch.tensor([0, 1, 0, 0.25]).expand(4, 6, 4), atol=1e-6)
    assert star.mask is None
    old = before.layer("star")
    assert (star.x, star.y, star.width, star.height, star.rotation, star.recipe) == (
        5,
        6,
        30,
        10,
        12.5,
        old.recipe,
    )
    assert [x.name for x in door.read_stack(host.value(prompt, "e"))] == ["sky", "star", "tree"]


def test_a_pictures_own_alpha_channel_counts(host, door):
    prompt = {**STACK, "rgba": node("LD_LayerComposite", layers=["star", 0], backdrop="transparent")}
    pixels = torch.rand(1, 5, 5, 4)
    node_class = comfy_nodes.NODE_CLASS_MAPPINGS["LD_JoinLayer"]
    stack = node_class.execute(host.value(prompt, "s"), "tree", pixels).args[0]
    assert torch.equal(door.read_stack(stack).layer("tree").image, pixels[0])


def test_a_batch_is_no_layer(host):
    prompt = {**STACK, "two": node("EmptyImage", width=6, height=4, batch_size=2, color=0)}
    prompt |= {"e": node("LD_JoinLayer", layers=["s", 0], layer="star", image=["two", 0]), "end": end("")}
    assert "layer 'star': number of pictures in image is 2; allowed: 1" in host.error_of(prompt)


def test_alpha_of_another_size_is_refused(host):
    prompt = {**STACK, "m": node("SolidMask", value=1.0, width=6, height=4)}
    prompt |= {
        "e": node("LD_JoinLayer", layers=["s", 0], layer="star", image=["pixels", 0], alpha=["m", 0]),
        "end": end(""),
    }
    assert "layer 'star': alpha's size is '6x4'; allowed: 24x20" in host.error_of(prompt)


def test_a_node_leaves_the_stack_that_it_is_given_as_it_is(host, door, core):
    stack = host.value(STACK, "s")
    before, items = door.read_stack(stack), [dict(item) for item in stack["layers"]]
    prompt = {
        **STACK,
        "e": edit(**NEW),
        "j": node("LD_JoinLayer", layers=["s", 0], layer="sky", image=["pixels", 0]),
    }
    prompt["a"] = node(
        "LD_ArrangeLayers",
        layers=["s", 0],
        arrangement={"version": 1, "layers": {"star": {"x": 50}}, "order": ["tree", "sky"]},
    )
    for name in ("e", "j", "a"):
        host.value(prompt, name)
    assert host.value(STACK, "s") is stack
    assert core.identical(door.read_stack(stack), before)
    assert all(
        a.keys() == b.keys() and all(a[k] is b[k] for k in a)
        for a, b in zip(items, stack["layers"], strict=True)
    )
