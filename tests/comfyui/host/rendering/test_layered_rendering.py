"""Layered Rendering in a real ComfyUI: the storybook, sampled in a few steps."""

import pytest
import torch
from regional_scene import apply, encode, everywhere
from rendering_scene import PLAIN, WIDGETS, render, rendered
from sampling import explode, sample


def test_share_0_is_the_run_of_what_follows_bit_for_bit(regions, loaded):
    model, clip = loaded
    plain = sample(model, encode(clip, WIDGETS["prompt"]), encode(clip, ""))
    assert torch.equal(rendered(regions, loaded, share=0.0, then="prompt"), plain)
    assert torch.equal(rendered(regions, loaded, share=0.0), sample(*apply(regions, model, clip)))


def test_layers_change_the_picture(regions, loaded):
    plain = rendered(regions, loaded, share=0.0, then="prompt")
    apart = rendered(regions, loaded, **PLAIN)
    led = rendered(regions, loaded, share=1.0, then="prompt")
    assert float((apart - plain).abs().max()) > 0.1
    assert float((led - apart).abs().max()) > 0.1


def test_one_layer_over_all_of_the_canvas_with_the_prompts_words_is_the_plain_run(regions, loaded):
    model, clip = loaded
    words = "a red ball in a meadow"
    plain = sample(model, encode(clip, words), encode(clip, ""))
    seen = rendered(regions, loaded, everywhere(regions, words), prompt=words, **PLAIN)
    torch.testing.assert_close(seen, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("then", ["prompt", "regions", "regions guided"])
def test_a_model_that_is_not_the_nodes_samples_the_same(regions, loaded, then):
    patched, *words = render(regions, *loaded, then=then)
    assert torch.equal(sample(loaded[0], *words), sample(patched, *words))


def test_a_model_samples_as_before_after_a_run_that_broke(regions, loaded):
    model, clip = loaded
    patched, *words = render(regions, model, clip)
    plain = encode(clip, "a meadow"), encode(clip, "")
    before, led = sample(model, *plain), sample(patched, *words)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        sample(patched, *words, explode)
    assert torch.equal(sample(model, *plain), before)
    assert torch.equal(sample(patched, *words), led)
