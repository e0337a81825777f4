"""Layers' words follow what other nodes do to the conditioning that carries them, or fall away, and the log
says so. Each case is compared with the same node on a plain prompt."""

import logging

import comfy.hooks
import pytest
import torch
from graph import from_image, node, regional
from regional_scene import MODES, WORDS, apply, as_layer, encode, halves, predicted
from sampling import LOADER

import nodes as comfy_nodes


def zeroed(conditioning):
    return comfy_nodes.ConditioningZeroOut().zero_out(conditioning)[0]


def multiplied(conditioning, factor=0.6):
    return comfy_nodes.ConditioningMultiply().multiply(conditioning, factor)[0]


def averaged(to, other, share=0.6):
    return comfy_nodes.ConditioningAverage().addWeighted(to, other, share)[0]


def close(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_the_zeroed_positive_of_layers_is_a_zeroed_prompt(regions, loaded, caplog, mode):
    """So SDXL and Turbo workflows make their negative."""
    model, clip = loaded
    out, positive, _ = apply(regions, model, clip, mode=mode)
    with caplog.at_level(logging.WARNING):
        got = predicted(out, positive, zeroed(positive))
    assert torch.equal(got[2], predicted(model, encode(clip, WORDS), zeroed(encode(clip, "any")))[2])
    assert torch.equal(got[1], predicted(*apply(regions, model, clip, mode=mode))[1])
    assert "do not act" not in caplog.text


@pytest.mark.parametrize("factor", [0.6, 1.7, -1.0, 0.0])
@pytest.mark.parametrize("mode", ["regions", "joint"])
def test_layers_words_are_multiplied_as_the_prompt_is(regions, loaded, factor, mode):
    model, clip = loaded
    out, positive, negative = as_layer(regions, model, clip, mode=mode)
    plain = predicted(model, multiplied(encode(clip, WORDS), factor), encode(clip, ""))
    close(predicted(out, multiplied(positive, factor), negative), plain)


def test_an_average_with_a_zeroed_prompt_is_such_a_factor(regions, loaded):
    model, clip = loaded
    out, positive, negative = as_layer(regions, model, clip)
    plain = encode(clip, WORDS)
    close(
        predicted(out, averaged(positive, zeroed(positive)), negative),
        predicted(model, averaged(plain, zeroed(plain)), encode(clip, "")),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.6, 0.98])
def test_layers_fall_away_from_an_average_with_another_prompt_and_the_log_says_so(
    regions, loaded, caplog, mode, share
):
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip, mode=mode, prompt="a red ball and a blue star")
    other = encode(clip, "a white house")
    with caplog.at_level(logging.WARNING):
        got = predicted(out, averaged(positive, other, share), negative)
    plain = averaged(encode(clip, "a red ball and a blue star"), other, share)
    assert torch.equal(got[1], predicted(model, plain, encode(clip, ""))[1])
    assert caplog.text.count("do not act") == 1
    assert "the words of layers 'layer 0', 'layer 1' do not act in this run's positive" in caplog.text


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_prompt_in_half_precision_is_the_same_prompt(regions, loaded, caplog, kind):
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip)
    with caplog.at_level(logging.WARNING):
        rough = predicted(out, [[positive[0][0].to(kind).float(), positive[0][1]]], negative)
    exact = predicted(out, positive, negative)
    assert float((rough[1] - exact[1]).norm() / exact[1].norm()) < 0.02
    assert not caplog.text


@pytest.mark.parametrize("how", ["concat", "average"])
def test_the_log_says_that_a_mix_kept_the_other_conditioning(regions, loaded, caplog, how):
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip)
    plain = encode(clip, "a white house")
    mixed = (
        averaged(plain, positive)
        if how == "average"
        else comfy_nodes.ConditioningConcat().concat(plain, positive)[0]
    )
    with caplog.at_level(logging.WARNING):
        got = predicted(out, mixed, negative)
    assert torch.equal(got[1], predicted(model, mixed, encode(clip, ""))[1])
    assert "the layers' words in its positive do not act in this run" in caplog.text


