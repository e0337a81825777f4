"""Masked Model Patch on tiny transformers, with the controls of ComfyUI that patch a MODEL and with another
pack's patch."""

import logging

import comfy.samplers
import pytest
import torch
from patch_scene import (
    CONTROLS,
    OtherPack,
    anima,
    diffsynth,
    fun,
    lllite,
    lumina2,
    picture,
    qwen,
    uni3c,
    wan,
    written,
    z_image,
)

import nodes as comfy_nodes


@pytest.fixture
def weigh(pack):
    """Run the node with its widgets at their defaults; return the model."""

    def run(model, base, **values):
        values = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **values}
        node = pack("nodes.control.masked_model_patch").MaskedModelPatch
        return node.execute(model, base, **values).result[0]

    return run


@pytest.fixture(scope="module", params=list(CONTROLS))
def family(request, host):
    """A model, what it samples without and with its control, and the model with the control."""
    make, control = CONTROLS[request.param]
    scene = make()
    model = control(scene)
    plain, full = scene.sampled(scene.model), scene.sampled(model)
    assert torch.isfinite(full).all()
    assert not torch.equal(plain, full), "the control does nothing: nothing is compared"
    return scene, model, plain, full


def mask_of(scene, value=1.0):
    return torch.full((1, *scene.size), value)


