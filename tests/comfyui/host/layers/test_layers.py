"""The LAYERS socket loses nothing, and ComfyUI's nodes and ours take each other's stacks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from graph import from_image, load, node
from PIL import Image


@pytest.fixture(scope="module")
def pictures(host):
    """Put an opaque picture, one with soft alpha, a red square and a square of four colours into ComfyUI's
    input folder."""
    rng = np.random.default_rng(0)
    opaque = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    soft = rng.integers(0, 256, (40, 48, 4), dtype=np.uint8)
    square = np.full((16, 16, 4), (255, 0, 0, 255), np.uint8)
    quarters = np.repeat(
        np.repeat(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]], np.uint8), 8, 0), 8, 1
    )
    files = {"opaque.png": opaque, "soft.png": soft, "square.png": square, "quarters.png": quarters}
    for name, pixels in files.items():
        Image.fromarray(pixels).save(host.input / name)
    return files


@pytest.fixture
def door(pack):
    return pack("nodes.layers.socket")


@pytest.fixture
def core(pack):
    return pack("layered_core.document")


def full_document(core):
    """Return a document in which every field of every class has a value other than its default."""
    control = core.Control(hint="canny", strength=0.7, start=0.1, end=0.9)
    loras = (core.Lora("a.safetensors", 0.5), core.Lora("b.safetensors", -1.0))
    recipe = core.Recipe(
        inside=0.3, outside=0.6, noise=0.123, control=control, embedding="cat", loras=loras, seed=2**60 + 1
    )
    random = torch.Generator().manual_seed(1)
    image = torch.rand(5, 7, 4, generator=random)
    mask = (torch.rand(5, 7, generator=random) * 255).round() / 255
    picture = core.Layer(
        "sky", image, mask, "a sky", "clouds", x=-3.25, y=4.5, width=70, height=50, rotation=33.3,
        flip_h=True, flip_v=True, opacity=0.4,
        blend_mode="multiply", visible=False, recipe=recipe,
    )  # fmt: skip
    box = core.Layer("box", prompt="a ball", x=10, y=20, width=30, height=40, rotation=-90.0)
    region = core.Layer("region", mask=torch.rand(6, 6, generator=random), width=12, height=12)
    return core.LayerDocument(100, 80, (picture, box, region), (0.1, 0.2, 0.3), "all of it", "nothing else")


def same_but_for_rounded_masks(core, a, b):
    """Whether two documents are equal. Masks of pictures may differ in the last bit, because the socket holds
    them inverted."""
    for x, y in zip(a, b, strict=True):
        if x.image is not None and x.mask is not None:
            assert torch.allclose(x.mask, y.mask, atol=1e-7)
    return core.identical(a, replace(b, layers=[replace(y, mask=x.mask) for x, y in zip(a, b, strict=True)]))


def test_a_document_comes_through_the_socket_whole(door, core):
    document = full_document(core)
    assert same_but_for_rounded_masks(core, document, door.read_stack(door.write_stack(document)))


def test_a_document_comes_through_cores_add_layer_whole(host, door, core):
    from comfy_extras.nodes_compositor import AddLayer

    document = full_document(core)
    stack = AddLayer.execute(
        image=torch.zeros(1, 4, 4, 3), layers=door.write_stack(document), name="core's"
    ).args[0]
    back = door.read_stack(stack)
    assert [x.name for x in back] == ["sky", "box", "region", "core's"]
    assert same_but_for_rounded_masks(core, document, replace(back, layers=back.layers[:3]))


def test_load_layer_then_cores_add_layer_then_load_layer_loses_nothing(host, pictures, door):
    ghostly = {
        "name": "ghost",
        "prompt": "a ghost",
        "negative": "a sheet",
        "x": 10,
        "y": -5,
        "width": 60,
        "height": 30,
        "rotation": 12.5,
    }
    ghostly |= {"flip_h": True, "flip_v": True, "opacity": 0.35, "blend_mode": "screen", "visible": False}
    ghostly |= {
        "inside": 0.2,
        "outside": 0.4,
        "noise": 0.15,
        "control_strength": 0.75,
        "control_hint": "canny",
    }
    prompt = {
        "1": load("opaque.png", name="back", canvas_width=128, canvas_height=96),
        "2": load("soft.png", layers=["1", 0], **ghostly),
        "3": node("EmptyImage", width=8, height=8, batch_size=1, color=255),
        "4": node("AddLayer", image=["3", 0], layers=["2", 0], name="core's", x=3, y=4, rotation=90.0),
        "5": load("square.png", name="top", layers=["4", 0]),
    }  # fmt: skip
    document = door.read_stack(host.value(prompt, "5"))
    assert (document.width, document.height) == (128, 96)
    assert [x.name for x in document] == ["back", "ghost", "core's", "top"]
    ghost = document.layer("ghost")
    assert torch.equal((ghost.image * 255).round().to(torch.uint8), torch.from_numpy(pictures["soft.png"]))
    got = (
        ghost.prompt,
        ghost.negative,
        ghost.x,
        ghost.y,
        ghost.width,
        ghost.height,
        ghost.rotation,
        ghost.flip_h,
        ghost.flip_v,
        ghost.opacity,
    )
    assert got == ("a ghost", "a sheet", 10, -5, 60, 30, 12.5, True, True, 0.35)
    recipe = ghost.recipe
    assert (ghost.blend_mode, ghost.visible) == ("screen", False)
    assert (recipe.inside, recipe.outside, recipe.noise, recipe.control.strength, recipe.control.hint) == (
        0.2,
        0.4,
        0.15,
        0.75,
        "canny",
    )


def test_a_stack_of_cores_nodes_only_works_with_neutral_recipes(host, pictures, door, core):
    prompt = {
        "1": node("LoadImage", image="opaque.png"),
        "2": node("AddLayer", image=["1", 0], name=""),
        "3": node("LoadImage", image="soft.png"),
        "4": node(
            "AddLayer", image=["3", 0], mask=["3", 1], layers=["2", 0], x=20, y=30, opacity=0.5, z_index=3
        ),
        "5": node("LD_LayerComposite", layers=["4", 0], backdrop="transparent"),
    }
    document = door.read_stack(host.value(prompt, "4"))
    assert [x.name for x in document] == ["layer 1", "layer 2"]
    for layer in document:
        assert layer.recipe == core.Recipe(inside=0, outside=0, noise=1)
        assert layer.prompt == layer.negative == ""
    alpha = torch.from_numpy(pictures["soft.png"][..., 3]) / 255
    assert torch.allclose(document.layer("layer 2").coverage, alpha, atol=1e-6)
    assert host.value(prompt, "5").shape == (1, 96, 128, 3)


def test_cores_create_layered_image_shows_our_stack_as_we_do(host, pictures):
    """The stack is made by our nodes; test_compositing.py compares stacks of every kind."""
    prompt = {
        "1": load("opaque.png", canvas_width=128, canvas_height=96),
        "2": load("quarters.png", x=100, y=-4, rotation=90.0, flip_h=True, layers=["1", 0]),
        "3": load("square.png", x=3, y=60, visible=False, layers=["2", 0]),
        "4": from_image(width=30, height=20, x=40, y=40, prompt="to be generated", layers=["3", 0]),
        "5": node("ImageCompositor", layers=["4", 0], compositor={}),
        "6": node("LD_LayerComposite", layers=["4", 0], backdrop="transparent"),
    }
    theirs, ours = host.value(prompt, "5"), host.value(prompt, "6")
    assert theirs.shape == ours.shape == (1, 96, 128, 3)
    # ComfyUI's turn by 90 degrees ends one pixel higher: its four quarters differ at their lower edges, and nowhere
    # else.
    differing = ((theirs - ours).abs() > 2 / 255).any(-1)[0]
    rows, columns = (set(axis.tolist()) for axis in differing.nonzero(as_tuple=True))
    assert rows <= {3, 11}
    assert columns <= set(range(100, 116))


def test_a_mask_of_1_is_transparent_at_the_socket(host, pictures, door):
    prompt = {
        "1": node("LoadImage", image="opaque.png"),
        "2": node("SolidMask", value=0.25, width=128, height=96),
        "3": from_image(image=["1", 0], mask=["2", 0], name="a"),
        "4": node("AddLayer", image=["1", 0], mask=["2", 0], layers=["3", 0], name="b"),
    }
    document = door.read_stack(host.value(prompt, "4"))
    for name in ("a", "b"):
        assert torch.allclose(document.layer(name).coverage, torch.tensor(0.75))


def test_a_batch_of_pictures_becomes_as_many_layers(host, pictures, door):
    prompt = {
        "1": node("EmptyImage", width=8, height=8, batch_size=3, color=255),
        "2": from_image(image=["1", 0], name="sheet"),
        "3": node("AddLayer", image=["1", 0], name="card", layers=["2", 0]),
    }
    names = [x.name for x in door.read_stack(host.value(prompt, "3"))]
    assert names == ["sheet 1", "sheet 2", "sheet 3", "card 1", "card 2", "card 3"]


def test_a_layer_without_a_picture_stays_one(host, door):
    prompt = {
        "1": from_image(
            name="box", prompt="a red ball", x=5, y=6, width=20, height=10, canvas_width=64, canvas_height=64
        ),
        "2": node("SolidMask", value=0.0, width=16, height=16),
        "3": from_image(name="region", mask=["2", 0], layers=["1", 0]),
    }
    box, region = door.read_stack(host.value(prompt, "3"))
    assert box.image is None
    assert (box.x, box.y, box.width, box.height, box.prompt) == (5, 6, 20, 10, "a red ball")
    assert region.image is None
    assert torch.equal(region.mask, torch.ones(16, 16))


def test_layers_of_one_name_get_numbers(host, pictures, door):
    prompt = {
        "1": load("square.png"),
        "2": load("square.png", layers=["1", 0]),
        "3": load("square.png", layers=["2", 0]),
    }
    assert [x.name for x in door.read_stack(host.value(prompt, "3"))] == ["square", "square 2", "square 3"]


def test_our_layer_lies_on_top_whatever_z_index_core_gave_those_below(host, pictures, door):
    prompt = {
        "1": node("LoadImage", image="opaque.png"),
        "2": node("AddLayer", image=["1", 0], name="high", z_index=7),
        "3": node("AddLayer", image=["1", 0], name="low", z_index=-2, layers=["2", 0]),
        "4": load("square.png", name="ours", layers=["3", 0]),
    }
    assert [x.name for x in door.read_stack(host.value(prompt, "4"))] == ["low", "high", "ours"]


def test_a_stack_of_cores_nodes_without_a_canvas_is_as_large_as_core_says(host, pictures, door):
    from comfy_extras.nodes_compositor import canvas_extent, document_items, expand_item_frames

    for rotation in (0.0, 30.0, 45.0, 90.0, 200.0):
        prompt = {
            "1": node("LoadImage", image="opaque.png"),
            "2": node("AddLayer", image=["1", 0], x=7, y=-11),
            "3": node("LoadImage", image="soft.png"),
            "4": node("AddLayer", image=["3", 0], x=90, y=50, rotation=rotation, layers=["2", 0]),
        }
        stack = host.value(prompt, "4")
        document = door.read_stack(stack)
        assert (document.width, document.height) == canvas_extent(expand_item_frames(document_items(stack)))


def test_load_layer_does_not_touch_the_stack_it_is_given(host, pictures):
    prompt = {"1": load("opaque.png"), "2": load("square.png", layers=["1", 0])}
    longer, first = host.value(prompt, "2"), host.value(prompt, "1")
    assert len(first["layers"]) == 1
    assert len(longer["layers"]) == 2


def test_rotation_is_radians_on_the_wire_and_degrees_at_the_node(host, pictures):
    stack = host.value({"1": load("square.png", rotation=45.0)}, "1")
    assert stack["layers"][0]["rotation"] == pytest.approx(math.pi / 4)


def test_composite_alpha_and_visible_masks_are_what_the_formula_says(host, pictures):
    """M_i = alpha_i * product over layers above of (1 - alpha_j); the masks and the rest sum to 1."""
    prompt = {
        "1": load("soft.png", canvas_width=60, canvas_height=50),
        "2": load("soft.png", x=12, y=10, opacity=0.5, layers=["1", 0]),
        "3": node("LD_LayerComposite", layers=["2", 0], backdrop="transparent"),
    }
    alpha, shown, image = host.value(prompt, "3", 1), host.value(prompt, "3", 2), host.value(prompt, "3", 0)
    own = torch.from_numpy(pictures["soft.png"][..., 3]).float() / 255
    back, front = torch.zeros(50, 60), torch.zeros(50, 60)
    back[:40, :48] = own
    front[10:50, 12:60] = own * 0.5
    assert torch.allclose(shown, torch.stack([back * (1 - front), front]), atol=1e-6)
    assert torch.allclose(alpha[0], 1 - (1 - back) * (1 - front), atol=1e-6)
    assert image.shape == (1, 50, 60, 4)
    assert torch.equal(image[..., 3], alpha)


def test_the_backdrop_shows_only_through_holes(host, pictures):
    prompt = {
        "1": load("square.png", x=4, y=4, canvas_width=32, canvas_height=32),
        "2": node("LD_LayerComposite", layers=["1", 0], backdrop="grey"),
    }
    image = host.value(prompt, "2")
    assert image.shape == (1, 32, 32, 3)
    assert torch.equal(image[0, 10, 10], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.allclose(image[0, 0, 0], torch.tensor(150 / 255))


def test_a_picture_without_alpha_is_opaque(host, pictures):
    prompt = {
        "1": load("opaque.png"),
        "2": node("LD_LayerComposite", layers=["1", 0], backdrop="transparent"),
    }
    assert host.value(prompt, "2").shape == (1, 96, 128, 3)
    assert bool((host.value(prompt, "2", 1) == 1).all())


def test_the_preview_marks_every_visible_layer_in_its_own_colour(host, pictures):
    prompt = {
        "1": load("opaque.png"),
        "2": load("square.png", x=60, y=40, layers=["1", 0]),
        "3": from_image(width=30, height=20, x=90, y=10, prompt="later", layers=["2", 0]),
        "4": node("LD_LayerPreview", layers=["3", 0], size=768),
    }
    image = (host.value(prompt, "4")[0] * 255).round().to(torch.uint8)
    assert image.shape == (576, 768, 3)
    assert host.run(prompt)["4"]["images"][0]["type"] == "temp"
    for colour in ((255, 82, 82), (255, 215, 64), (64, 196, 255)):
        assert int((image == torch.tensor(colour, dtype=torch.uint8)).all(-1).sum()) > 300, colour


def test_a_changed_file_is_read_again(host, pictures, door):
    prompt = {"1": load("changing.png")}
    Image.new("RGBA", (4, 4), (255, 0, 0, 255)).save(host.input / "changing.png")
    assert door.read_stack(host.value(prompt, "1")).layers[0].image[0, 0, 0] == 1
    Image.new("RGBA", (4, 4), (0, 255, 0, 255)).save(host.input / "changing.png")
    assert door.read_stack(host.value(prompt, "1")).layers[0].image[0, 0, 0] == 0
