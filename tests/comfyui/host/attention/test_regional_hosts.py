"""ComfyUI and diffusers predict the same from the same weights, words and layers."""

import pytest
import torch
from regional_scene import MODES, WIDGETS, apply, encode, halves, once
from twin import Twin


def of_velocity(regions, attention, x, guided, cond, sigma):
    """Rescale as diffusers does with a model of v-prediction: on what it predicts."""
    skip, scale = x / (sigma**2 + 1), sigma / (sigma**2 + 1) ** 0.5
    mine, other = ((skip - picture) / scale for picture in (guided, cond))
    empty = regions.guidance.of_empty_picture(x / (sigma**2 + 1) ** 0.5, sigma, "v_prediction")
    return skip - scale * (mine + attention.rescaling(mine, other, empty, sigma))


SHARES = 0.1, 0.5, 0.9
GUIDED = {"guidance": 6.0, "growth": 0.05}, {"rescale": 0.7}, {"guidance": 6.0, "rescale": 0.7}
CASES = [("plain", share, {}) for share in SHARES] + [
    # Each mode at each share, each setting with each mode and at each share; the other cases are slow.
    pytest.param(mode, share, more, marks=[pytest.mark.slow] if more and (m + s + g) % 3 else [])
    for m, mode in enumerate(MODES)
    for s, share in enumerate(SHARES)
    for g, more in enumerate([{}, *GUIDED])
]
"""Mode, share of the run and settings of the guidance, which act on layers alone."""


@pytest.fixture(scope="module")
def twin(pack):
    return Twin(pack("demo.world.places").MODEL)


@pytest.mark.parametrize(("mode", "share", "more"), CASES)
def test_both_hosts_predict_the_same(regions, twin, loaded, mode, share, more):
    model, clip = loaded
    sigma = model.get_model_object("model_sampling").sigma(torch.tensor(round((1 - share) * 999.0))).item()
    stack = halves(regions, negative="a white house")
    regional = (
        apply(regions, model, clip, stack, mode=mode, negative="dark", **more) if mode != "plain" else None
    )
    positive, negative = regional[1:] if regional else (encode(clip, WIDGETS["prompt"]), encode(clip, "dark"))
    seen = once(regional[0] if regional else model, positive, negative, sigma, cfg=3.0)
    attentions, scale = None, 3.0
    if regional:
        carried = [c[0][1][regions.patch.KEY] for c in (negative, positive)]
        attentions = [
            regions.regional.RegionalAttention(h.regions, h.settings, h.contexts, h.tokens) for h in carried
        ]
        scale = 3.0 * attentions[1].guidance((16, 16), sigma)
    contexts = torch.cat([negative[0][0], positive[0][0]])
    theirs = twin.predict(regions, seen["input"], sigma, contexts, attentions)
    theirs = [*theirs, regions.guidance.classifier_free(*theirs, scale)]
    if regional:
        theirs[2] = of_velocity(regions, attentions[1], seen["input"], theirs[2], theirs[1], sigma)
    for name, other in zip(("uncond", "cond", "guided"), theirs, strict=True):
        a, b = ((seen["input"] - x) / sigma for x in (seen[name], other))
        assert float((a - b).norm() / b.norm()) < 1e-3
