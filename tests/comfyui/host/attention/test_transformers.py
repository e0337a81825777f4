"""Regional Prompt Attention on every family of transformers: tiny random weights of ComfyUI's own classes."""

from dataclasses import replace

import pytest
import tiny_transformers as tiny
import torch
from regional_scene import WIDGETS, everywhere, halves

FAMILIES = list(tiny.MODELS)
EXACT = {"global_weight": 0.0, "emphasis": 0.0}


@pytest.fixture
def run(regions):
    """Sample a scene of two halves on a family."""

    def sample(family, stack=None, *, how=None, model=None, **values):
        out = regions.node.execute(
            model or tiny.shared_model(family), tiny.clip(family), halves(regions) if stack is None else stack,
            **{**WIDGETS, "prompt": "a meadow at noon", "negative": "dark", **EXACT, **values},
        ).result  # fmt: skip
        return tiny.sampled(out[0], family, out[1], out[2], **(how or {}))

    return sample


def plain(family, prompt="a meadow at noon", model=None, **how):
    clip = tiny.clip(family)
    words = tiny.encode(clip, prompt), tiny.encode(clip, "dark")
    return tiny.sampled(model or tiny.shared_model(family), family, *words, **how)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_act_and_nothing_is_lost(family, run):
    out = run(family)
    assert bool(torch.isfinite(out).all())
    assert float((out - plain(family)).abs().max()) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_0_and_a_window_that_never_opens_are_the_plain_prompt_to_the_bit(family, run):
    wanted = plain(family)
    assert torch.equal(run(family, strength=0.0), wanted)
    assert torch.equal(run(family, start=1.0, end=1.0), wanted)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("flux2", "zimage")])
