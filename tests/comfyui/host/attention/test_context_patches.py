"""Patches of the context (attn2_patch) act on layers' words as on the prompt: a layer over the whole canvas is
the plain prompt, with any of them."""

from functools import partial

import comfy.hooks
import comfy.patcher_extension
import pytest
import torch
from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch
from regional_scene import (
    MODES,
    WIDGETS,
    WORDS,
    apply,
    as_layer,
    encode,
    everywhere,
    halves,
    predicted,
)  # fmt: skip


def with_patch(model, patch):
    model = model.clone()
    model.set_model_attn2_patch(patch)
    return model


def hypernetwork(folder, width):
    generator = torch.Generator().manual_seed(0)
    weights = [
        {
            "linear.0.weight": torch.randn(width, width, generator=generator) * 0.15,
            "linear.0.bias": torch.randn(width, generator=generator) * 0.1,
        }
        for _ in "kv"
    ]
    torch.save({width: tuple(weights)}, folder / "style.pt")
    return load_hypernetwork_patch(str(folder / "style.pt"), 1.0)


def of_the_noise(q, context, value, extra):
    return q, context * float(extra["sigmas"][0]), value


def of_the_block(q, context, value, extra):
    part, number = extra["block"]
    return q, context, value * (1 + number + len(part))


