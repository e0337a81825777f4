"""CLIP hooks (a LoRA with or without keyframes) act on layers' words as on the prompt: a layer over the whole
canvas is the plain prompt."""

import comfy.hooks
import pytest
import torch
from comfy_extras.nodes_hooks import SetClipHooks
from hook_scene import THREE, TWO, made, with_hooks
from regional_scene import MODES, WORDS, apply, as_layer, encode, everywhere, predicted
from sampling import sample

CASES = [
    ((), False, 1, [0.6]), ((), True, 1, [0.6]), (TWO, False, 1, [0.1, 0.9]), (TWO, True, 2, [0.1, 0.9]),
    (THREE, True, 3, [0.1, 0.6, 0.9]),
]  # fmt: skip
"""Start and strength of every keyframe; whether the text encoder follows them; how often it encodes a text; a share
of the run for every keyframe that acts."""


@pytest.mark.parametrize("to_model", [False, True])
@pytest.mark.parametrize(
    ("keyframes", "schedule", "parts", "share"),
    [(*case, share) for *case, shares in CASES for share in shares],
)
def test_a_layer_over_the_whole_canvas_is_the_plain_prompt(
    regions, loaded, keyframes, schedule, parts, to_model, share
):
    model, clip = loaded
    sigma = model.get_model_object("model_sampling").percent_to_sigma(share)
    hooked = with_hooks(model, clip, keyframes, schedule, to_model)
    plain = predicted(model, encode(hooked, WORDS), encode(hooked, "dark"), sigma)
    hooked = with_hooks(model, clip, keyframes, schedule, to_model)
    layered = as_layer(regions, model, hooked, negative="dark")
    assert len(layered[1]) == len(encode(hooked, WORDS)) == parts
    for a, b in zip(predicted(*layered, sigma), plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_so_it_is_in_a_whole_run(regions, loaded):
    model, clip = loaded
    hooked = with_hooks(model, clip, THREE)
    plain = sample(model, encode(hooked, WORDS), encode(hooked, "dark"))
    layered = sample(*as_layer(regions, model, with_hooks(model, clip, THREE), negative="dark"))
    torch.testing.assert_close(layered, plain, atol=1e-3, rtol=1e-3)
    assert float((plain - sample(model, encode(clip, WORDS), encode(clip, "dark"))).abs().max()) > 0.1


def test_the_schedule_changes_a_layers_words(regions, loaded):
    model, clip = loaded
    hooked = with_hooks(model, clip, TWO, to_model=False)
    out, positive, negative = as_layer(regions, model, hooked)
    first, second = (entry[regions.patch.KEY].contexts[0] for _, entry in positive)
    assert torch.equal(first, encode(hooked, WORDS)[0][0][0])
    assert torch.equal(second, encode(hooked, WORDS)[1][0][0])
    assert float((first - second).abs().max()) > 1e-2


@pytest.mark.parametrize("mode", MODES)
def test_hooks_without_strength_change_nothing(regions, loaded, mode):
    model, clip = loaded
    hooks = comfy.hooks.create_hook_lora(made(model, clip), 0.0, 0.0)
    hooked = SetClipHooks().apply_hooks(clip, True, True, hooks)[0]
    plain, layered = (
        predicted(*apply(regions, model, c, mode=mode, auto_negative=True)) for c in (clip, hooked)
    )
    for a, b in zip(layered, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_negative_of_a_layer_follows_the_schedule_too(regions, loaded):
    model, clip = loaded
    sigma = model.get_model_object("model_sampling").percent_to_sigma(0.7)
    hooked = with_hooks(model, clip, TWO)
    plain = predicted(model, encode(hooked, WORDS), encode(hooked, "dark"), sigma)
    stack = everywhere(regions, negative="dark")
    layered = apply(regions, model, with_hooks(model, clip, TWO), stack, prompt=WORDS)
    torch.testing.assert_close(predicted(*layered, sigma)[2], plain[2], atol=1e-4, rtol=1e-3)