def test_nothing_is_said_of_layers_that_act_or_are_none(regions, loaded, caplog):
    model, clip = loaded
    with caplog.at_level(logging.INFO):
        predicted(*apply(regions, model, clip))
        predicted(*apply(regions, model, clip, strength=0.0))
        out = apply(regions, model, clip, strength=0.0)[0]
        predicted(out, encode(clip, WORDS), encode(clip, ""))
    assert "Regional Prompt Attention" not in caplog.text


def test_a_negative_that_is_left_out_is_told(regions, loaded, caplog):
    model, clip = loaded
    out, positive, _ = apply(regions, model, clip, auto_negative=True)
    with caplog.at_level(logging.WARNING):
        predicted(out, positive, encode(clip, ""))
    assert "the layers' words in its negative do not act in this run" in caplog.text


def test_an_area_smaller_than_the_picture_is_told(regions, loaded, caplog):
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip)
    for width, told in ((64, True), (128, False)):
        caplog.clear()
        area = comfy_nodes.ConditioningSetArea().append(positive, width, 128, 0, 0, 1.0)[0]
        with caplog.at_level(logging.WARNING):
            predicted(out, area, negative)
        text = "the words of layers 'layer 0', 'layer 1' do not act in this run's positive, which has an area"
        assert (text in caplog.text) == told


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_two_ranges_of_steps_have_their_own_layers(regions, loaded, share):
    model, clip = loaded
    sigma = model.get_model_object("model_sampling").percent_to_sigma(share)
    pair = [apply(regions, model, clip, halves(regions, right=x)) for x in ("a blue star", "a white house")]
    ranged = comfy_nodes.ConditioningSetTimestepRange()
    both = ranged.set_range(pair[0][1], 0.0, 0.5)[0] + ranged.set_range(pair[1][1], 0.5, 1.0)[0]
    got = predicted(pair[1][0], both, pair[1][2], sigma)[1]
    assert torch.equal(got, predicted(*pair[share > 0.5], sigma)[1])


def test_a_default_conditioning_keeps_its_layers_where_no_other_is(regions, loaded):
    model, clip = loaded
    out, positive, negative = as_layer(regions, model, clip)
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1
    house = comfy_nodes.ConditioningSetMask().append(encode(clip, "a white house"), mask, "default", 1.0)[0]
    both, plain = (
        comfy.hooks.set_default_conds_and_combine([house], [words])[0]
        for words in (positive, encode(clip, WORDS))
    )
    close(predicted(out, both, negative), predicted(model, plain, encode(clip, "")))


def test_the_whole_graph_with_a_zeroed_positive(host):
    """One layer over the canvas, in the real executor: as the plain prompt and its zeroed self."""
    layer = from_image(prompt=WORDS, name="all", width=128, height=128, canvas_width=128, canvas_height=128)
    settings = {"prompt": "a white house", "global_weight": 0.0, "emphasis": 0.0}
    prompt = {
        **LOADER, "a": layer, "r": regional("a", **settings),
        "p": node("CLIPTextEncode", clip=["loader", 1], text=WORDS),
        "e": node("EmptyLatentImage", width=128, height=128, batch_size=1),
    }  # fmt: skip
    made = []
    for model, positive in ((["r", 0], ["r", 1]), (["loader", 0], ["p", 0])):
        zero = node("ConditioningZeroOut", conditioning=positive)
        sampler = node(
            "KSampler", model=model, positive=positive, negative=["z", 0], latent_image=["e", 0], seed=5,
            steps=2, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        )  # fmt: skip
        made.append(host.value({**prompt, "z": zero, "k": sampler}, "k")["samples"])
    torch.testing.assert_close(*made, atol=1e-4, rtol=1e-3)
