"""Regional Prompt Attention together with other packs' patches, other conditionings, LoRAs and other
guiders."""

import logging
from dataclasses import replace

import comfy.ldm.modules.attention as host_attention
import comfy.patcher_extension
import comfy.samplers
import pytest
import torch
from graph import node
from regional_scene import MODES, WIDGETS, apply, encode, halves, predicted

import nodes as comfy_nodes


def louder(q, k, v, extra):
    return host_attention.optimized_attention(q, k, v, extra["n_heads"]) * 1.5


BLOCKS = [("input", 1), ("input", 3), ("middle", 0), ("output", 2), ("output", 5)]


def with_replace(model, chosen=BLOCKS):
    model = model.clone()
    for block in chosen:
        model.set_model_attn2_replace(louder, *block)
    return model


def test_blocks_are_found_by_the_hosts_own_names(regions, loaded):
    model, _ = loaded
    seen = set()

    def note(q, context, value, extra):
        seen.add((*extra["block"], extra["block_index"]))
        return q, context, value

    watched = model.clone()
    watched.set_model_attn2_patch(note)
    predicted(watched, encode(loaded[1], "a red ball"), encode(loaded[1], ""))
    assert seen == set(regions.patch.cross_attentions(model.model.diffusion_model))
    assert set(BLOCKS) <= {b[:2] for b in seen}


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_packs_replacement_keeps_its_effect_whichever_node_comes_first(regions, loaded, order):
    model, clip = loaded
    if order == "before":
        out, positive, negative = apply(regions, with_replace(model), clip)
    else:
        out, positive, negative = apply(regions, model, clip)
        out = with_replace(out)
    both = predicted(out, positive, negative)
    alone = predicted(*apply(regions, model, clip))
    theirs = predicted(with_replace(model), encode(clip, WIDGETS["prompt"]), encode(clip, ""))
    assert torch.equal(both[2], theirs[2])
    assert float((both[1] - theirs[1]).abs().max()) > 1e-3
    assert float((both[1] - alone[1]).abs().max()) > 1e-3


def test_all_other_patches_of_a_block_are_still_called(regions, loaded):
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip)
    called = {"patch": 0, "output": 0, "override": 0}

    def patch(q, context, value, extra):
        called["patch"] += 1
        return q, context, value

    def output(n, extra):
        called["output"] += 1
        return n

    def override(function, *more, **named):
        called["override"] += 1
        return function(*more, **named)

    out = out.clone()
    out.set_model_attn2_patch(patch)
    out.set_model_attn2_output_patch(output)
    out.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(predicted(out, positive, negative)[1], predicted(*apply(regions, model, clip))[1])
    blocks = len(regions.patch.cross_attentions(model.model.diffusion_model))
    assert called["output"] == blocks
    assert called["patch"] == 3 * blocks, "once for the prompts, once for the words of each layer"
    assert called["override"] >= 2 * blocks


def test_a_second_node_takes_the_place_of_the_first_and_says_so(regions, loaded, caplog):
    model, clip = loaded
    first = apply(regions, model, clip, halves(regions, "a green tree", "a white house"))[0]
    with caplog.at_level(logging.INFO):
        twice = apply(regions, first, clip)
    assert "take the place" in caplog.text
    once = apply(regions, model, clip)
    for a, b in zip(predicted(*twice), predicted(*once), strict=True):
        assert torch.equal(a, b)
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    assert len(twice[0].get_wrappers(kind, regions.patch.KEY)) == 1


def test_a_model_without_its_conditionings_is_plain_and_warns(regions, loaded, caplog):
    model, clip = loaded
    words = encode(clip, WIDGETS["prompt"]), encode(clip, "")
    with caplog.at_level(logging.WARNING):
        out = predicted(apply(regions, model, clip)[0], *words)
    assert "no layer acts in this run. Connect the node's positive and negative" in caplog.text
    assert torch.equal(out[1], predicted(model, *words)[1])


def test_an_area_beside_it_gets_the_prompt_of_the_whole_picture(regions, loaded):
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip)
    area = comfy_nodes.ConditioningSetArea().append(positive, 64, 64, 0, 0, 1.0)[0]
    plain = comfy_nodes.ConditioningSetArea().append(encode(clip, WIDGETS["prompt"]), 64, 64, 0, 0, 1.0)[0]
    assert torch.equal(predicted(out, area, negative)[1], predicted(model, plain, encode(clip, ""))[1])


