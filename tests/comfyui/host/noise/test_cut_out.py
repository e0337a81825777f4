"""What is laid out on the whole picture follows the part of it that Regenerate Layers cuts out."""

import pytest
import torch
from graph import from_image, node, regenerate, regional
from sampling import LOADER, words

import nodes as comfy_nodes

SIDE, PART = 160, 128
"""Sides of the whole picture and of the cut-out, pixels."""


def scene(side=SIDE, size=PART, box=(48, 64, 80, 96), **inputs):
    """A picture of which the surroundings of a box are cut out: pixels 32..96, 48..112 of 160 are scaled by
    2."""
    left, top, right, bottom = box
    return {
        **LOADER, **words(),
        "picture": node("EmptyImage", width=side, height=side, batch_size=1, color=0x406080),
        "none": node("SolidMask", value=0.0, width=side, height=side),
        "box": node("SolidMask", value=1.0, width=right - left, height=bottom - top),
        "mask": node("MaskComposite", destination=["none", 0], source=["box", 0], x=left, y=top,
                     operation="add"),
        "it": regenerate("a", "", size=size, grow=0, feather=0, **inputs)
        | {"inputs": {k: v for k, v in regenerate("a", "", size=size, grow=0, feather=0, **inputs)["inputs"].items()
                      if k != "layers"} | {"image": ["picture", 0], "mask": ["mask", 0]}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(host):
    """Model, latent, paste, positive and negative of the scene."""
    prompt = scene()
    model, latent, paste = (host.value(prompt, "it", i) for i in range(3))
    return model, latent, paste, host.value(prompt, "p"), host.value(prompt, "n")


@pytest.fixture
def cut(pack, made):
    return pack("nodes.noise.cut_out").CutOut(made[2], made[1]["samples"])


def sampled(model, positive, negative, latent, steps=2, **more):
    with torch.inference_mode():
        return comfy_nodes.common_ksampler(
            model, 1, steps, 3.0, "euler", "normal", positive, negative, latent, **more
        )[0]["samples"]


def without_cut_out(pack, model):
    """The same model, for which everything is laid out on what is sampled."""
    other = model.clone()
    pack("nodes.noise.cut_out").with_cut_out(other, None)
    return other


def whole_mask(side=SIDE):
    mask = torch.zeros(1, side, side)
    mask[:, :, 64:] = 1
    return mask


def masked(conditioning, mask, bounds="default"):
    return comfy_nodes.ConditioningSetMask().append(conditioning, mask, bounds, 1.0)[0]


def test_the_scene_is_what_these_tests_say(cut):
    crop = cut.plan.crop
    assert (crop.left, crop.top, crop.right, crop.bottom) == (32, 48, 96, 112)
    assert (cut.picture, cut.part, cut.cells) == ((SIDE, SIDE), (PART, PART), (16, 16))


# --- masks and areas of other nodes ---


@pytest.mark.parametrize("bounds", ["default", "mask bounds"])
def test_a_conditionings_mask_of_the_picture_is_cut_as_the_picture_is(pack, made, cut, bounds):
    model, latent, _, positive, negative = made
    by_hand = torch.zeros(1, PART, PART)
    by_hand[:, :, 64:] = 1  # pixel 64 of the picture is at 32 * 2 in the cut-out
    torch.testing.assert_close(cut.plan.cut_layout(whole_mask()), by_hand, atol=0.26, rtol=0)
    got = sampled(model, masked(positive, whole_mask(), bounds), negative, latent)
    wanted = sampled(
        without_cut_out(pack, model),
        masked(positive, cut.plan.cut_layout(whole_mask()), bounds),
        negative,
        latent,
    )
    assert torch.equal(got, wanted)
    squeezed = sampled(without_cut_out(pack, model), masked(positive, whole_mask(), bounds), negative, latent)
    assert float((squeezed - wanted).abs().mean()) > 1e-3


def test_a_conditionings_mask_of_the_cut_out_stays(pack, made, cut):
    model, latent, _, positive, negative = made
    own = masked(positive, whole_mask(PART))
    assert torch.equal(
        sampled(model, own, negative, latent), sampled(without_cut_out(pack, model), own, negative, latent)
    )


def test_a_mask_that_is_the_same_everywhere_may_have_any_size(made):
    model, latent, _, positive, negative = made
    plain = sampled(model, positive, negative, latent)
    torch.testing.assert_close(
        sampled(model, masked(positive, torch.ones(1, 99, 33)), negative, latent), plain, atol=1e-4, rtol=0
    )


def test_a_mask_of_another_size_is_refused(pack, made):
    model, latent, _, positive, negative = made
    with pytest.raises(
        pack("layered_core.errors").LayeredError, match="mask of a conditioning: size is '99x99'"
    ):
        sampled(model, masked(positive, whole_mask(99)), negative, latent)


def test_where_picture_and_cut_out_have_one_size_only_the_nodes_own_mask_stays(host, pack):
    prompt = scene(side=PART)
    plan, latent = host.value(prompt, "it", 2), host.value(prompt, "it", 1)["samples"]
    cut_out = pack("nodes.noise.cut_out")
    cut = cut_out.CutOut(plan, latent)
    own = plan.cut_mask()[None]
    assert cut_out._followed_mask(own, cut) is own
    torch.testing.assert_close(
        cut_out._followed_mask(whole_mask(PART), cut)[0, 0], torch.linspace(-1, 1, PART).sign().clamp(0),
        atol=0.26, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("area", "wanted"),
    [
        ((10, 8, 0, 8), (8, 8, 0, 8)),  # 64..128, 0..80 of the picture: the right upper part of the cut-out
        (("percentage", 0.5, 0.4, 0.0, 0.4), (8, 8, 0, 8)),
        ((20, 20, 0, 0), (16, 16, 0, 0)),
        ((2, 2, 7, 5), (4, 4, 2, 2)),
        ((8, 4, 0, 0), None),
    ],
)
def test_an_area_is_cut_and_scaled(pack, cut, area, wanted):
    assert pack("nodes.noise.cut_out")._followed_area(area, cut) == wanted


def test_words_of_an_area_outside_are_left_out_and_if_nothing_is_left_refused(pack, made):
    model, latent, _, positive, negative = made
    outside = comfy_nodes.ConditioningSetArea().append(negative, 64, 32, 0, 0, 1.0)[0]
    plain = sampled(model, positive, negative, latent)
    assert torch.equal(sampled(model, positive + outside, negative, latent), plain)
    with pytest.raises(pack("layered_core.errors").LayeredError, match="positive: all its areas lie outside"):
        sampled(model, outside, negative, latent)


def test_boxes_with_words_of_their_own_are_cut_and_scaled(pack, made, cut):
    entry = {"gligen": ("position", "model", [("ball", 2, 2, 7, 5), ("star", 2, 2, 0, 0)])}
    out = pack("nodes.noise.cut_out")._followed(entry, cut, {}, made[1]["samples"])
    assert out["gligen"] == ("position", "model", [("ball", 4, 4, 2, 2)])


# --- which runs are of the cut-out ---


def test_a_latent_of_another_size_is_refused_if_something_follows_the_cut_out(pack, made):
    model, latent, _, positive, negative = made
    larger = {"samples": torch.zeros(1, 4, 24, 24), "noise_mask": latent["noise_mask"]}
    assert sampled(model, positive, negative, larger).shape == (1, 4, 24, 24)
    with pytest.raises(pack("layered_core.errors").LayeredError, match="latent size in cells is '24x24'"):
        sampled(model, masked(positive, whole_mask()), negative, larger)


def test_other_latents_without_a_noise_mask_are_sampled_as_usual(pack, made):
    model, _, _, positive, negative = made
    empty, conditioning = {"samples": torch.zeros(1, 4, 16, 16)}, masked(positive, whole_mask())
    assert torch.equal(
        sampled(model, conditioning, negative, empty),
        sampled(without_cut_out(pack, model), conditioning, negative, empty),
    )


def test_the_nodes_latent_is_known_without_its_noise_mask_too(pack, made, cut):
    model, latent, _, positive, negative = made
    bare = {"samples": latent["samples"].repeat(2, 1, 1, 1)}
    assert torch.equal(
        sampled(model, masked(positive, whole_mask()), negative, bare),
        sampled(
            without_cut_out(pack, model), masked(positive, cut.plan.cut_layout(whole_mask())), negative, bare
        ),
    )


def test_a_later_node_that_cuts_nothing_out_takes_the_place_of_an_earlier_one(host, pack, made):
    key = pack("nodes.noise.cut_out").KEY
    prompt = {**scene(), "next": regenerate("a", "", size=0)}
    prompt["next"]["inputs"] = {**scene(size=0)["it"]["inputs"], "model": ["it", 0]}
    assert key in made[0].model_options["transformer_options"]
    assert key not in host.value(prompt, "next", 0).model_options["transformer_options"]


# --- masked ControlNets ---


def stack(side=SIDE):
    return from_image(
        name="a", prompt="a red ball", x=64, y=56, width=60, height=40, control_hint="segmentation",
        canvas_width=side, canvas_height=side,
    )  # fmt: skip


def test_a_net_on_layers_is_cut_as_if_its_hint_and_mask_were_made_for_the_cut_out(
    host, pack, apply, made, cut
):
    model, latent, _, positive, negative = made
    net = host.value({"net": node("TestControlNet")}, "net")
    layers = host.value({"a": stack()}, "a")
    hint = torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 56:96, 64:124] = 1
    on_layers = apply(net, positive, negative, layers=layers, image=hint)
    before = on_layers[0][0][1]["control"].inner.cond_hint_original.clone()
    by_hand = apply(
        net,
        positive,
        negative,
        image=cut.plan.cut_layout(hint.movedim(-1, 1)).movedim(1, -1),
        mask=cut.plan.cut_layout(mask),
    )
    by_size = apply(net, positive, negative, image=hint, mask=mask)
    wanted = sampled(without_cut_out(pack, model), *by_hand, latent)
    for given in (on_layers, by_hand, by_size):
        assert torch.equal(sampled(model, *given, latent), wanted)
    assert float((sampled(without_cut_out(pack, model), *on_layers, latent) - wanted).abs().mean()) > 1e-3
    assert torch.equal(on_layers[0][0][1]["control"].inner.cond_hint_original, before), (
        "the input was changed"
    )


def test_a_net_below_another_one_is_cut_too(host, pack, apply, made, cut):
    model, latent, _, positive, negative = made
    net = host.value({"net": node("TestControlNet")}, "net")
    layers = host.value({"a": stack()}, "a")
    hint = torch.rand(1, PART, PART, 3, generator=torch.Generator().manual_seed(1))
    of_ours = apply(net, positive, negative, layers=layers)
    both = comfy_nodes.ControlNetApplyAdvanced().apply_controlnet(*of_ours, net, hint, 1.0, 0.0, 1.0)
    top = both[0][0][1]["control"]
    cut_top = pack("nodes.noise.cut_out")._followed_control(top, cut, {})
    assert cut_top.cond_hint_original is top.cond_hint_original
    assert cut_top.previous_controlnet.inner.cond_hint_original.shape[-2:] == (PART, PART)
    assert top.previous_controlnet.inner.cond_hint_original.shape[-2:] == (SIDE, SIDE)
    assert bool(torch.isfinite(sampled(model, *both, latent)).all())


def test_the_log_tells_of_a_plain_nets_hint_of_the_whole_picture(host, made, caplog):
    model, latent, _, positive, negative = made
    net = host.value({"net": node("TestControlNet")}, "net")
    for side, told in ((SIDE, 1), (PART, 0)):
        hint = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0))
        given = comfy_nodes.ControlNetApplyAdvanced().apply_controlnet(
            positive, negative, net, hint, 1.0, 0.0, 1.0
        )
        caplog.clear()
        sampled(model, *given, latent, steps=1)
        assert caplog.text.count("a ControlNet's hint of 160x160 has the size of the whole picture") == told


