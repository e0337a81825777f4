"""Documents of scenes that are still to be made."""

import pytest
import torch

from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.joint.editing import plan_layers
from layered_core.joint.scenes import empty_remark, layer_names, with_layers

EMPTY = LayerDocument(16, 16, prompt="a red ball by the sea")
PICTURE = torch.ones(16, 16, 4)


def told(document):
    return [(x.name, x.prompt, x.visible) for x in document]


def test_names_are_the_words_and_numbered_where_they_are_taken():
    assert layer_names(["a ball", "a ball", "blend"]) == ["a ball", "a ball 2", "blend 2"]
    assert layer_names(["a ball"], ["a ball", "a ball 2"]) == ["a ball 3"]


def test_words_alone_become_a_background_layers_and_a_hidden_blend_that_are_all_sampled():
    document = with_layers(EMPTY, ["a red ball", "a star"], "by the sea")
    assert told(document) == [
        ("background", "by the sea", True), ("a red ball", "a red ball", True), ("a star", "a star", True),
        ("blend", EMPTY.prompt, False),
    ]  # fmt: skip
    plan = plan_layers(document, {})
    assert plan.names == ("a red ball", "a star", "background", "blend")
    assert plan.words == ("a red ball", "a star", "by the sea", EMPTY.prompt)
    assert bool((plan.change == 1).all())


def test_without_words_there_is_one_layer_with_those_of_the_scene():
    names = ["background", "foreground", "blend"]
    assert told(with_layers(EMPTY, [])) == [(name, EMPTY.prompt, name != "blend") for name in names]
    only_behind = LayerDocument(16, 16, (Layer("sea", PICTURE, prompt="by the sea"),), prompt="all")
    assert [x.name for x in with_layers(only_behind, [])] == ["sea", "foreground", "blend"]


def test_new_layers_come_in_front_and_what_is_there_stays():
    blend = Layer("blend", PICTURE, visible=False)
    sea, ball = Layer("sea", PICTURE, prompt="by the sea"), Layer("a ball", PICTURE, prompt="a ball")
    document = LayerDocument(16, 16, (blend, sea, ball), prompt="all")
    made = with_layers(document, ["a ball", "a star"])
    assert [x.name for x in made] == ["sea", "a ball", "a ball 2", "a star", "blend"]
    assert made.layer("blend") is blend
    assert made.layer("a ball") is ball
    assert made.layer("sea").image is PICTURE


def test_words_of_the_background_are_told_to_one_that_is_made_and_not_to_one_that_is_held():
    photo = Layer("photo", PICTURE)
    document = LayerDocument(16, 16, (photo,), prompt="all")
    assert with_layers(document, ["a ball"], "by the sea").layer("photo").prompt == "by the sea"
    assert with_layers(document, ["a ball"]).layer("photo").prompt == "all"
    assert with_layers(document, ["a ball"], "by the sea", {"photo"}).layer("photo") is photo


def test_a_layer_without_words_is_named_by_its_number():
    with pytest.raises(LayeredError, match="layer 2: words is ' '"):
        with_layers(EMPTY, ["a ball", " "])


def test_layers_in_which_nothing_came_out_are_named():
    seen, faint = torch.zeros(40, 40, 4), torch.zeros(40, 40, 4)
    seen[:2, :2, 3], faint[..., 3] = 0.5, 0.4
    document = LayerDocument(
        40, 40, (Layer("sea", torch.ones(40, 40, 4)), Layer("ball", seen), Layer("star", faint))
    )
    assert empty_remark(document, ["sea", "ball"]) == ""
    assert empty_remark(document, ["ball", "star"]) == (
        "Nothing came out in layer 'star'. Make it anew, or take another seed"
    )
