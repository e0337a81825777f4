"""Layered Rendering beside other nodes on the same model, latent or conditioning."""

import pytest
import torch
from comfy_extras.nodes_flux import FluxGuidance
from control_scene import core, hint
from graph import load, node, per_layer_sdedit, regenerate, rendering
from hook_scene import THREE, with_hooks
from PIL import Image
from regional_scene import WORDS, encode, everywhere
from rendering_scene import PLAIN, render
from sampling import LOADER, sample, sampled

import nodes as comfy_nodes

STEPS = 6


def part(latent, first, last, add, seed=3):
    """KSampler (Advanced) from step ``first`` to ``last``."""
    return node(
        "KSamplerAdvanced", model=["r", 0], positive=["r", 1], negative=["r", 2], latent_image=latent,
        add_noise="enable" if add else "disable", noise_seed=seed, steps=STEPS, cfg=3.0, sampler_name="euler",
        scheduler="normal", start_at_step=first, end_at_step=last,
        return_with_leftover_noise="enable" if last < STEPS else "disable",
    )  # fmt: skip


@pytest.fixture
def scene(host):
    """A picture with one thing that stays and one that is made anew, and the node on it."""
    Image.new("RGB", (128, 128), (90, 140, 60)).save(host.input / "back.png")
    Image.new("RGBA", (40, 40), (200, 30, 40, 255)).save(host.input / "red.png")
    back = load("back.png", prompt="a meadow", noise=1.0)
    kept = load("red.png", x=8, y=8, prompt="a red ball", noise=0.0, layers=["back", 0])
    new = load("red.png", x=70, y=60, name="new", prompt="a blue star", noise=1.0, layers=["kept", 0])
    sdedit = per_layer_sdedit("new")
    made = rendering("new", share=0.3, then="prompt", prompt="a meadow")
    made["inputs"]["model"] = ["sd", 0]
    return {**LOADER, "back": back, "kept": kept, "new": new, "sd": sdedit, "r": made}


@pytest.mark.parametrize("latent", [["sd", 1], ["empty", 0]])
def test_a_run_that_is_cut_in_two_does_not_begin_with_layers_anew(host, scene, latent):
    """With Per-Layer Freedom's latent and noise mask, and with an empty latent."""
    scene["empty"] = node("EmptyLatentImage", width=128, height=128, batch_size=1)
    whole = {**scene, "k": part(latent, 0, STEPS, True)}
    cut = {**scene, "a": part(latent, 0, 3, True), "k": part(["a", 0], 3, STEPS, False)}
    one, two = (host.value(p, "k")["samples"] for p in (whole, cut))
    torch.testing.assert_close(two, one, atol=1e-4, rtol=0)


def test_what_is_kept_stays_to_the_bit(host, scene):
    latent = host.value(scene, "sd", 1)
    out = host.value({**scene, "k": part(["sd", 1], 0, STEPS, True)}, "k")["samples"]
    fixed = (latent["noise_mask"][:, 0] == 0).expand_as(out)
    assert bool(fixed.any())
    assert torch.equal(out[fixed], latent["samples"][fixed])


def test_in_a_cut_out_layers_are_where_they_are_in_the_picture(host, regions, loaded, pack):
    """Pixels 32..96, 48..112 of 160 are scaled by 2."""
    prompt = {
        **LOADER,
        "picture": node("EmptyImage", width=160, height=160, batch_size=1, color=0x406080),
        "none": node("SolidMask", value=0.0, width=160, height=160),
        "box": node("SolidMask", value=1.0, width=32, height=32),
        "mask": node("MaskComposite", destination=["none", 0], source=["box", 0], x=48, y=64, operation="add"),
        "it": regenerate("a", "", size=128, grow=0, feather=0, image=["picture", 0], mask=["mask", 0]),
    }  # fmt: skip
    del prompt["it"]["inputs"]["layers"]
    model, latent = (host.value(prompt, "it", i) for i in range(2))

    def seen(model, side, x, y, size):
        layer = regions.document.Layer("ball", x=x, y=y, width=size, height=size, prompt="a red ball")
        stack = regions.layers.write_stack(regions.document.LayerDocument(side, side, (layer,)))
        out = render(regions, model, loaded[1], stack, then="prompt")
        with torch.inference_mode():
            return comfy_nodes.common_ksampler(out[0], 1, 3, 3.0, "euler", "normal", *out[1:], latent)[0][
                "samples"
            ]

    by_hand = model.clone()
    pack("nodes.noise.cut_out").with_cut_out(by_hand, None)
    right, wrong = seen(by_hand, 128, 32, 32, 64), seen(by_hand, 160, 48, 64, 32)
    followed = seen(model, 160, 48, 64, 32)
    # The layer is cut and scaled with a soft edge.
    assert float((followed - right).abs().mean()) < 0.2 * float((wrong - right).abs().mean())


