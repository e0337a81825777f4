"""Layers' words are found in prompts as whole sequences, in order; ambiguous ones are reported."""

import re

import pytest

from layered_core.attention.words import Token, find_words, join, layer_words, negative_texts
from layered_core.document import Layer, Recipe


def tokenise(text, chunk=75):
    """Return words as tokens in chunks with a start and an end token each, as in CLIP."""
    return [
        Token(w, i // chunk * (chunk + 2) + 1 + i % chunk)
        for i, w in enumerate(re.findall(r"\w+|[^\w\s]", text))
    ]


def places(prompt, *layers):
    return [m.indices for m in find_words(tokenise(prompt), [tokenise(w) for w in layers])]


def test_words_are_found_as_whole_sequences():
    assert places("a red house beside a red ball", "a red ball", "a red house", "red") == [
        (5, 6, 7),
        (1, 2, 3),
        (),
    ]


def test_longer_words_take_theirs_first():
    assert places("a red ball and a ball", "ball", "a red ball") == [(6,), (1, 2, 3)]


def test_layers_of_the_same_words_take_them_in_order():
    assert places("a star, a heart, a star", "a star", "a star") == [(1, 2), (7, 8)]


def test_one_word_speaks_of_all_layers_that_have_it():
    assert places("stars at night", "stars", "stars", "stars") == [(1,), (1,), (1,)]


@pytest.mark.parametrize(
    ("prompt", "layers", "found", "wanted"),
    [("a ball, a ball", ["ball"], 2, 1), ("b b b", ["b", "b"], 3, 2), ("x", ["y"], 0, 1)],
)
def test_what_is_missing_or_unclear_is_said(prompt, layers, found, wanted):
    for match in find_words(tokenise(prompt), [tokenise(w) for w in layers]):
        assert (match.indices, match.found, match.wanted) == ((), found, wanted)


def test_words_in_a_later_chunk_and_across_chunks_are_found():
    prompt = " ".join(["far"] * 74 + ["red", "ball"] + ["away"] * 80 + ["star"])
    assert places(prompt, "red ball", "star") == [(75, 78), (161,)]


def test_a_first_word_that_repeats_does_not_hide_the_match():
    assert places("a a a red ball", "a red ball") == [(3, 4, 5)]


def test_an_embedding_goes_before_the_words_as_the_host_writes_it():
    layer = Layer("x", prompt=" a dog ", width=1, height=1, recipe=Recipe(embedding="krk"))
    assert layer_words(layer, "embedding:") == "embedding:krk a dog"
    assert layer_words(Layer("x", width=1, height=1, recipe=Recipe(embedding="krk"))) == ""


def test_negatives_are_joined_once():
    assert join("blurry", "", " blurry ", "dark") == "blurry, dark"


def test_auto_negative_puts_every_prompt_where_its_layer_is_not():
    inside, outside = negative_texts("blurry", ["a ball", "a star", "a ball"], ["", "round", ""], auto=True)
    assert inside == ["blurry, a star", "blurry, round, a ball", "blurry, a star"]
    assert outside == "blurry, a ball, a star"


def test_without_auto_negative_only_own_negatives_are_added():
    assert negative_texts("blurry", ["a ball", "a star"], ["", "round"], auto=False) == (
        ["blurry", "blurry, round"],
        "blurry",
    )