def test_a_layer_over_all_of_the_canvas_acts_as_its_words_would_as_the_prompt(family, regions, run):
    """The layer's text has no padding. Flux 2 and Z-Image always fill up a prompt, so they are left out."""
    words, clip = "a red ball in a meadow", tiny.clip(family)
    [[encoded, rest]] = tiny.encode(clip, words)
    if family != "anima":
        encoded = encoded[:, regions.prompts.TransformerPrompts(clip).kept(words)]
    alone = tiny.sampled(tiny.shared_model(family), family, [[encoded, rest]], tiny.encode(clip, "dark"))
    # The pooled text and the picture's position stay those of the main prompt: let it have the same words.
    seen = run(family, everywhere(regions, words), prompt=words)
    torch.testing.assert_close(seen, alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_nothing_closed_it_is_the_plain_run_of_the_joined_texts_to_the_bit(
    family, regions, pack, monkeypatch
):
    """What is left of the hook then, the joining and the override, changes nothing."""
    module, joined = pack("nodes.attention.transformer_run"), []

    def open_to_all(q, k, v, read, way, attend, **more):
        return attend(q, k, v, torch.zeros(q.shape[2], k.shape[2]))

    join = module._Pass.joined
    monkeypatch.setattr(module._Pass, "joined", lambda now, c: joined.append(join(now, c)) or joined[-1])
    monkeypatch.setattr(module._Pass, "move", lambda now, args: args)
    monkeypatch.setattr(module, "_in_place", lambda executor, network, now, *a, **n: executor(*a, **n))
    monkeypatch.setattr(module._Pass, "_refine", lambda now, q, k, v, attend, mask: attend(q, k, v, mask))
    monkeypatch.setattr(module._Pass, "_cross", lambda now, q, k, v, attend, mask: attend(q, k, v, mask))
    monkeypatch.setattr(regions.joint_regions, "attend_jointly", open_to_all)
    out = regions.node.execute(
        tiny.shared_model(family),
        tiny.clip(family),
        halves(regions),
        **{**WIDGETS, "prompt": "a meadow", **EXACT},
    ).result
    seen = tiny.sampled(out[0], family, out[1], out[2])
    rest = {k: v for k, v in out[1][0][1].items() if k not in ("layered_diffusion_attention", "t5xxl_ids")}
    plain = tiny.sampled(tiny.shared_model(family), family, [[joined[0], rest]], out[2])
    assert torch.equal(seen, plain)
    assert joined[0].shape[1] > out[1][0][0].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_no_pixel_reads_is_as_if_absent(family, regions, run):
    document = regions.layers.read_stack(halves(regions))
    ball, star = document.layers
    faint = replace(star, prompt="a striped cat", recipe=replace(star.recipe, inside=0.003, outside=0.0))
    with_it, without = (
        run(family, regions.layers.write_stack(replace(document, layers=layers)))
        for layers in ((ball, faint), (ball,))
    )
    torch.testing.assert_close(with_it, without, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_one_block_other_words_change_their_own_pixels_only(family, regions, run):
    small = {
        "flux": {"depth": 1, "depth_single_blocks": 0}, "flux2": {"depth": 1, "depth_single_blocks": 0},
        "chroma": {"depth": 1, "depth_single_blocks": 0}, "qwen": {"num_layers": 1}, "zimage": {"n_layers": 1},
        "lumina2": {"n_layers": 1}, "sd3": {"num_blocks": 1, "x_block_self_attn_layers": []},
        "krea2": {"layers": 1}, "anima": {"num_blocks": 1},
    }  # fmt: skip
    model = tiny.model(family, **small[family])
    how = {"steps": 1}
    one = run(family, halves(regions, "a red ball", "a blue star"), model=model, how=how)
    two = run(family, halves(regions, "a red ball", "a green house"), model=model, how=how)
    changed = (two - one).abs().amax(1).reshape(*one.shape[-2:])
    half = changed.shape[1] // 2
    assert float(changed[:, half:].min()) > 1e-5
    assert float(changed[:, :half].max()) == 0


def isolated(q, k, v, read, way, attend, *, pushes=None, mask=None):
    """Joint attention in which each text and its pixels see themselves only, to show leaks elsewhere."""
    bias = torch.full((read.length, read.length), -1e4)
    for source in read.sources:
        group = torch.cat([source.text, read.picture[source.rows]])
        bias[group[:, None], group[None]] = 0
    return attend(q, k, v, bias)


def halves_apart(func, q, k, v, heads, mask=None, skip_reshape=False, **named):
    """Another pack's attention, in which the halves of the picture do not see each other."""
    count = q.shape[2 if skip_reshape else 1]
    if mask is None and q.shape == k.shape and count in (48, 64):
        left = torch.arange(count) % 6 < 3
        mask = torch.where(left[:, None] == left[None], 0.0, -1e4)
        mask[48:, :48] = mask[:48, 48:] = -1e4  # Z-Image's padding
    return func(q, k, v, heads, mask=mask, skip_reshape=skip_reshape, **named)


@pytest.mark.parametrize("family", FAMILIES)
def test_over_all_blocks_other_words_do_not_reach_pixels_that_see_only_their_own(
    family, regions, run, monkeypatch
):
    """Texts leak into each other nowhere: not in refiners, not by their positions, not through padding."""
    monkeypatch.setattr(regions.joint_regions, "attend_jointly", isolated)
    model = tiny.shared_model(family).clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = halves_apart
    one = run(family, halves(regions, "a red ball", "a blue star"), model=model)
    two = run(family, halves(regions, "a red ball", "a green house"), model=model)
    changed = (two - one).abs().amax(1).reshape(*one.shape[-2:])
    half = changed.shape[1] // 2
    assert float(changed[:, half:].min()) > 1e-4
    assert float(changed[:, :half].max()) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_with_a_negative_is_as_its_parts_run_apart(family, regions, run):
    stack = halves(regions, negative="blurred")
    together = run(family, stack, how={"cfg": 3.0, "batch": 2, "steps": 1})
    clip = tiny.clip(family)
    out = regions.node.execute(
        tiny.shared_model(family), clip, stack, **{**WIDGETS, "prompt": "a meadow at noon", "negative": "dark", **EXACT}
    ).result  # fmt: skip
    halves_apart = [
        tiny.sampled(out[0], family, which, which, batch=2, steps=1) for which in (out[1], out[2])
    ]
    # One Euler step from sigma 1 to 0 gives the prediction of the picture, which guidance combines.
    cond, uncond = halves_apart
    torch.testing.assert_close(together, uncond + 3 * (cond - uncond), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["joint", "collage", "paint with words", "eligen"])
def test_every_mode_acts(family, mode, run, regions):
    if mode == "eligen" and family == "anima":
        with pytest.raises(regions.error, match="mode: on Anima is 'eligen'"):
            run(family, mode=mode)
        return
    out = run(family, mode=mode, prompt="a red ball and a blue star", emphasis=0.5)
    wanted = plain(family, "a red ball and a blue star")
    assert bool(torch.isfinite(out).all())
    assert float((out - wanted).abs().max()) > (1e-5 if family == "sd3" else 1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_loses_no_more_than_in_a_plain_run(family, run):
    half, one_step = tiny.model(family, torch.bfloat16, torch.bfloat16), {"steps": 1}

    def lost(rough, exact):
        assert bool(torch.isfinite(rough).all())
        return float((rough - exact).norm() / exact.norm())

    usual = lost(plain(family, model=half, **one_step), plain(family, **one_step))
    for mode in ("regions", "joint", "collage", "paint with words"):
        how = {"mode": mode, "prompt": "a red ball and a blue star", "global_weight": 0.2, "how": one_step}
        assert lost(run(family, model=half, **how), run(family, **how)) < 1.5 * usual + 0.01, mode


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_sizes_work(family, run):
    size = (7, 5) if family == "flux2" else (15, 11)
    out = run(family, how={"size": size}, global_weight=0.2, emphasis=0.5)
    assert tuple(out.shape[-2:]) == size
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ways_give_the_same_picture(family, regions, run, monkeypatch):
    values = {"global_weight": 0.2, "emphasis": 0.5}
    found = {}
    for way in ("bias", "gather", "lse"):
        monkeypatch.setattr(regions.joint_regions, "cheapest_way", lambda *a, way=way, **k: way)
        found[way] = run(family, **values)
    for way in ("gather", "lse"):
        torch.testing.assert_close(found[way], found["bias"], atol=2e-4, rtol=1e-3)
