"""Layer Board: a stack made by hand, as the page sends it or as a program posts it."""

import json

import numpy as np
import pytest
import torch
from graph import load, node
from PIL import Image

BOX = {"name": "ball", "prompt": "a red ball", "x": 4, "y": 5, "width": 20, "height": 10}
HOUSE = {"name": "house", "image": "house.png", "prompt": "a house", "recipe": {"noise": 0.25}}


@pytest.fixture(autouse=True, scope="module")
def pictures(host):
    """Put a picture with random pixels and a mask into ComfyUI's input folder."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (24, 32, 4), dtype=np.uint8)).save(host.input / "house.png")
    Image.fromarray(np.tri(24, 32, dtype=np.uint8) * 255).save(host.input / "half.png")
    Image.new("RGBA", (16, 16), (255, 0, 0, 255)).save(host.input / "red.png")


@pytest.fixture
def door(pack):
    return pack("nodes.layers.socket")


def board(*layers, **more):
    return {"version": 1, "width": 64, "height": 48, "layers": list(layers), **more}


def prompt(state, **inputs):
    return {"b": node("LD_LayerBoard", board=state, **inputs)}


def test_a_board_is_a_stack_with_words_pictures_and_masks(host, door):
    stack = door.read_stack(host.value(prompt(board({**HOUSE, "mask": "half.png"}, BOX)), "b"))
    house, ball = stack
    assert (stack.width, stack.height) == (64, 48)
    assert (house.width, house.height, house.recipe.noise, house.prompt) == (32, 24, 0.25, "a house")
    assert torch.equal(house.mask, torch.tensor(np.tri(24, 32), dtype=torch.float32))
    with Image.open(host.input / "house.png") as file:
        assert torch.equal((house.image * 255).round(), torch.tensor(np.asarray(file), dtype=torch.float32))
    assert (ball.image, ball.prompt, ball.x, ball.height) == (None, "a red ball", 4, 10)


def test_a_board_may_be_text(host, door):
    assert len(door.read_stack(host.value(prompt(json.dumps(board(BOX))), "b"))) == 1


def test_marked_layers_come_out_one_a_line_in_the_order_of_the_stack(host):
    state = board(HOUSE, BOX, {**BOX, "name": "sun, moon"}, marked=["sun, moon", "house", "gone"])
    assert host.value(prompt(state), "b", 1) == "house\nsun, moon"
    assert host.value(prompt(state), "b", 2) == "Not on the board now, what was set for them is kept: 'gone'."
    assert host.value(prompt(board(BOX)), "b", 1) == ""


def test_layers_of_the_graph_lie_among_the_boards_own_and_are_shown_on_it(host, door):
    below = {"r": load("red.png", name="red", canvas_width=64, canvas_height=48)}
    order = {"version": 1, "layers": {"red": {"x": 9}}, "order": ["ball", "red", "house"]}
    graph = {**below, **prompt(board(BOX, HOUSE, arrangement=order), layers=["r", 0])}
    stack = door.read_stack(host.value(graph, "b"))
    assert [layer.name for layer in stack] == ["ball", "red", "house"]
    assert stack.layer("red").x == 9
    shown = host.run(graph)["b"]["layer_board"][0]
    assert [(layer["name"], layer["x"]) for layer in shown["layers"]] == [("red", 0)]
    assert shown["layers"][0]["picture"]["filename"].endswith(".png")


def test_a_picture_with_new_content_is_read_again(host):
    file = host.input / "changing.png"
    state = prompt(board({"name": "it", "image": "changing.png"}))
    for colour in (10, 200):
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(file)
        assert host.value(state, "b")["layers"][0]["image"][0, 0, 0, 0] == pytest.approx(colour / 255)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (
            board({**HOUSE, "image": "gone.png"}),
            "board: layer 'house': image 'gone.png' is not in ComfyUI's input",
        ),
        (
            board({**HOUSE, "mask": "gone.png"}),
            "board: layer 'house': mask 'gone.png' is not in ComfyUI's input",
        ),
        (board({**HOUSE, "image": "../../x.png"}), "board: layer 'house': image is '../../x.png'"),
        (board(BOX, BOX), "board: layer name is 'ball'"),
        ({"version": 2}, "board: version is 2"),
        ({**board(BOX), "width": 20000}, "board: canvas width is 20000"),
    ],
)
def test_a_wrong_board_is_refused_before_anything_runs(host, state, told):
    assert told in host.error_of(prompt(state))


def test_an_empty_board_says_what_to_do(host):
    assert "board: it has no layer. Draw a box on it" in host.error_of(prompt({}))
