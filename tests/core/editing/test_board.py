"""Stacks made on a board: the board's own layers among those that came from elsewhere."""

import pytest
import torch

from layered_core.document import Layer, LayerDocument
from layered_core.editing.board import laid, read_board
from layered_core.errors import LayeredError
from layered_core.formats.limits import Budget, Limits
from layered_core.formats.pictures import write_picture

BOX = {"name": "ball", "prompt": "a red ball", "x": 4, "y": 5, "width": 20, "height": 10}
BELOW = LayerDocument(
    40, 30, (Layer("sky", width=40, height=30), Layer("ball", width=5, height=5)), (0.1, 0.2, 0.3), "a park"
)


def board(*layers, **more):
    return read_board({"version": 1, "width": 64, "height": 48, "layers": list(layers), **more})


def stack_of(board, below=None, folder=None):
    return laid(board, lambda name, key: folder / name, Budget(Limits()), below)


def test_own_layers_are_layers_of_the_document_schema(tmp_path):
    pixels = torch.rand(6, 8, 4).mul(255).round() / 255
    write_picture(pixels, tmp_path / "house.png")
    write_picture(torch.eye(6), tmp_path / "mask.png")
    house = {"name": "house", "image": "house.png", "mask": "mask.png", "recipe": {"noise": 0.25}}
    stack, marked, remarks = stack_of(
        board(house, BOX, marked=["ball"], background=[0, 0.5, 1]), folder=tmp_path
    )
    assert [layer.name for layer in stack] == ["house", "ball"]
    assert (stack.width, stack.height, stack.background) == (64, 48, (0, 0.5, 1))
    first, second = stack
    assert torch.equal(first.image, pixels)
    assert torch.equal(first.mask, torch.eye(6))
    assert first.recipe.noise == 0.25
    assert (second.prompt, second.x, second.width, second.image) == ("a red ball", 4, 20, None)
    assert (marked, remarks) == (("ball",), [])


def test_layers_from_elsewhere_lie_behind_and_can_be_changed_and_put_in_order():
    changes = {"version": 1, "layers": {"sky": {"opacity": 0.5}}, "order": ["box", "sky", "ball"]}
    box = {**BOX, "name": "box"}
    stack, _, _ = stack_of(board(box), BELOW)
    assert [layer.name for layer in stack] == ["sky", "ball", "box"]
    stack, _, _ = stack_of(board(box, arrangement=changes), BELOW)
    assert [layer.name for layer in stack] == ["box", "sky", "ball"]
    assert stack.layer("sky").opacity == 0.5


def test_what_the_board_leaves_open_is_taken_from_the_layers_that_come_in():
    stack, _, _ = stack_of(read_board({"version": 1}), BELOW)
    assert (stack.width, stack.height, stack.background, stack.prompt) == (40, 30, (0.1, 0.2, 0.3), "a park")
    stack, _, _ = stack_of(board(prompt="the sea"), BELOW)
    assert (stack.width, stack.height, stack.prompt) == (64, 48, "the sea")
    assert len(stack_of(read_board({}))[0]) == 0


def test_a_layer_without_a_size_is_as_large_as_the_canvas():
    sky = {"name": "all", "prompt": "a park"}
    assert (stack_of(board(sky))[0].layer("all").width, stack_of(board(sky))[0].layer("all").height) == (
        64,
        48,
    )
    stack, _, _ = stack_of(read_board({"version": 1, "layers": [sky]}), BELOW)
    assert (stack.layer("all").width, stack.layer("all").height) == (40, 30)


def test_of_two_layers_of_one_name_the_one_from_elsewhere_is_renamed_and_told():
    stack, marked, remarks = stack_of(board(BOX, marked=["ball"]), BELOW)
    assert [layer.name for layer in stack] == ["sky", "ball 2", "ball"]
    assert marked == ("ball",)
    assert stack.layer("ball").prompt == "a red ball"
    assert remarks == ["Two layers are called 'ball': the one that is not the board's own is 'ball 2' now."]


def test_names_that_are_gone_are_kept_and_told():
    gone = {"version": 1, "layers": {"moon": {"x": 3}}}
    _, marked, remarks = stack_of(board(BOX, marked=["ball", "sun"], arrangement=gone))
    assert marked == ("ball",)
    assert remarks == ["Not on the board now, what was set for them is kept: 'moon', 'sun'."]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"version": 2}, "board: version is 2; allowed: 1. A newer version of this pack made this board"),
        ({"version": 1, "zoom": 3}, "board: JSON: key is 'zoom'"),
        ({"version": 1, "layers": [{"name": "a", "width": -1}]}, "board: layer 'a': width is -1"),
        ({"version": 1, "layers": [{**BOX, "opacity": 2}]}, "board: layer 'ball': opacity is 2"),
        (
            {"version": 1, "layers": [{**BOX, "image": "a.png", "opacity": 2}]},
            "board: layer 'ball': opacity is 2",
        ),
        ({"version": 1, "layers": [{**BOX, "promt": ""}]}, "board: layer 'ball': key is 'promt'"),
        ({"version": 1, "layers": [BOX, BOX]}, "board: layer name is 'ball'; allowed: names that occur once"),
        ({"version": 1, "layers": [3]}, "board: layer number 1 is 3"),
        ({"version": 1, "layers": {}}, "board: layers is {}; allowed: a list"),
        ({"version": 1, "layers": [{**BOX, "name": str(i)} for i in range(51)]}, "number of layers is 51"),
        ({"version": 1, "width": 16385, "height": 4}, "board: canvas width is 16385"),
        ({"version": 1, "marked": "ball"}, "board: marked is 'ball'; allowed: a list of layer names"),
        ({"version": 1, "arrangement": {"version": 9}}, "board: arrangement: version is 9"),
        ("{", "board: JSON is '{'"),
        ([1], "board: JSON is [1]; allowed: a JSON object"),
    ],
)
def test_a_broken_board_is_refused_by_its_part(data, told):
    with pytest.raises(LayeredError) as caught:
        read_board(data)
    assert str(caught.value).startswith(told) or told in str(caught.value)


def test_too_many_layers_in_all_are_refused():
    many = LayerDocument(8, 8, tuple(Layer(f"l{i}", width=1, height=1) for i in range(50)))
    with pytest.raises(LayeredError, match="board: number of layers is 51; allowed: at most 50"):
        stack_of(board(BOX), many)