def test_a_hint_that_may_show_the_picture_or_the_cut_out_is_refused(host, pack, apply):
    prompt = scene(side=PART)
    model, latent, plan = (host.value(prompt, "it", i) for i in range(3))
    positive, negative = host.value(prompt, "p"), host.value(prompt, "n")
    net = host.value({"net": node("TestControlNet")}, "net")
    hint = torch.rand(1, PART, PART, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        pack("layered_core.errors").LayeredError, match="image of Masked ControlNet Apply: size"
    ):
        sampled(model, *apply(net, positive, negative, image=hint), latent)
    known = apply(net, positive, negative, image=hint, mask=plan.cut_mask()[None])
    assert bool(torch.isfinite(sampled(model, *known, latent)).all())


# --- regions ---


def regions(left="a red ball", right="a blue star", box=(48, 64, 80, 96), first="it", **values):
    """Two layers side by side, 0..64 and 64..160, of which both are seen in the box."""
    prompt = scene(box=box) | {
        "l": from_image(name="left", prompt=left, width=64, height=SIDE, canvas_width=SIDE,
                        canvas_height=SIDE),
        "r": from_image(name="right", prompt=right, x=64, width=96, height=SIDE, layers=["l", 0]),
        "ra": regional("r", prompt="in a meadow", global_weight=0.0, **values),
    }  # fmt: skip
    second = "ra" if first == "it" else "it"
    prompt[second]["inputs"]["model"] = [first, 0]
    return prompt | {
        "k": node("KSampler", model=[second, 0], positive=["ra", 1], negative=["ra", 2],
                  latent_image=["it", 1], seed=1, steps=1, cfg=3.0, sampler_name="euler", scheduler="normal",
                  denoise=1.0),
    }  # fmt: skip


