"""Layered Rendering in a real ComfyUI: the storybook, sampled in a few steps."""

import gc

import comfy.samplers
import pytest
import torch
from regional_scene import apply, encode, everywhere, halves
from rendering_scene import PLAIN, WIDGETS, guided, render, rendered
from sampling import explode, sample

import nodes as comfy_nodes


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


def test_apart_in_hard_masks_they_are_what_cores_masks_on_conditionings_give(regions, loaded):
    """That is MultiDiffusion without bootstrapping."""
    model, clip = loaded
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1
    masked = comfy_nodes.ConditioningSetMask().append
    positive = masked(encode(clip, "a red ball"), mask, "default", 1.0)[0]
    positive += masked(encode(clip, "a meadow"), 1 - mask, "default", 1.0)[0]
    layer = regions.document.Layer("ball", x=0, y=0, width=64, height=128, prompt="a red ball")
    stack = regions.layers.write_stack(regions.document.LayerDocument(128, 128, (layer,)))
    for preset in ("faithful", "fast"):
        seen = rendered(regions, loaded, stack, **{**PLAIN, "prompt": "a meadow", "preset": preset})
        torch.testing.assert_close(seen, sample(model, positive, encode(clip, "")), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("colour", ["words", "noise"])
def test_each_picture_of_a_batch_is_the_one_that_is_sampled_alone(regions, loaded, colour):
    model, *words = render(regions, *loaded, colour=colour)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    both = guided(model, *words, noise, sigmas)
    alone = torch.cat([guided(model, *words, one[None], sigmas) for one in noise])
    torch.testing.assert_close(both, alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("preset", ["faithful", "fast"])
def test_while_layers_are_rendered_what_follows_does_not_act(regions, loaded, preset):
    stack = halves(regions, negative="a white house")
    values = {"share": 1.0, "preset": preset}
    alone = rendered(regions, loaded, stack, then="prompt", **values)
    for then in ("regions", "regions guided"):
        assert torch.equal(rendered(regions, loaded, stack, then=then, **values), alone)


def test_after_the_share_the_run_is_that_of_what_follows(regions, loaded):
    """A regional prompt in front of the node, with settings of its own, is what its place in 'then' would be."""
    model, clip = loaded
    before, *words = apply(regions, model, clip, guidance=6.0, growth=0.03)
    own = render(regions, before, clip, positive_after=words[0], negative_after=words[1])
    assert torch.equal(sample(*own), rendered(regions, loaded, then="regions guided"))
    late = sample(
        *render(regions, model, clip, share=0.01)[:1], *render(regions, model, clip, share=0.01)[1:]
    )
    assert float((late - rendered(regions, loaded, share=0.0)).abs().max()) > 1e-3


def test_a_second_node_behind_the_first_takes_its_place(regions, loaded):
    model, clip = loaded
    first, *words = render(
        regions, model, clip, halves(regions, "a green tree", "a white house"), then="prompt"
    )
    second = render(regions, first, clip, positive_after=words[0], negative_after=words[1], then="prompt")
    assert torch.equal(sample(*second), rendered(regions, loaded, then="prompt"))


def test_at_cfg_1_the_log_names_what_is_idle(regions, loaded, caplog):
    model, *words = render(regions, *loaded, halves(regions, negative="a white house"), preset="fast")
    noise, sigmas = torch.randn(1, 4, 16, 16), torch.tensor([5.0, 0.0])
    guided(model, *words, noise, sigmas, cfg=1.0)
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Layered Rendering: ")]
    assert len(told) == 1
    assert "the negatives of layers and the preset fast" in told[0]
    caplog.clear()
    guided(model, *words, noise, sigmas, cfg=3.0)
    assert "Layered Rendering: " not in caplog.text


def test_nothing_of_a_run_outlives_it(regions, loaded, pack):
    kind = pack("nodes.rendering.rendering_run").RenderingRun
    model, *words = render(regions, *loaded)
    sample(model, *words)
    gc.collect()
    assert [x for x in gc.get_objects() if type(x) is kind] == []


def test_a_layer_that_covers_too_little_of_any_cell_is_named_and_left_out(regions, loaded, caplog):
    layer = regions.document.Layer
    ball = layer("ball", x=0, y=0, width=64, height=128, prompt="a red ball")
    trace = layer("trace", x=80, y=40, width=20, height=20, opacity=5e-7, prompt="a blue star")
    one, two = (
        rendered(
            regions, loaded, regions.layers.write_stack(regions.document.LayerDocument(128, 128, layers)),
            then="prompt",
        )
        for layers in ((ball,), (ball, trace))
    )  # fmt: skip
    assert "'trace'" in caplog.text
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


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
