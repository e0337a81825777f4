"""A lesson shows each layer on those behind it, and bad input is named with its layer before anything is learnt."""

import random
from dataclasses import replace

import pytest
import torch

from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.learning.lesson import (
    LearnSettings,
    default_name,
    find_subjects,
    plan_lesson,
    with_embeddings,
)


def square(name, x, colour, prompt, **more):
    image = torch.zeros(32, 32, 4)
    image[..., colour], image[..., 3] = 1, 1
    return Layer(name, image, x=x, y=16, prompt=prompt, **more)


def document():
    back = Layer(
        "back", torch.cat([torch.full((64, 64, 3), 0.5), torch.ones(64, 64, 1)], -1), prompt="at sea"
    )
    return LayerDocument(
        64,
        64,
        (back, square("one", 0, 0, "a ball"), square("two", 16, 1, "a star"), Layer("words", prompt="a cat")),
    )


def lesson(layers=("one", "two"), **settings):
    found = find_subjects(document(), layers)
    return plan_lesson(document(), found, LearnSettings(**settings), (64, 64), (8, 8))


def test_a_picture_shows_the_document_up_to_and_with_the_layer():
    made = lesson()
    assert made.pictures[0, :, 32, 20].tolist() == [1, 0, 0]
    assert made.pictures[1, :, 32, 20].tolist() == [0, 1, 0]
    assert made.pictures[0, :, 32, 40].tolist() == [0.5, 0.5, 0.5]


def test_masks_are_what_is_seen_of_each_layer_in_each_picture():
    made = lesson()
    assert made.masks[0].sum((1, 2)).tolist() == [16, 0]
    assert made.masks[1].sum((1, 2)).tolist() == [8, 16]


def test_on_grey_a_layer_is_alone_and_nothing_is_said_of_others():
    made = lesson(context="grey")
    assert made.pictures[1, 0, 32, 4] == pytest.approx(150 / 255)
    assert made.masks[1].sum((1, 2)).tolist() == [0, 16]
    assert made.behind == (("a ball",), ("a star",))
    rng = random.Random(0)
    assert all(len(made.draw(rng).shown) == 1 for _ in range(30))


def test_each_picture_of_a_batch_names_what_it_takes_the_error_from():
    made, rng = lesson(), random.Random(0)
    drawn = [made.draw(rng) for _ in range(200)]
    assert {x.shown for x in drawn} == {(0,), (1,), (0, 1)}
    for x in drawn:
        assert sorted(piece for piece in x.text if isinstance(piece, int)) == list(x.shown)
        assert x.picture == max(x.shown)
    assert any("at sea" in str(x.text) for x in drawn)


def test_a_layer_that_is_covered_in_a_picture_is_not_learnt_from_there():
    covered = replace(document(), layers=(*document().layers[:2], square("two", 0, 1, "a star")))
    made = plan_lesson(covered, find_subjects(covered, ["one", "two"]), LearnSettings(), (64, 64), (8, 8))
    rng = random.Random(0)
    assert {made.draw(rng).shown for _ in range(100)} == {(0,), (1,)}


def test_without_names_all_layers_with_picture_and_words_are_learnt_under_names_of_their_own():
    found = find_subjects(document())
    assert [(x.layer, x.word) for x in found] == [
        ("back", "back-look"), ("one", "one-look"), ("two", "two-look"),
    ]  # fmt: skip
    assert [default_name(x, 2) for x in ("Red  ball (1)", "猫", "a" * 80)] == [
        "red-ball-1-look", "layer-3-look", f"{'a' * 50}-look",
    ]  # fmt: skip


def test_the_words_come_into_the_recipes_of_their_layers_alone():
    made = with_embeddings(document(), find_subjects(document(), ["two"], {"two": "krk"}))
    assert [x.recipe.embedding for x in made] == [None, None, "krk", None]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"visible": False}, "layer 'one': visible is False"),
        ({"image": None}, "layer 'one' has no picture to learn from"),
        ({"prompt": " "}, "layer 'one': words is ' '; allowed: words with a noun"),
        ({"prompt": "!?"}, "layer 'one': words"),
        ({"prompt": "very " * 60 + "red ball"}, "layer 'one': number of words is 62"),
        ({"x": 63.0}, "layer 'one': visible area is .*at least 4 cells of the 8 x 8"),
        ({"x": 300.0}, "layer 'one': visible area is 0.0"),
    ],
)
def test_a_layer_that_cannot_be_learnt_is_named(change, told):
    wrong = document().with_layer(replace(document().layer("one"), **change))
    with pytest.raises(LayeredError, match=told):
        plan_lesson(wrong, find_subjects(wrong, ["one"]), LearnSettings(), (64, 64), (8, 8))


@pytest.mark.parametrize(
    ("layers", "words", "told"),
    [
        (["none"], {}, "layer name is 'none'"),
        ([], {}, "layers to learn from"),
        (["one"], {"two": "krk"}, "layer of a word's name is 'two'; allowed: 'one'"),
        (["one"], {"one": "a/b"}, "layer 'one': name of its word is 'a/b'"),
        (["one"], {"one": "../krk"}, "layer 'one': name of its word"),
        (
            ["one", "two"],
            {"one": "krk", "two": "KRK"},
            "layers 'one' and 'two' would both be learnt as 'krk'",
        ),
    ],
)
def test_layers_and_names_that_do_not_fit_are_named(layers, words, told):
    with pytest.raises(LayeredError, match=told):
        find_subjects(document(), layers, words)


def test_a_document_without_such_layers_is_named():
    with pytest.raises(LayeredError, match="no layer can be learnt from"):
        find_subjects(LayerDocument(64, 64, (Layer("words", prompt="a cat"),)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("form", "x"), ("context", "x"), ("steps", -1), ("steps", 10_001), ("batch", 0), ("batch", 65),
        ("rate", 0), ("rate", 2), ("rate", float("nan")), ("vectors", 0), ("vectors", 5), ("attention", -1),
        ("seed", -1),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(LayeredError, match=f"^{field} is "):
        LearnSettings(**{field: value})