def latents(host, **values):
    return host.value(regions(**values), "k")["samples"]


@pytest.mark.parametrize("mode", ["regions", "joint"])
def test_words_act_where_their_layer_lies_in_the_cut_out(host, mode):
    change = (latents(host, left="a yellow house", mode=mode) - latents(host, mode=mode)).abs()[0].mean(0)
    # The box is cells 4..12 of the cut-out, and the layers meet at cell 8.
    assert float(change[4:12, 4:8].mean()) > 1.5 * float(change[4:12, 8:12].mean())


def test_words_of_a_layer_that_is_not_redone_change_nothing(host):
    right = {"box": (72, 64, 104, 96)}
    plain = latents(host, **right)
    assert torch.equal(latents(host, left="a yellow house", **right), plain)
    assert float((latents(host, right="a green tree", **right) - plain).abs().mean()) > 1e-3


def test_the_order_of_the_nodes_does_not_matter(host):
    assert torch.equal(latents(host, first="ra"), latents(host, first="it"))


def test_maps_of_a_cut_out_are_shown_where_it_lies(host, pack):
    prompt = regions(record=True) | {
        "d": node("VAEDecode", samples=["k", 0], vae=["loader", 2]),
        "out": node("LD_PasteBack", image=["d", 0], paste=["it", 2], blend="feather", match_colours=False),
    }  # fmt: skip

    def colour(picture, size):
        maps = host.value(
            {**prompt, "m": node("LD_AttentionPreview", positive=["ra", 1], image=[picture, 0], size=size)},
            "m",
        )
        return (maps.amax(-1) - maps.amin(-1))[0]

    whole, part = colour("out", SIDE), colour("d", PART)
    assert float(whole[48:112, 32:96].mean()) > 0.05
    assert float(whole[116:, :].max()) == float(whole[:, 100:].max()) == 0
    assert float(part.mean()) > 0.05
    prompt["up"] = node("ImageScale", image=["out", 0], upscale_method="bilinear", width=200, height=200,
                        crop="disabled")  # fmt: skip
    error = host.error_of(
        {**prompt, "m": node("LD_AttentionPreview", positive=["ra", 1], image=["up", 0], size=64)}
    )
    assert "image: size is '200x200'; allowed: 128x128, the cut-out's, or 160x160" in error


def test_a_picture_of_one_size_with_its_cut_out_is_known_by_what_was_kept(host, pack):
    prompt = scene(side=PART)
    plan, latent = host.value(prompt, "it", 2), host.value(prompt, "it", 1)["samples"]
    cut = pack("nodes.noise.cut_out").CutOut(plan, latent)
    pasted = plan.picture.permute(1, 2, 0)[None].clone()
    pasted[:, 64:96, 48:80] = 1
    assert cut.shows_picture(pasted)
    assert not cut.shows_picture(torch.rand_like(pasted))
