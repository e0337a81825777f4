"""The learner keeps the best, stops when nothing improves, and leaves out steps that are not finite."""

import pytest
import torch

from layered_core.learning.learner import CHECK_EVERY, PATIENCE, Learnable, Learner
from layered_core.learning.lesson import LearnSettings
from layered_core.learning.plot import loss_plot
from layered_core.learning.word_values import zeros


def learner(rate=0.1, half=False, words=1):
    made = [
        Learnable(f"w{i}", {"w": torch.zeros(1, 3)}, {"w": 0.5}, zeros("ball", [4]), [(2.0, 8.0)])
        for i in range(words)
    ]
    return Learner(made, LearnSettings(rate=rate), half)


def loss(word, goal=1.0):
    return (word.vectors["w"] - goal).square().mean() + sum(
        (x - goal).square().mean() for x in word.values.keys + word.values.values
    )


def test_the_first_step_is_as_large_as_the_spreads_say():
    made = learner()
    word = made.words[0]
    made.step(loss(word))
    assert torch.allclose(word.vectors["w"], torch.full((1, 3), 0.05))
    assert torch.allclose(word.values.keys[0], torch.full((2, 4), 0.1 * 2 / 16))
    assert torch.allclose(word.values.values[0], torch.full((2, 4), 0.1 * 8 / 16))


def test_the_best_word_is_kept_not_the_last():
    made = learner()
    kept = []
    for error in (3.0, 1.0, 2.0):
        made.step(loss(made.words[0]))
        made.note([error])
        kept.append(made.words[0].vectors["w"].detach().clone())
    best = made.words[0].learnt({"layer": "a"})
    assert torch.equal(best.vectors["w"], kept[1])
    assert best.facts == {"layer": "a", "best_error": "1", "best_step": "2"}
    assert torch.equal(made.words[0].learnt({}, best=False).vectors["w"], kept[2])


def test_a_word_that_was_never_measured_is_its_start():
    word = learner().words[0].learnt({})
    assert word.vectors["w"].abs().max() == 0
    assert not word.vectors["w"].requires_grad


def test_it_stops_when_no_error_has_fallen_by_a_hundredth():
    made = learner(words=2)
    done = []
    for number in range(1 + 5):
        made.steps = number * CHECK_EVERY
        done.append(made.note([1.0 - 0.001 * number, 1.0 if number else 2.0]))
    assert done == [False, False, False, False, True, True]
    assert PATIENCE == 3 * CHECK_EVERY


def test_in_half_precision_small_gradients_are_scaled_and_steps_that_are_not_finite_left_out():
    single, half = learner(), learner(half=True)
    for made in (single, half):
        made.step(loss(made.words[0]))
    assert torch.allclose(single.words[0].vectors["w"], half.words[0].vectors["w"])
    before = half.words[0].vectors["w"].detach().clone()
    half.step(loss(half.words[0]) * torch.tensor(float("inf")))
    assert torch.equal(half.words[0].vectors["w"], before)
    half.step(loss(half.words[0]))
    assert not torch.equal(half.words[0].vectors["w"], before)


@pytest.mark.parametrize("losses", [[], [1.0], [0.0, 0.0], [3.0, 2.0, 1.0]])
def test_the_plot_shows_every_word_in_its_colour(losses):
    picture = loss_plot(losses, [(1, [1.0, 0.5]), (3, [0.5, 0.2])], ["krk", "zug"])
    assert picture.shape == (360, 640, 3)
    for colour in ((0xC0, 0x39, 0x2B), (0x24, 0x71, 0xA3)):
        assert bool((picture == torch.tensor(colour) / 255).all(-1).any())
