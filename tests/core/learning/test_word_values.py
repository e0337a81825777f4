"""Values of a learnt word act on the word and its noun, and on nothing else."""

import pytest
import torch

from layered_core.attention.words import Token
from layered_core.errors import LayeredError
from layered_core.learning.word_values import REACH, WordValues, find_place, with_values


def tokens(text):
    return [Token(word, i) for i, word in enumerate(text.split(), 1)]


def learnt(noun="ball", widths=(4, 6)):
    make = torch.Generator().manual_seed(1)
    keys, values = (tuple(torch.randn(2, w, generator=make) for w in widths) for _ in range(2))
    return WordValues(noun, keys, values)


def place(text, word="<w>", noun="ball", length=20):
    return find_place(tokens(text), word.split(), noun.split(), learnt(noun), length)


def test_the_noun_is_the_one_that_follows_the_word():
    found = place("a ball and a <w> red ball beside a ball")
    assert (found.word, found.noun) == ((5,), (7,))


def test_each_occurrence_of_the_word_has_its_own_noun():
    found = place("<w> ball and <w> star and <w> ball")
    assert (found.word, found.noun) == ((1, 4, 7), (2, 8))


def test_a_noun_of_several_tokens_and_a_word_of_several_vectors_are_found_as_a_whole():
    found = place("a house boat <w> <w1> old house boat", "<w> <w1>", "house boat")
    assert (found.word, found.noun) == ((4, 5), (7, 8))


def test_a_part_of_the_word_or_of_the_noun_is_not_taken_for_it():
    assert place("a <w> ball", "<w> <w1>") is None
    assert place("a <w> house of cards", noun="house boat").noun == ()


def test_a_noun_far_away_belongs_to_another_thing():
    assert place(f"<w> {'very ' * REACH}ball", length=77).noun == (REACH + 2,)
    assert place(f"<w> {'very ' * (REACH + 1)}ball", length=77).noun == ()


def test_other_words_keys_and_values_keep_their_bits():
    k, v = torch.randn(2, 20, 4), torch.randn(2, 20, 4)
    found = place("a <w> red ball")
    new_k, new_v = with_values(k, v, [[found], []], block=0)
    others = [i for i in range(20) if i not in (2, 4)]
    for new, old in ((new_k, k), (new_v, v)):
        assert torch.equal(new[0, others], old[0, others])
        assert torch.equal(new[1], old[1])
    assert torch.equal(new_k[0, 2], k[0, 2] + found.values.keys[0][0])
    assert torch.equal(new_v[0, 4], v[0, 4] + found.values.values[0][1])


def test_texts_without_a_learnt_word_give_back_the_tensors_themselves():
    k, v = torch.randn(2, 20, 4), torch.randn(2, 20, 4)
    new_k, new_v = with_values(k, v, [[], []], block=0)
    assert new_k is k
    assert new_v is v


def test_a_text_that_the_host_repeats_has_its_values_in_every_repetition():
    k = torch.zeros(1, 40, 6)
    new, _ = with_values(k, k, [[place("a <w> ball")]], block=1)
    assert new[0].abs().amax(1).nonzero()[:, 0].tolist() == [2, 3, 22, 23]


def test_one_entry_counts_for_all_pictures_and_two_words_of_a_text_add_up():
    k = torch.zeros(3, 20, 4)
    one, two = place("a <w> ball"), place("a <w> ball")
    new, _ = with_values(k, k, [[one, two]], block=0)
    assert torch.equal(new[2, 2], 2 * one.values.keys[0][0])
    assert torch.equal(new[0], new[2])


def test_texts_whose_keys_differ_from_picture_to_picture_are_changed_in_all_pictures():
    k = torch.zeros(2, 3, 20, 4)
    new, _ = with_values(k, k, [[], [place("a <w> ball")]], block=0)
    assert new[0].abs().max() == 0
    assert all(x.abs().amax(1).nonzero()[:, 0].tolist() == [2, 3] for x in new[1])


def test_gradients_reach_the_values_and_the_keys():
    found = place("a <w> ball")
    for tensor in (*found.values.keys, *found.values.values):
        tensor.requires_grad_()
    k = torch.zeros(1, 20, 4, requires_grad=True)
    new_k, new_v = with_values(k, k, [[found]], block=0)
    (new_k.sum() + 2 * new_v.sum()).backward()
    assert torch.equal(found.values.keys[0].grad, torch.ones(2, 4))
    assert torch.equal(found.values.values[0].grad, torch.full((2, 4), 2.0))
    assert torch.equal(k.grad, torch.full((1, 20, 4), 3.0))


def test_values_of_another_model_are_named():
    learnt().check_fits("layer 'a'", [4, 6])
    with pytest.raises(
        LayeredError, match="layer 'a': the values of a learnt word is .*learn the word again"
    ):
        learnt().check_fits("layer 'a'", [4, 6, 6])


def test_blocks_that_do_not_belong_together_are_refused():
    with pytest.raises(LayeredError, match="blocks of a learnt word's values"):
        WordValues("ball", (torch.zeros(2, 4),), ())
    with pytest.raises(LayeredError, match="shapes of block 0"):
        WordValues("ball", (torch.zeros(2, 4),), (torch.zeros(3, 4),))