@pytest.mark.parametrize("half", ["positive", "negative"])
@pytest.mark.parametrize("how", ["area", "mask bounds"])
def test_an_area_of_the_whole_picture_leaves_the_regions_to_their_half(regions, loaded, half, how):
    """When a conditioning has an area, ComfyUI copies it for the other half, with the same uuid and private
    keys."""
    model, clip = loaded
    out, *words = apply(regions, model, clip, negative="dark", auto_negative=True)
    alone = predicted(out, *words)
    at = ("positive", "negative").index(half)
    if how == "area":
        words[at] = comfy_nodes.ConditioningSetAreaPercentage().append(words[at], 1.0, 1.0, 0.0, 0.0, 1.0)[0]
    else:
        words[at] = comfy_nodes.ConditioningSetMask().append(
            words[at], torch.ones(1, 128, 128), "mask bounds", 1.0
        )[0]
    for got, wanted in zip(predicted(out, *words), alone, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


class Style:
    """A style model of eight tokens."""

    def __init__(self, width):
        self.tokens = torch.randn(1, 8, width, generator=torch.Generator().manual_seed(0))

    def get_cond(self, _):
        return self.tokens.clone()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunks", [1, 2])
def test_tokens_that_other_nodes_append_stay_as_they_are(regions, loaded, mode, chunks):
    model, clip = loaded
    long = (
        ", ".join([WIDGETS["prompt"], *["in the quiet light of a wide evening sky"] * 10])
        if chunks == 2
        else WIDGETS["prompt"]
    )
    out, positive, negative = apply(regions, model, clip, mode=mode, prompt=long)
    assert positive[0][0].shape[1] == 77 * chunks
    concat = comfy_nodes.ConditioningConcat().concat(positive, encode(clip, "a white house"))[0]
    styled = comfy_nodes.StyleModelApply().apply_stylemodel(
        positive, Style(positive[0][0].shape[2]), None, 1.0, "multiply"
    )[0]
    for more in (concat, styled):
        half = replace(more[0][1][regions.patch.KEY], tokens=more[0][0].shape[1])
        one_prompt = [[more[0][0], {**more[0][1], regions.patch.KEY: half}]]
        got, wanted = (predicted(out, words, negative) for words in (more, one_prompt))
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(got[1], predicted(out, positive, negative)[1])


def test_a_conditioning_that_lost_tokens_is_refused_before_sampling(regions, loaded):
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip, mode="collage")
    with pytest.raises(
        regions.error, match="number of tokens of the prompt that has regions is 40; allowed: 77 and more"
    ):
        predicted(out, [[positive[0][0][:, :40], positive[0][1]]], negative)


def test_a_controlnet_beside_it_gets_the_prompt_of_the_whole_picture_and_both_act(host, regions, loaded):
    model, clip = loaded
    net = host.value({"net": node("TestControlNet")}, "net")
    out, *words = apply(regions, model, clip)
    plain = encode(clip, WIDGETS["prompt"]), encode(clip, "")
    contexts = []
    watched = net.control_model.register_forward_pre_hook(
        lambda module, a, named: contexts.append(named["context"]), with_kwargs=True
    )
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    try:
        both, control = (
            predicted(
                m, *comfy_nodes.ControlNetApplyAdvanced().apply_controlnet(*c, net, hint, 1.0, 0.0, 1.0)
            )[1]
            for m, c in ((out, words), (model, plain))
        )
    finally:
        watched.remove()
    assert torch.equal(contexts[0], contexts[1])
    alone = predicted(out, *words)[1]
    assert float((both - alone).abs().max()) > 1e-3
    assert float((both - control).abs().max()) > 1e-3


def test_a_conditioning_combined_with_it_stays_plain(regions, loaded):
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip)
    other = encode(clip, "a white house")
    mixed = predicted(out, positive + other, negative)[1]
    alone = predicted(out, positive, negative)[1], predicted(model, other, negative)[1]
    torch.testing.assert_close(mixed, sum(alone) / 2, atol=1e-4, rtol=1e-3)


def test_a_mask_on_the_conditioning_keeps_the_regions(regions, loaded):
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip)
    masked = comfy_nodes.ConditioningSetMask().append(positive, torch.ones(1, 128, 128), "default", 1.0)[0]
    torch.testing.assert_close(
        predicted(out, masked, negative)[1], predicted(out, positive, negative)[1], atol=1e-4, rtol=1e-3
    )


def test_a_lora_on_model_and_clip_acts_through_the_regions(regions, loaded):
    import comfy.lora

    model, clip = loaded
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    name = next(k for k in keys if "attn2_to_k" in k and k.startswith("lora_unet"))
    weight = model.model.state_dict()[keys[name]]
    lora = {
        f"{name}.lora_up.weight": torch.ones(len(weight), 2),
        f"{name}.lora_down.weight": torch.ones(2, weight.shape[1]),
    }
    adapted = model.clone()
    adapted.add_patches(comfy.lora.load_lora(lora, keys), 0.1)
    before = predicted(*apply(regions, model, clip))[1]
    changed = predicted(*apply(regions, adapted, clip))[1]
    assert float((changed - before).abs().max()) > 1e-4
    torch.testing.assert_close(predicted(*apply(regions, model, clip))[1], before, atol=1e-5, rtol=1e-5)


def test_a_guider_of_three_conditionings_mixes_the_regions_prediction_with_those_of_the_others(
    regions, loaded
):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    model, clip = loaded
    out, positive, negative = apply(regions, model, clip, auto_negative=True)
    other = encode(clip, "a white house")
    guider = Guider_DualCFG(out)
    guider.set_conds(positive, other, negative)
    guider.set_cfg(3.0, 2.0)
    seen = []

    def look(m, x, sigmas, extra_args=None, **_):
        seen.append(m(x, sigmas[:1].expand(len(x)), **extra_args))
        return seen[0]

    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(look), torch.tensor([5.0, 0.0]), seed=0
        )
    _, cond, uncond = predicted(out, positive, negative)
    _, middle, _ = predicted(model, other, negative)
    wanted = uncond + 2.0 * (middle - uncond) + 3.0 * (cond - middle)
    torch.testing.assert_close(seen[0], wanted, atol=1e-4, rtol=1e-3)