def left_half(scene):
    mask = mask_of(scene, 0.0)
    mask[..., : scene.size[1] // 2] = 1
    return mask


# --- neutral values, to the bit ---


def test_ones_are_the_plain_patch_and_zeros_are_no_patch_to_the_bit(family, weigh):
    scene, model, plain, full = family
    assert torch.equal(scene.sampled(weigh(model, scene.model)), full)
    assert torch.equal(scene.sampled(weigh(model, scene.model, mask=mask_of(scene))), full)
    assert torch.equal(scene.sampled(weigh(model, scene.model, mask=mask_of(scene, 0.0))), plain)
    assert torch.equal(scene.sampled(weigh(model, scene.model, strength=0.0)), plain)
    assert torch.equal(scene.sampled(model), full), "the model that came in was changed"


def test_a_half_mask_differs_from_both_and_changes_its_half_more(family, weigh):
    scene, model, plain, full = family
    half = scene.sampled(weigh(model, scene.model, mask=left_half(scene)))
    assert torch.isfinite(half).all()
    change = (half - plain).abs().flatten(0, -3).mean(0)
    middle = change.shape[-1] // 2
    assert float(change[:, :middle].mean()) > 1.5 * float(change[:, middle:].mean())
    assert not torch.equal(half, full)


def test_words_and_no_words_in_one_batch_are_as_they_are_apart(family, weigh):
    scene, model, _, _ = family
    masked = weigh(model, scene.model, mask=left_half(scene))
    guided = scene.sampled(masked, steps=1)
    halves = [
        scene.sampled(masked, steps=1, positive=words, negative=words, cfg=1.0)
        for words in (scene.positive, scene.negative)
    ]
    apart = halves[1] + 3.0 * (halves[0] - halves[1])
    torch.testing.assert_close(guided, apart, atol=2e-3 * float(apart.abs().max()), rtol=0)


def test_each_picture_of_a_batch_is_as_it_is_alone(family, weigh):
    scene, model, _, _ = family
    masked, one = weigh(model, scene.model, mask=left_half(scene)), scene.latents
    noise = torch.randn(2, *one.shape[1:], generator=torch.Generator().manual_seed(2))

    def denoised(noise):
        guider = comfy.samplers.CFGGuider(masked)
        guider.set_conds(scene.positive, scene.negative)
        guider.set_cfg(3.0)
        sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.5])
        with torch.inference_mode():
            return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True)

    both = denoised(noise)
    for i in range(2):
        alone = denoised(noise[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone, atol=2e-3 * float(alone.abs().max()), rtol=0)


# --- what one patch changes, token by token ---


class Look:
    """A patch that keeps a copy of the image tokens of the first call."""

    def __init__(self):
        self.tokens = None

    def __call__(self, arguments):
        if self.tokens is None:
            self.tokens = arguments["img"].clone()
        return arguments


def looked_at(scene, control, weigh=None, places=("double_block", "noise_refiner"), **values):
    """Return the image tokens before and after the first call of a control, weighed by ``weigh``; ``values``:
    of the node and, as ``positive``, of the sampler."""
    positive = values.pop("positive", None)
    before, after = Look(), Look()
    base = scene.model.clone()
    for place in places:
        base.set_model_patch(before, place)
    model = control(scene, base)
    if weigh is not None:
        model = weigh(model, base, **values)
    for place in places:
        model.set_model_patch(after, place)
    scene.sampled(model, steps=1, positive=positive, negative=positive)
    return before.tokens, after.tokens


@pytest.mark.parametrize("control", [diffsynth, written])
@pytest.mark.parametrize("cells", [(8, 12), (7, 11), (15, 6)])
def test_tokens_in_the_mask_change_as_plainly_and_others_keep_their_bits(host, weigh, control, cells):
    scene = qwen((1, 16, 1, *cells))
    mask = mask_of(scene, 0.0)
    mask[:, :32, 16:48] = 1  # rows 0 and 1, columns 1 and 2 of the tokens
    plain_before, plain = looked_at(scene, control)
    before, after = looked_at(scene, control, weigh, mask=mask)
    assert torch.equal(before, plain_before)
    assert not torch.equal(plain, before)
    inside = torch.zeros(-(-cells[0] // 2), -(-cells[1] // 2), dtype=torch.bool)
    inside[:2, 1:3] = True
    inside = inside.flatten()
    assert torch.equal(after[:, inside], plain[:, inside])
    assert torch.equal(after[:, ~inside], before[:, ~inside])


@pytest.mark.parametrize("make", [z_image, lumina2])
def test_z_images_padding_has_the_mean_of_the_mask(host, weigh, make):
    scene = make((1, 16, 7, 11))  # 24 tokens, which Z-Image pads to 32
    plain_before, plain = looked_at(scene, written)
    before, after = looked_at(scene, written, weigh, mask=torch.ones(1, 56, 88) * 0.25)
    mask = torch.zeros(1, 56, 88)
    mask[:, :16] = 1
    _, halved = looked_at(scene, written, weigh, mask=mask)
    assert before.shape[1] == (32 if make is z_image else 24)
    torch.testing.assert_close(after, before + 0.25 * (plain - before))
    assert torch.equal(halved[:, :6], plain[:, :6])
    assert torch.equal(halved[:, 6:24], before[:, 6:24])
    torch.testing.assert_close(halved[:, 24:], before[:, 24:] + 0.25 * (plain - plain_before)[:, 24:])


def test_a_videos_frames_have_the_mask_each(host, weigh):
    scene = wan()
    mask = left_half(scene)
    _, plain = looked_at(scene, uni3c)
    before, after = looked_at(scene, uni3c, weigh, mask=mask)
    frames = [x.unflatten(1, (3, 4, 6)) for x in (before, after, plain)]
    assert torch.equal(frames[1][..., :3, :], frames[2][..., :3, :])
    assert torch.equal(frames[1][..., 3:, :], frames[0][..., 3:, :])
    assert not torch.equal(frames[1][:, 2], frames[0][:, 2])


def test_the_pictures_of_a_layered_latent_have_the_mask_each(host, weigh):
    scene = qwen((1, 16, 4, 8, 12))
    _, plain = looked_at(scene, written)
    before, after = looked_at(scene, written, weigh, mask=left_half(scene))
    slots = [x.unflatten(1, (4, 4, 6)) for x in (before, after, plain)]
    assert torch.equal(slots[1][..., :3, :], slots[2][..., :3, :])
    assert torch.equal(slots[1][..., 3:, :], slots[0][..., 3:, :])


def test_qwens_reference_pictures_have_the_mean_of_the_mask(host, weigh):
    scene = qwen()
    # Four times the picture's tokens: the references' must not be taken for the picture's.
    references = [torch.randn(1, 16, 1, 16, 12), torch.randn(1, 16, 1, 8, 12)]
    positive = [[words, {**options, "reference_latents": references}] for words, options in scene.positive]
    own = 4 * 6
    mask = left_half(scene)
    for control, changed in ((diffsynth, False), (written, True)):
        _, plain = looked_at(scene, control, positive=positive)
        before, after = looked_at(scene, control, weigh, mask=mask, positive=positive)
        assert before.shape[1] == 4 * own
        rows = [x[:, :own].unflatten(1, (4, 6)) for x in (before, after, plain)]
        assert torch.equal(rows[1][..., :3, :], rows[2][..., :3, :])
        assert torch.equal(rows[1][..., 3:, :], rows[0][..., 3:, :])
        assert torch.equal(before[:, own:], plain[:, own:]) != changed
        wanted = before[:, own:] + 0.5 * (plain - before)[:, own:]
        torch.testing.assert_close(after[:, own:], wanted)


def test_anima_lllite_changes_queries_keys_and_features_inside_the_mask_alone(host, weigh):
    scene = anima()
    caught = {}

    def attention(name):
        def look(q, k, v, pe=None, attn_mask=None, extra_options=None):
            if extra_options["block_index"] == 0:
                caught.setdefault(name, (q.clone(), k.clone(), v.clone()))
            return {"q": q, "k": k, "v": v, "pe": pe, "attn_mask": attn_mask}

        return look

    def features(name):
        def look(arguments):
            caught.setdefault(name, (arguments["x"].flatten(1, 3).clone(),))
            return arguments

        return look

    def run(apply):
        caught.clear()
        base = scene.model.clone()
        for place in ("attn1_patch", "attn2_patch", "mlp_patch"):
            base.set_model_patch((features if place == "mlp_patch" else attention)(f"{place} before"), place)
        model = apply(base)
        for place in ("attn1_patch", "attn2_patch", "mlp_patch"):
            model.set_model_patch((features if place == "mlp_patch" else attention)(f"{place} after"), place)
        scene.sampled(model, steps=1)
        return dict(caught)

    plain = run(lambda base: lllite(scene, base))
    masked = run(lambda base: weigh(lllite(scene, base), base, mask=left_half(scene)))
    inside = torch.zeros(4, 6, dtype=torch.bool)
    inside[:, :3] = True
    inside = inside.flatten()
    for place, indices in {"attn1_patch": (0, 1, 2), "attn2_patch": (0,), "mlp_patch": (0,)}.items():
        for i in indices:
            before, after = masked[f"{place} before"][i], masked[f"{place} after"][i]
            assert torch.equal(after[:, ~inside], before[:, ~inside]), place
            assert not torch.equal(after[:, inside], before[:, inside]), place
            if place == "attn1_patch":  # later inputs already differ
                assert torch.equal(after[:, inside], plain[f"{place} after"][i][:, inside])
    assert torch.equal(masked["attn2_patch after"][1], masked["attn2_patch before"][1]), "words were changed"


# --- layers ---


def layers_of(pack, scene, *controls):
    """Return LAYERS side by side over the canvas, one a control (hint, strength, start, end)."""
    document = pack("layered_core.document")
    height, width = scene.size
    side = width // len(controls)
    made = [
        document.Layer(
            f"layer {i}", x=i * side, width=side, height=height, prompt="a ball",
            recipe=document.Recipe(control=document.Control(*control)),
        )
        for i, control in enumerate(controls)
    ]  # fmt: skip
    return pack("nodes.layers.socket").write_stack(document.LayerDocument(width, height, tuple(made)))


def test_every_layer_has_its_own_strength(host, pack, weigh):
    scene = qwen()
    layers = layers_of(pack, scene, ("canny", 0.5), ("none",), ("canny", 1.5))
    _, plain = looked_at(scene, diffsynth)
    before, after = looked_at(scene, diffsynth, weigh, layers=layers, strength=0.5)
    change = (after - before).unflatten(1, (4, 6))
    whole = (plain - before).unflatten(1, (4, 6))
    for columns, share in ((slice(0, 2), 0.25), (slice(2, 4), 0), (slice(4, 6), 0.75)):
        torch.testing.assert_close(change[:, :, columns], share * whole[:, :, columns], atol=1e-5, rtol=1e-4)


def test_a_layer_acts_only_in_its_range(host, pack, weigh):
    scene = qwen()
    model = diffsynth(scene)
    late, early = (
        weigh(model, scene.model, layers=layers_of(pack, scene, ("canny", 1.0, *share)))
        for share in ((0.5, 1.0), (0.0, 0.5))
    )
    by_node = weigh(model, scene.model, start_percent=0.5)
    sigma = float(scene.model.model.model_sampling.percent_to_sigma(0.5))
    plain, full = scene.sampled(scene.model, steps=8), scene.sampled(model, steps=8)
    runs = [scene.sampled(m, steps=8) for m in (late, early)]
    assert torch.equal(scene.sampled(by_node, steps=8), runs[0])
    for run in runs:
        assert not torch.equal(run, plain)
        assert not torch.equal(run, full)
    calls = []
    inner = next(iter(late.model_options["transformer_options"]["patches"]["double_block"])).inner
    kind = type(inner)
    original = kind.__call__
    try:
        kind.__call__ = lambda self, a: (
            calls.append(float(a["transformer_options"]["sigmas"][0])) or original(self, a)
        )
        scene.sampled(late, steps=8)
    finally:
        kind.__call__ = original
    assert calls
    assert max(calls) <= sigma


@pytest.mark.parametrize(
    ("make", "control"), [(qwen, diffsynth), (z_image, fun), (anima, lllite), (wan, uni3c)]
)
def test_a_strength_is_that_of_the_controls_own_node(host, weigh, make, control):
    scene = make()
    wanted = scene.sampled(control(scene, strength=0.3))
    got = scene.sampled(weigh(control(scene), scene.model, strength=0.3))
    torch.testing.assert_close(got, wanted, atol=1e-3 * float(wanted.abs().max()), rtol=0)
    assert float((scene.sampled(control(scene)) - wanted).abs().max()) > 0.05 * float(wanted.abs().max())


def test_a_mask_limits_layers(host, pack, weigh):
    scene = qwen()
    model = diffsynth(scene)
    layers = layers_of(pack, scene, ("canny",))
    both = scene.sampled(weigh(model, scene.model, layers=layers, mask=left_half(scene)))
    assert torch.equal(both, scene.sampled(weigh(model, scene.model, mask=left_half(scene))))


# --- beside other patches ---


@pytest.mark.parametrize(
    ("make", "control"), [(qwen, diffsynth), (z_image, fun), (wan, uni3c), (lumina2, written)]
)
@pytest.mark.parametrize("first", [True, False])
def test_another_packs_patch_in_base_stays_as_it_is(host, weigh, make, control, first):
    scene = make()
    base = scene.model.clone()
    base.set_model_double_block_patch(OtherPack(0.1))
    model = control(scene, base)
    if not first:  # some packs put theirs in front
        model.model_options["transformer_options"]["patches"]["double_block"].reverse()
    plain, full = scene.sampled(base), scene.sampled(model)
    assert not torch.equal(plain, full)
    assert torch.equal(scene.sampled(weigh(model, base)), full)
    assert torch.equal(scene.sampled(weigh(model, base, mask=mask_of(scene, 0.0))), plain)


@pytest.mark.parametrize(("make", "control"), [(qwen, diffsynth), (z_image, fun), (anima, lllite)])
def test_controls_of_different_layers_are_chained(host, weigh, make, control):
    scene = make()
    first, both = control(scene), control(scene, control(scene), seed=1)
    second = control(scene, seed=1)

    def chained(mask, other):
        one = weigh(first, scene.model, mask=mask)
        return scene.sampled(weigh(control(scene, one, seed=1), one, mask=other))

    ones, zeros, left = mask_of(scene), mask_of(scene, 0.0), left_half(scene)
    assert torch.equal(chained(ones, ones), scene.sampled(both))
    assert torch.equal(chained(zeros, ones), scene.sampled(second))
    assert torch.equal(chained(ones, zeros), scene.sampled(first))
    assert torch.equal(chained(left, zeros), scene.sampled(weigh(first, scene.model, mask=left)))
    halves = chained(left, 1 - left)
    assert torch.isfinite(halves).all()
    assert not torch.equal(halves, chained(left, zeros))


def test_a_patch_that_is_weighed_already_is_not_weighed_twice(host, weigh):
    scene = qwen()
    one = weigh(diffsynth(scene), scene.model, mask=left_half(scene))
    two = weigh(diffsynth(scene, one, seed=1), scene.model, mask=mask_of(scene))
    assert torch.equal(scene.sampled(two), scene.sampled(diffsynth(scene, one, seed=1)))


@pytest.mark.parametrize(
    ("make", "control"), [(qwen, diffsynth), (z_image, fun), (anima, lllite), (wan, uni3c)]
)
def test_comfyui_finds_a_patchs_weights_and_moves_them(host, weigh, make, control):
    scene = make()
    model = control(scene)
    masked = weigh(model, scene.model, mask=left_half(scene))
    assert masked.model_patches_models() == model.model_patches_models() != []
    before = {w: list(g) for w, g in masked.model_options["transformer_options"]["patches"].items()}
    masked.model_patches_to(torch.device("cpu"))
    after = masked.model_options["transformer_options"]["patches"]
    assert all(a is b for w in before for a, b in zip(before[w], after[w], strict=True))


def test_a_patch_that_is_replaced_when_it_is_moved_stays_weighed(host, weigh):
    class Moved(OtherPack):
        def to(self, device_or_dtype):
            return Moved(self.strength)

    scene = qwen()
    model = scene.model.clone()
    model.set_model_double_block_patch(Moved())
    masked = weigh(model, scene.model, mask=mask_of(scene, 0.0))
    masked.model_patches_to(torch.device("cpu"))
    assert torch.equal(scene.sampled(masked), scene.sampled(scene.model))


def test_the_log_tells_of_changes_that_masks_do_not_weigh(host, weigh, caplog):
    scene = qwen()
    caplog.set_level(logging.WARNING)
    weigh(diffsynth(scene), scene.model)
    one = weigh(diffsynth(scene), scene.model)
    weigh(diffsynth(scene, one, seed=1), one)
    assert "Masked Model Patch" not in caplog.text
    lora = scene.model.clone()
    key = "diffusion_model.proj_out.weight"
    shape = scene.model.model.diffusion_model.proj_out.weight.shape
    lora.add_patches({key: ("diff", (torch.ones(shape),))})
    lora.set_model_sampler_post_cfg_function(lambda a: a["denoised"])
    weigh(diffsynth(scene, lora), scene.model)
    assert "act everywhere: weights, e.g. a LoRA, sampling options" in caplog.text


# --- refused ---


def test_models_that_do_not_belong_together_are_refused(host, pack, weigh):
    error = pack("layered_core.errors").LayeredError
    scene, other = qwen(), qwen()
    with pytest.raises(error, match="model: number of patches that base lacks is 0; allowed: 1 or more"):
        weigh(scene.model, scene.model)
    with pytest.raises(error, match="base: is another model. Connect to base"):
        weigh(diffsynth(scene), other.model)
    with pytest.raises(error, match=r"base: has patches that model lacks \(DiffSynthCnetPatch\)"):
        weigh(scene.model, diffsynth(scene))
    with pytest.raises(error, match=r"end_percent is 0.2; allowed: a number 0.5..1"):
        weigh(diffsynth(scene), scene.model, start_percent=0.5, end_percent=0.2)
    with pytest.raises(error, match="no visible layer has a control hint"):
        weigh(diffsynth(scene), scene.model, layers=layers_of(pack, scene, ("none",)))
    layers = layers_of(pack, scene, ("canny",))
    with pytest.raises(error, match="mask: size is '96x96'; allowed: the aspect ratio of the layers, 96x64"):
        weigh(diffsynth(scene), scene.model, layers=layers, mask=torch.ones(1, 96, 96))


def test_patches_of_other_places_are_refused_by_name(host, pack, weigh):
    class Style:
        def __call__(self, arguments):
            return arguments

    scene = qwen()
    for place, patch in (
        ("post_input", Style()), ("attn1_patch", Style()), ("middle_block_after_patch", Style()),
        ("forward_timestep_embed_patch", (torch.nn.Module, Style())),
    ):  # fmt: skip
        model = scene.model.clone()
        model.set_model_patch(patch, place)
        with pytest.raises(
            pack("layered_core.errors").LayeredError,
            match=rf"model: place of the patch .*Style is '{place}'; allowed: double_block, noise_refiner",
        ):
            weigh(model, scene.model)


def test_a_patch_of_the_words_is_refused(host, pack, weigh):
    class Words:
        def __call__(self, arguments):
            return {**arguments, "txt": arguments["txt"] * 2}

    scene = qwen()
    model = scene.model.clone()
    model.set_model_double_block_patch(Words())
    masked = weigh(model, scene.model, mask=left_half(scene))
    with pytest.raises(
        pack("layered_core.errors").LayeredError, match=r"the patch .*Words changes the words'"
    ):
        scene.sampled(masked)


@pytest.mark.parametrize(("make", "control"), [(qwen, diffsynth), (anima, lllite)])
def test_a_part_of_the_picture_that_is_sampled_alone_is_refused(host, pack, weigh, make, control):
    """As conditioning areas and nodes that sample tile by tile do."""
    scene = make()
    model = control(scene)
    masked = weigh(model, scene.model, mask=left_half(scene))
    area = comfy_nodes.ConditioningSetArea().append(scene.positive, 48, 64, 0, 0, 1.0)[0]
    with pytest.raises(
        pack("layered_core.errors").LayeredError,
        match="size of the part that is sampled, in latent cells is '6x8'; allowed: 12x8, the whole latent",
    ):
        scene.sampled(masked, positive=area)
    ones = weigh(model, scene.model, mask=mask_of(scene))
    assert torch.equal(scene.sampled(ones, positive=area), scene.sampled(model, positive=area))


def test_an_evaluation_outside_of_sampling_is_refused(host, pack, weigh):
    scene = qwen()
    masked = weigh(diffsynth(scene), scene.model, mask=left_half(scene))
    options = {**masked.model_options["transformer_options"], "sigmas": torch.ones(1)}
    with (
        torch.inference_mode(),
        pytest.raises(pack("layered_core.errors").LayeredError, match="OUTER_SAMPLE"),
    ):
        masked.model.apply_model(
            scene.latents, torch.ones(1), c_crossattn=scene.positive[0][0], transformer_options=options
        )


# --- a part that Regenerate Layers cuts out ---


SIDE = 160
"""Side of the whole picture, pixels."""


@pytest.fixture
def cut(pack, host):
    """A cut-out of the picture: pixels 32..96, 48..112, scaled by 2."""
    repaint, cut_out = pack("layered_core.painting.repaint"), pack("nodes.noise.cut_out")
    region = torch.zeros(SIDE, SIDE)
    region[64:96, 48:80] = 1
    plan = repaint.plan_repaint(picture((SIDE, SIDE))[0].movedim(-1, 0), region, soften=0, side=128)
    assert (plan.crop.left, plan.crop.top, plan.crop.right, plan.crop.bottom) == (32, 48, 96, 112)
    latents = torch.rand(1, 16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return cut_out.CutOut(plan, latents)


def test_masks_of_the_whole_picture_follow_a_cut_out(host, pack, weigh, cut, caplog):
    scene = qwen()
    scene.latents = cut.latents
    model = diffsynth(scene)  # its picture is of the cut-out
    whole = torch.zeros(1, SIDE, SIDE)
    whole[:, :, 64:] = 1
    by_hand = cut.plan.cut_layout(whole)
    assert by_hand.shape == (1, 128, 128)

    def sampled(mask, cut):
        masked = weigh(model, scene.model, mask=mask)
        pack("nodes.noise.cut_out").with_cut_out(masked, cut)
        return scene.sampled(masked)

    wanted = sampled(by_hand, None)
    assert torch.equal(sampled(whole, cut), wanted)
    assert torch.equal(sampled(by_hand, cut), wanted), "a mask of the cut-out's size was cut"
    assert not torch.equal(sampled(whole, None), wanted)
    own = cut.plan.cut_mask()[None]
    assert torch.equal(sampled(own, cut), sampled(own, None))
    assert "hint" not in caplog.text


def test_layers_follow_a_cut_out(host, pack, weigh, cut):
    scene = qwen()
    scene.latents = cut.latents
    model = diffsynth(scene)
    document = pack("layered_core.document")
    recipe = document.Recipe(control=document.Control("canny"))
    layer = document.Layer("ball", x=64, width=96, height=SIDE, prompt="a ball", recipe=recipe)
    layers = pack("nodes.layers.socket").write_stack(document.LayerDocument(SIDE, SIDE, (layer,)))
    masked = weigh(model, scene.model, layers=layers)
    pack("nodes.noise.cut_out").with_cut_out(masked, cut)
    whole = torch.zeros(1, SIDE, SIDE)
    whole[:, :, 64:] = 1
    by_hand = cut.plan.cut_layout(whole)
    assert torch.equal(scene.sampled(masked), scene.sampled(weigh(model, scene.model, mask=by_hand)))


def test_the_log_tells_of_a_control_picture_that_does_not_follow_a_cut_out(host, pack, weigh, cut, caplog):
    scene = qwen((1, 16, 1, SIDE // 8, SIDE // 8))
    model = weigh(diffsynth(scene), scene.model, mask=left_half(scene))
    pack("nodes.noise.cut_out").with_cut_out(model, cut)
    scene.latents = cut.latents
    scene.sampled(model, steps=1)
    assert "hint of 160x160 has the size of the whole picture" in caplog.text