def test_a_controlnet_acts_in_all_passes_behind_the_node_and_in_front_of_it(host, regions, loaded):
    net = host.value({"net": node("TestControlNet")}, "net")
    model, clip = loaded
    led, *words = render(regions, model, clip, then="prompt")
    behind = sample(led, *core(net, *words, hint()))
    plain = render(regions, model, clip, share=0.0, then="prompt")
    after = core(net, *plain[1:], hint())
    first = render(regions, model, clip, positive_after=after[0], negative_after=after[1], then="prompt")
    assert torch.equal(sample(*first), behind)
    assert float((behind - sample(led, *words)).abs().max()) > 1e-2


def test_a_controlnet_sees_the_latents_without_what_is_planted(host, regions, loaded, monkeypatch):
    net, seen = host.value({"net": node("TestControlNet")}, "net"), []
    kind = type(net)
    before = kind.get_control
    monkeypatch.setattr(kind, "get_control", lambda self, x, *more: seen.append(x) or before(self, x, *more))
    led, *words = render(regions, *loaded, then="prompt", share=1.0)
    sample(led, *core(net, *words, hint()))
    for x in seen:
        rows = x.chunk(len(x))
        assert all(torch.equal(row, rows[0]) for row in rows)
    assert max(len(x) for x in seen) > 2


def test_a_clip_whose_hooks_have_a_schedule_gives_every_part_its_texts(regions, loaded):
    model, clip = loaded
    hooked = with_hooks(model, clip, THREE)
    plain = sample(model, encode(hooked, WORDS), encode(hooked, "dark"))
    out = render(
        regions,
        model,
        with_hooks(model, clip, THREE),
        everywhere(regions),
        **{**PLAIN, "prompt": WORDS, "negative": "dark"},
    )
    assert len(out[1]) == 9  # main prompt, background and layer, each in three parts of the sampling
    torch.testing.assert_close(sample(*out), plain, atol=1e-3, rtol=1e-3)


def test_a_range_of_steps_behind_the_node_counts_in_the_share_too(regions, loaded):
    model, clip = loaded
    led, positive, negative = render(regions, *loaded, then="prompt", share=1.0)
    late = comfy_nodes.ConditioningSetTimestepRange().set_range(positive, 0.5, 1.0)[0]
    early = comfy_nodes.ConditioningSetTimestepRange().set_range(encode(clip, "a house"), 0.0, 0.5)[0]
    begun = sample(led, early + late, negative)
    assert bool(torch.isfinite(begun).all())
    assert float((begun - sample(led, positive, negative)).abs().max()) > 1e-2


def test_a_mask_behind_the_node_leaves_parts_where_they_are(regions, loaded):
    led, positive, negative = render(regions, *loaded, then="prompt", share=1.0)
    masked = comfy_nodes.ConditioningSetMask().append(positive, torch.zeros(1, 128, 128), "default", 0.3)[0]
    assert torch.equal(sample(led, masked, negative), sample(led, positive, negative))


def test_nothing_of_the_node_is_left_on_what_it_was_given(regions, loaded):
    model, clip = loaded
    positive = FluxGuidance.execute(conditioning=encode(clip, "a meadow"), guidance=3.0).result[0]
    negative = encode(clip, "")
    options, entries = dict(model.model_options), [dict(e[1]) for e in positive]
    sample(*render(regions, model, clip, positive_after=positive, negative_after=negative))
    assert dict(model.model_options) == options
    assert [list(e[1]) for e in positive] == [list(e) for e in entries]


def test_an_inpainting_mask_of_the_latent_keeps_what_it_keeps(host, regions):
    mask = {"m": node("SolidMask", value=1.0, width=64, height=128)}
    prompt = {
        **LOADER, **mask,
        "a": load("back.png", prompt="a meadow"),
        "e": node("EmptyImage", width=128, height=128, batch_size=1, color=0x406080),
        "z": node("SolidMask", value=0.0, width=128, height=128),
        "half": node("MaskComposite", destination=["z", 0], source=["m", 0], x=0, y=0, operation="add"),
        "v": node("VAEEncode", pixels=["e", 0], vae=["loader", 2]),
        "l": node("SetLatentNoiseMask", samples=["v", 0], mask=["half", 0]),
        "b": load("red.png", x=10, y=30, prompt="a red ball", layers=["a", 0]),
        "r": rendering("b", then="prompt"),
        "k": sampled(["r", 0], ["l", 0]),
    }  # fmt: skip
    prompt["k"]["inputs"] |= {"positive": ["r", 1], "negative": ["r", 2]}
    Image.new("RGB", (128, 128), (90, 140, 60)).save(host.input / "back.png")
    Image.new("RGBA", (40, 40), (200, 30, 40, 255)).save(host.input / "red.png")
    before, after = host.value(prompt, "v")["samples"], host.value(prompt, "k")["samples"]
    torch.testing.assert_close(after[..., 9:], before[..., 9:], atol=1e-4, rtol=1e-4)
    assert float((after - before)[..., :7].abs().max()) > 0.1
