"""The training of a lesson's words, with small models of a formula."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from layered_core.document import Layer, LayerDocument
from layered_core.learning import objective
from layered_core.learning.learner import Learnable, Learner
from layered_core.learning.lesson import LearnSettings, find_subjects, plan_lesson
from layered_core.learning.training import Prediction, Training, attended, by_sigma, said_of

ALPHAS = torch.linspace(0.99, 0.01, 50)


class Ideal:
    """The ideal denoiser of pictures that are all one colour, which is the word's vector: it says that the clean
    picture has this colour. As an eps-net, a v-net or one that predicts the picture."""

    def __init__(self, prediction: str, word: Tensor) -> None:
        self.prediction, self.alphas, self.word = prediction, ALPHAS, word

    def training(self):
        return nullcontext()

    def predict(self, noisy, t, drawn, record):
        clean = self.word[0].view(1, -1, 1, 1).expand_as(noisy)
        return Prediction(said_of(self.prediction, noisy, clean, self.alphas[t]))


def lesson(steps=40, **more):
    image = torch.ones(32, 32, 4)
    ball = Layer("ball", image=image, x=16, y=16, prompt="a ball")
    document = LayerDocument(64, 64, (Layer("sky", image=torch.ones(64, 64, 4)), ball))
    settings = LearnSettings(steps=steps, form="word", rate=0.3, **more)
    return plan_lesson(
        document, find_subjects(document, ["ball"], {"ball": "krk"}), settings, (64, 64), (8, 8)
    )


def training(prediction="v_prediction", spoil=False, **more):
    its = lesson(**more)
    latents = torch.tensor([1.0, -0.5, 0.3, 0.0]).view(1, 4, 1, 1).expand(1, 4, 8, 8).clone()
    if spoil:
        latents = torch.where(its.masks[:, 0][:, None] > 0, latents, torch.nan)
    word = torch.zeros(1, 4)
    learner = Learner([Learnable("krk", {"krk": word}, {"krk": 0.5})], its.settings)
    return Training(its, latents, learner, Ideal(prediction, word)), word


@pytest.mark.parametrize("prediction", objective.PREDICTIONS)
def test_a_word_learns_the_colour_inside_the_mask_whatever_the_model_predicts(prediction):
    it, word = training(prediction)
    it.train(lambda done, total: None, lambda done: None)
    assert torch.allclose(word[0].detach(), torch.tensor([1.0, -0.5, 0.3, 0.0]), atol=0.15)
    assert it.learner.errors[-1][1][0] < 0.1 * it.learner.errors[0][1][0]


def test_models_that_predict_noise_and_v_give_gradients_of_one_direction():
    found = []
    for prediction in ("epsilon", "v_prediction"):
        it, word = training(prediction)
        it.loss().backward()
        found.append(word.grad.flatten())
    assert float(torch.cosine_similarity(*found, dim=0)) > 0.999


def test_the_training_does_not_see_what_lies_outside_the_mask():
    losses = []
    for spoil in (False, True):
        it, word = training(spoil=spoil)
        loss = it.loss()
        loss.backward()
        losses.append((float(loss.detach()), word.grad.clone()))
    assert losses[0][0] == losses[1][0]
    assert torch.equal(losses[0][1], losses[1][1])


def test_progress_and_previews_come_when_they_are_due_and_an_exception_stops_the_training():
    it, _ = training(steps=60)
    told, shown = [], []
    it.train(lambda done, total: told.append((done, total)), shown.append)
    assert told[0] == (1, 60)
    assert told[-1][0] == told[-1][1] == it.learner.steps
    assert shown[0] == 50
    it, _ = training()

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        it.train(stop, lambda done: None)
    assert it.learner.steps == 3


def test_no_steps_leave_the_words_at_their_start():
    it, word = training(steps=0)
    it.train(lambda done, total: None, lambda done: None)
    (learnt,) = it.learnt([torch.zeros(2, 2)])
    assert torch.equal(learnt.vectors["krk"], torch.zeros(1, 4))
    assert (learnt.facts["layer"], learnt.facts["class_words"], learnt.facts["steps"]) == (
        "ball",
        "a ball",
        "0",
    )


@pytest.mark.parametrize("prediction", objective.PREDICTIONS)
def test_what_a_model_said_follows_from_its_clean_picture(prediction):
    clean, noise, alpha = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), torch.tensor([0.9, 0.2])
    noisy = objective.noised(clean, noise, alpha)
    said = said_of(prediction, noisy, clean, alpha)
    assert torch.allclose(said, objective.target(prediction, clean, noise, alpha), atol=1e-5)
    sigma = ((1 - alpha) / alpha).sqrt().view(-1, 1, 1, 1)
    assert torch.allclose(by_sigma(noisy, alpha), clean + sigma * noise, atol=1e-5)


def test_attention_to_a_word_is_the_share_of_its_tokens():
    q, k = torch.zeros(2, 5, 4), torch.randn(2, 8, 4)  # every token gets the same
    maps = attended(q, k, 2, [(0, (1, 2)), (1, (7,))])
    assert torch.allclose(maps, torch.tensor([[0.25] * 5, [0.125] * 5]))
