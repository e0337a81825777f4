"""Layers chosen by name, number, range and pattern."""

import pytest

from layered_core.document import Layer, LayerDocument, identical
from layered_core.editing.selection import select_layers
from layered_core.errors import LayeredError

NAMES = ("sky", "cloud 1", "cloud 2", "a, b", "4", "x[1]", "star")


def stack(names=NAMES):
    return LayerDocument(
        64, 48, [Layer(n, width=4, height=4) for n in names], (0.1, 0.2, 0.3), "words", "no words"
    )


@pytest.mark.parametrize(
    ("which", "chosen"),
    [
        ("star", ["star"]),
        (" star ,sky ", ["sky", "star"]),
        ("star, star, 7", ["star"]),
        ("1", ["sky"]),
        ("-1", ["star"]),
        ("-7", ["sky"]),
        ("2-3", ["cloud 1", "cloud 2"]),
        ("6 - 99", ["x[1]", "star"]),
        ("4", ["4"]),  # the layer with this name, not the fourth one
        ("5", ["4"]),
        ("cloud*", ["cloud 1", "cloud 2"]),
        ("c?oud 1", ["cloud 1"]),
        ("x[*", ["x[1]"]),
        ("x[1]", ["x[1]"]),
        ('"a, b"', ["a, b"]),
        ('star, "a, b",', ["a, b", "star"]),
        ("*", list(NAMES)),
    ],
)
def test_a_choice_takes_these_layers_and_leaves_the_others(which, chosen):
    selected, rest = select_layers(stack(), which)
    assert [layer.name for layer in selected] == chosen
    assert [layer.name for layer in rest] == [n for n in NAMES if n not in chosen]


def test_a_layer_that_is_called_like_a_pattern_comes_before_the_pattern():
    document = stack(("sky", "*", "star"))
    assert [layer.name for layer in select_layers(document, "*")[0]] == ["*"]
    assert identical(select_layers(document, "**")[0], document)


def test_all_is_the_document_itself():
    document = stack()
    selected, rest = select_layers(document, "*")
    assert identical(selected, document)
    assert all(x is y for x, y in zip(selected, document, strict=True))
    assert len(rest) == 0


def test_canvas_and_words_are_on_both_sides_and_the_background_under_the_bottom_layer():
    for which, bottom in (("sky", 0), ("star", 1)):
        parts = select_layers(stack(), which)
        for index, part in enumerate(parts):
            assert (part.width, part.height, part.prompt, part.negative) == (64, 48, "words", "no words")
            assert part.background == ((0.1, 0.2, 0.3) if index == bottom else None)


@pytest.mark.parametrize(
    "which",
    [
        "stra",
        "0",
        "8",
        "-8",
        "8-9",
        "3-2",
        "Cloud*",
        "a, b",
        "",
        " ",
        ",",
        "star, stra",
        '"',
        "99999999999999999999",
    ],
)
def test_what_chooses_nothing_is_named_and_the_names_are_listed(which):
    with pytest.raises(
        LayeredError,
        match=r"to select is '.*'; allowed: 'sky', 'cloud 1', 'cloud 2', 'a, b', '4', 'x\[1\]', 'star'",
    ):
        select_layers(stack(), which)


def test_nothing_can_be_chosen_of_nothing():
    with pytest.raises(LayeredError, match="the document is empty"):
        select_layers(stack(()), "*")