def of_the_half(q, context, value, extra):
    scale = torch.tensor([2.0, 0.5])[extra["cond_or_uncond"]]
    return q, context * scale.repeat_interleave(len(q) // len(scale))[:, None, None], value


def of_each_picture(q, context, value, extra):
    return q, context, value * q.amax((1, 2), keepdim=True)


def in_place(q, context, value, extra):
    return q.mul_(1.5), context * q[:, :1, :1].abs(), value


def appending(q, context, value, extra):
    more = torch.ones(len(context), 4, context.shape[2])
    return q, torch.cat([context, more], 1), torch.cat([value, -more], 1)


def another_prompt(q, context, value, extra):
    other = torch.randn(1, 40, context.shape[2], generator=torch.Generator().manual_seed(3))
    return q, *[other.expand(len(q), -1, -1)] * 2


PATCHES = [of_the_noise, of_the_block, of_the_half, of_each_picture, in_place, appending, another_prompt]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("patch", ["hypernetwork", *PATCHES])
def test_a_layer_over_the_whole_canvas_is_the_plain_prompt(regions, loaded, tmp_path, patch, batch):
    model, clip = loaded
    if patch == "hypernetwork":
        patch = hypernetwork(tmp_path, encode(clip, "")[0][0].shape[-1])
    changed = with_patch(model, patch)
    plain = predicted(changed, encode(clip, WORDS), encode(clip, ""), batch=batch)
    for a, b in zip(predicted(*as_layer(regions, changed, clip), batch=batch), plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert (
        float((plain[1] - predicted(model, encode(clip, WORDS), encode(clip, ""), batch=batch)[1]).norm()) > 1
    )


@pytest.mark.parametrize("order", ["before", "after"])
def test_so_it_is_whichever_node_comes_first_and_in_one_softmax(regions, loaded, order):
    model, clip = loaded
    if order == "before":
        out, *words = as_layer(regions, with_patch(model, of_the_block), clip, mode="joint")
    else:
        out, *words = as_layer(regions, model, clip, mode="joint")
        out = with_patch(out, of_the_block)
    plain = predicted(with_patch(model, of_the_block), encode(clip, WORDS), encode(clip, ""))
    torch.testing.assert_close(predicted(out, *words)[1], plain[1], atol=1e-5, rtol=1e-4)


def test_a_negative_of_a_layer_is_patched_too(regions, loaded):
    model, clip = loaded
    changed = with_patch(model, of_the_half)
    stack = everywhere(regions, negative="dark")
    out = apply(regions, changed, clip, stack, prompt=WORDS, strength=1.0)
    plain = predicted(changed, encode(clip, WORDS), encode(clip, "dark"))
    torch.testing.assert_close(predicted(*out)[2], plain[2], atol=1e-5, rtol=1e-4)


def test_patches_of_a_hook_act_on_them_too(regions, loaded):
    model, clip = loaded
    hooks = comfy.hooks.HookGroup()
    patches = {"patches": {"attn2_patch": [of_the_block]}}
    hooks.add(comfy.hooks.TransformerOptionsHook(patches, comfy.hooks.EnumHookScope.HookedOnly))
    plain = comfy.hooks.set_hooks_for_conditioning(encode(clip, WORDS), hooks)
    out, positive, negative = as_layer(regions, model, clip)
    hooked = comfy.hooks.set_hooks_for_conditioning(positive, hooks)
    wanted = predicted(model, plain, encode(clip, ""))
    for a, b in zip(predicted(out, hooked, negative), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not torch.equal(wanted[1], predicted(model, encode(clip, WORDS), encode(clip, ""))[1])


def test_patches_that_tell_each_other_something_do_so_for_layers(regions, loaded):
    model, clip = loaded

    def first(q, context, value, extra):
        extra["mean"] = context.mean((1, 2), keepdim=True)
        return q, context, value

    def second(q, context, value, extra):
        return q, context - 30 * extra.pop("mean"), value

    changed = with_patch(with_patch(model, first), second)
    plain = predicted(changed, encode(clip, WORDS), encode(clip, ""))
    torch.testing.assert_close(
        predicted(*as_layer(regions, changed, clip))[1], plain[1], atol=1e-5, rtol=1e-4
    )


def test_a_patch_that_divides_the_picture_is_named(regions, loaded):
    """So Attention Couple does, which computes several prompts for each picture."""
    model, clip = loaded

    def couple(q, context, value, extra):
        return q.repeat(2, 1, 1), context.repeat(2, 1, 1), value.repeat(2, 1, 1)

    with pytest.raises(
        regions.error,
        match=r"model: pictures and pixels in a cross-attention after its patches \(.*couple\) is \(4, 256\); "
        r"allowed: \(2, 256\), as before them\. Words per layer cannot act beside a patch that divides",
    ):
        predicted(*as_layer(regions, with_patch(model, couple), clip))


# --- text encoders that give two vectors for a token ---


def keys_and_values(encoder, pairs):
    """Encode every token twice, for its key and for its value, which has the other sign if its weight is
    negative: the layout of NegPip."""
    plain = [[(t, abs(w), *more) for t, w, *more in chunk] for chunk in pairs]
    keys, pooled, *more = type(encoder).encode_token_weights(encoder, plain)
    signs = torch.tensor([[1.0 if w >= 0 else -1.0 for _, w, *_ in chunk] for chunk in pairs]).flatten()
    values = keys * signs[:, None]
    return torch.stack([keys, values], 2).flatten(1, 2), pooled, *more


def split(q, context, value, extra):
    return q, context[:, 0::2], value[:, 1::2]


@pytest.fixture
def doubled(loaded):
    """The storybook's MODEL and CLIP with two vectors for a token, and the same CLIP's plain MODEL."""
    model, clip = loaded
    clip = clip.clone()
    encoder = clip.cond_stage_model.clip_l
    clip.patcher.add_object_patch("clip_l.encode_token_weights", partial(keys_and_values, encoder))
    return with_patch(model, split), clip


@pytest.mark.parametrize("words", [WORDS, "a red ball (in a meadow:-1.2)", WORDS + ", the evening sky" * 30])
def test_a_layer_over_the_whole_canvas_is_the_plain_prompt_with_two_vectors_for_a_token(
    regions, doubled, words
):
    model, clip = doubled
    assert encode(clip, "")[0][0].shape[1] == 154
    plain = predicted(model, encode(clip, words), encode(clip, ""))
    for a, b in zip(predicted(*as_layer(regions, model, clip, words)), plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("negative", ["", "dark " * 80])
def test_without_negative_weights_two_vectors_for_a_token_are_as_one(
    regions, loaded, doubled, mode, negative
):
    settings = {"mode": mode, "negative": negative, "auto_negative": True}
    one = predicted(*apply(regions, *loaded, **settings))
    for a, b in zip(predicted(*apply(regions, *doubled, **settings)), one, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_attention_to_words_is_recorded_alike(regions, loaded, doubled):
    maps = []
    for model, clip in (loaded, doubled):
        out, positive, negative = apply(regions, model, clip, halves(regions), record=True)
        predicted(out, positive, negative)
        maps.append(positive[0][1][regions.patch.KEY].maps.mean((16, 16)))
    torch.testing.assert_close(*maps, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("other", [None, of_the_block])
def test_two_vectors_for_a_token_without_the_models_patch_are_named(regions, loaded, doubled, other):
    model = loaded[0] if other is None else with_patch(loaded[0], other)
    with pytest.raises(
        regions.error,
        match="clip: encoded vectors for one token is 2; allowed: 1, .*Connect the model of the node that has "
        "changed the clip",
    ):
        predicted(*apply(regions, model, doubled[1]))


def test_the_prompt_itself_is_patched_as_without_layers(regions, loaded):
    model, clip = loaded
    changed = with_patch(model, of_the_block)
    plain = predicted(changed, encode(clip, WIDGETS["prompt"]), encode(clip, ""))
    out = predicted(*apply(regions, changed, clip, global_weight=1.0, emphasis=0.0, mode="joint"))
    for a, b in zip(out, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
