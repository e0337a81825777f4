"""The learnt word stands in front of its noun, wherever the layer's words are."""

import random

import pytest

from layered_core.learning.wording import TEMPLATES, draw_text, join, noun_of, plain_text, with_word


@pytest.mark.parametrize(
    ("words", "noun"),
    [
        ("a ball", "ball"),
        ("A big red Ball.", "Ball"),
        ("a red ball by the sea", "ball"),
        ("a cat that sleeps", "cat"),
        ("an old house-boat, wooden", "house-boat"),
        ("in a meadow", "meadow"),
        ("ball", "ball"),
        ("  ", ""),
        ("?!", ""),
    ],
)
def test_the_noun_is_the_last_word_of_the_first_phrase(words, noun):
    assert noun_of(words) == noun


def test_a_word_that_contains_the_noun_is_not_taken_for_it():
    assert with_word("a balloon seller with a ball", 3, before_noun=True) == (
        "a balloon ", 3, " seller with a ball",
    )  # fmt: skip


def test_the_word_stands_before_the_noun_or_where_hosts_write_a_recipes_embedding():
    assert with_word("a red ball by the sea", 1, before_noun=True) == ("a red ", 1, " ball by the sea")
    assert with_word("a red ball", 1, before_noun=False) == (1, " a red ball")
    assert with_word("ball", 1, before_noun=True) == (1, " ball")


def test_places_follow_without_a_comma_and_other_words_with_one():
    assert plain_text(join(("a ", 0, " ball"), "by the sea", False), ["<w>"]) == "a <w> ball by the sea"
    assert plain_text(join(("a ", 0, " ball"), "a desert", False), ["<w>"]) == "a <w> ball, a desert"
    assert plain_text(join((0, " ball"), "a desert", True), ["<w>"]) == "a desert, <w> ball"
    assert join((0, " ball"), "", True) == (0, " ball")


def test_every_template_holds_the_words_once_and_there_are_27():
    assert len(set(TEMPLATES)) == 27
    assert all(t.count("{}") == 1 for t in TEMPLATES)


def test_every_drawn_text_names_each_layer_once_and_all_kinds_of_texts_are_drawn():
    rng = random.Random(0)
    texts = [
        plain_text(draw_text(rng, [(0, "a ball"), (1, "a star")], "by the sea"), ["<v>", "<w>"])
        for _ in range(300)
    ]
    for text in texts:
        assert text.count("<v>") == text.count("<w>") == text.count("ball") == text.count("star") == 1
    assert "a <v> ball and a <w> star" in texts
    assert "<w> a star and <v> a ball by the sea" in texts
    assert any("photo" in text for text in texts)
    assert sum("by the sea" in text for text in texts) > 100


def test_nothing_is_said_of_what_lies_behind_if_there_are_no_words_for_it():
    rng = random.Random(0)
    texts = [plain_text(draw_text(rng, [(0, "a ball")], ""), ["<w>"]) for _ in range(50)]
    assert not any("," in text or text.endswith(" ") for text in texts)
