"""CLIP hooks (a LoRA with or without keyframes) act on layers' words as on the prompt: a layer over the whole
canvas is the plain prompt."""

import comfy.hooks
import comfy.lora
import pytest
import torch
from comfy_extras.nodes_hooks import SetClipHooks
from regional_scene import MODES, WORDS, apply, as_layer, encode, everywhere, predicted
from sampling import sample


def made(model, clip):
    """A LoRA on all cross-attention keys of the UNet and on the text encoder's MLPs."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    names = {k: v for k, v in keys.items() if "attn2_to_k" in k and k.startswith("lora_unet")}
    weights = {name: model.model.state_dict()[key] for name, key in names.items()}
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    names = {k: v for k, v in keys.items() if "mlp_fc1" in k and k.startswith("lora_te_")}
    weights |= {name: clip.cond_stage_model.state_dict()[key] for name, key in names.items()}
    generator = torch.Generator().manual_seed(0)
    lora = {}
    for name, weight in weights.items():
        lora[f"{name}.lora_up.weight"] = torch.randn(len(weight), 2, generator=generator) * 0.3
        lora[f"{name}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator) * 0.3
    return lora


def with_hooks(model, clip, keyframes=(), schedule=True, to_model=True):
    """Return a CLIP with hooks that no run has used: ComfyUI's keyframes remember the sigma of the last one."""
    hooks = comfy.hooks.create_hook_lora(made(model, clip), 1.0, 1.0)
    if keyframes:
        group = comfy.hooks.HookKeyframeGroup()
        for start, strength in keyframes:
            group.add(comfy.hooks.HookKeyframe(strength, start))
        hooks.set_keyframes_on_hooks(group)
    return SetClipHooks().apply_hooks(clip, schedule, to_model, hooks)[0]


TWO = ((0.0, 1.0), (0.5, 0.2))
THREE = ((0.0, 0.3), (0.4, 1.0), (0.8, 0.0))
CASES = [((), False, 1), ((), True, 1), (TWO, False, 1), (TWO, True, 2), (THREE, True, 3)]
"""Start and strength of every keyframe; whether the text encoder follows them; how often it encodes a text."""


@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
@pytest.mark.parametrize("to_model", [False, True])
@pytest.mark.parametrize(("keyframes", "schedule", "parts"), CASES)
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
