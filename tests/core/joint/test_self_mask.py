"""Self-mask guidance: the same on models of every kind, neutral where it says so, and self-attention guidance's
neighbour."""

import math

import pytest
import torch

from layered_core.canvas.soft_masks import gaussian_blur
from layered_core.joint.frames import SceneFrames
from layered_core.joint.self_mask import (
    BLUR,
    WINDOW,
    blurred_inside,
    frame_masks,
    predicted_picture,
    self_mask_guided,
)
from layered_core.noise.guidance import PREDICTIONS, classifier_free

DEVIATION = 0.7
SIGMA = 3.0


def ideal(words):
    """Return the ideal denoiser of pictures with a mean of their own and a deviation of ``DEVIATION``."""

    def picture(noisy, sigma):
        share = DEVIATION**2 / (DEVIATION**2 + sigma**2)
        return words + share * (noisy - words)

    return picture


def model(denoiser, kind, sigma):
    """Return ``denoiser`` as a model of a kind, and the factor from latents x0 + sigma noise to its input."""
    if kind == "flow_prediction":
        # The latents (1 - f) x0 + f noise have the noise of x0 + sigma noise if f = sigma / (1 + sigma).
        level, factor = sigma / (1 + sigma), 1 / (1 + sigma)
        return lambda x: (x - denoiser(x / factor, sigma)) / level, factor, level
    factor = 1 / math.sqrt(1 + sigma**2)

    def predict(x):
        picture = denoiser(x / factor, sigma)
        noise = (x / factor - picture) / sigma
        if kind == "v_prediction":
            return factor * noise - factor * sigma * picture
        return noise if kind == "epsilon" else picture

    return predict, factor, sigma


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 12, 12, generator=generator, dtype=torch.float64) * SIGMA
    masks = torch.rand(2, 12, 12, generator=generator, dtype=torch.float64)
    words, none = (torch.randn(2, 4, 12, 12, generator=generator, dtype=torch.float64) for _ in "ab")
    return noisy, masks, ideal(words), ideal(none)


def guided_by(kind, case, amount, scale=2.0, masks=None):
    """Return the guided picture, and what the blurred input stands for in latents x0 + sigma noise."""
    noisy, own, words, none = case
    masks = own if masks is None else masks
    (cond, factor, level), (uncond, _, _) = (model(d, kind, SIGMA) for d in (words, none))
    x = noisy * factor
    guided = classifier_free(uncond(x), cond(x), scale)
    picture = predicted_picture(cond(x), x, level, kind)
    blurred = blurred_inside(x, picture, masks, level, kind)
    led = self_mask_guided(guided, cond(x), x, cond(blurred), blurred, amount, level, kind)
    return predicted_picture(led, x, level, kind), blurred / factor


@pytest.mark.parametrize("kind", [*PREDICTIONS])
def test_models_of_every_kind_are_blurred_and_guided_alike(case, kind):
    noisy, masks, words, none = case
    picture = words(noisy, SIGMA)
    blurred = noisy + masks[:, None] * (gaussian_blur(picture, BLUR) - picture)
    base = none(noisy, SIGMA) + 2 * (picture - none(noisy, SIGMA))
    expected = base + 0.7 * (picture - words(blurred, SIGMA))
    led, x = guided_by(kind, case, 0.7)
    assert torch.allclose(x, blurred, atol=1e-5)
    assert torch.allclose(led, expected, atol=1e-5)
    assert float((expected - base).abs().mean()) > 1e-3


@pytest.mark.parametrize("kind", [*PREDICTIONS])
def test_amount_0_keeps_every_bit(case, kind):
    generator = torch.Generator().manual_seed(1)
    guided, *others = (torch.randn(2, 4, 12, 12, generator=generator) for _ in range(5))
    assert self_mask_guided(guided, *others, 0.0, 0.5, kind) is guided


@pytest.mark.parametrize("kind", [*PREDICTIONS])
def test_where_no_layer_is_seen_classifier_free_guidance_alone_is_left(case, kind):
    noisy, masks, words, none = case
    led, x = guided_by(kind, case, 0.7, masks=torch.zeros_like(masks))
    assert torch.allclose(x, noisy, atol=1e-12)
    assert torch.allclose(led, classifier_free(none(noisy, SIGMA), words(noisy, SIGMA), 2.0), atol=1e-5)


def test_with_a_mask_of_ones_it_is_self_attention_guidance_and_what_the_blur_took(case):
    """ComfyUI's ``SelfAttentionGuidance`` returns ``cfg + (degraded - D(degraded_noised)) * scale``, with ``degraded``
    the blurred picture and ``degraded_noised = degraded + x - picture``."""
    noisy, masks, words, none = case
    picture = words(noisy, SIGMA)
    degraded = gaussian_blur(picture, BLUR)
    sag = classifier_free(none(noisy, SIGMA), picture, 2.0)
    sag = sag + (degraded - words(degraded + noisy - picture, SIGMA)) * 0.7
    led, _ = guided_by("epsilon", case, 0.7, masks=torch.ones_like(masks))
    assert torch.allclose(led, sag + 0.7 * (picture - degraded), atol=1e-5)


def test_it_acts_between_sigma_8_and_1():
    assert [WINDOW.acts(sigma) for sigma in (8.1, 8.0, 3.0, 1.01, 1.0, 0.5)] == [
        False, True, True, True, False, False,
    ]  # fmt: skip


def test_a_covered_layer_is_blurred_only_where_it_is_seen():
    alphas = torch.zeros(1, 2, 16, 16)
    alphas[0, 0, :8], alphas[0, 1, :, :8] = 1.0, 0.5
    masks = frame_masks(alphas, SceneFrames(2), (2, 2))
    assert masks.tolist() == [
        [[0.5, 1.0], [0.0, 0.0]], [[0.5, 0.0], [0.5, 0.0]], [[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2
    ]  # fmt: skip


def test_an_absent_layer_is_not_blurred_and_covers_nothing():
    masks = frame_masks(torch.ones(2, 2, 8, 8), SceneFrames(2, (1, 2)), (1, 1))
    assert masks.flatten().tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
