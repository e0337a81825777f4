"""Masked Model Patch on tiny transformers, with the controls of ComfyUI that patch a MODEL and with another
pack's patch."""

import logging

import comfy.samplers
import pytest
import tiny_transformers as tiny
import torch
from patch_scene import (
    CONTROLS,
    OtherPack,
    anima,
    diffsynth,
    fun,
    layers_of,
    left_half,
    lllite,
    lumina2,
    mask_of,
    qwen,
    uni3c,
    wan,
    written,
    z_image,
)
from regional_scene import WIDGETS, halves


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


# --- layers ---


def test_a_patch_runs_once_a_block_for_any_number_of_layers(host, pack, weigh):
    class Counted(OtherPack):
        calls = 0

        def __call__(self, arguments):
            Counted.calls += 1
            return super().__call__(arguments)

    scene = qwen()
    model = scene.model.clone()
    model.set_model_double_block_patch(Counted())
    counts = []
    for layers in (None, *(layers_of(pack, scene, *[("canny", 0.5), ("none",)] * n) for n in (1, 6))):
        Counted.calls = 0
        scene.sampled(model if layers is None else weigh(model, scene.model, layers=layers))
        counts.append(Counted.calls)
    assert counts == [2 * 3] * 3, "two steps of three blocks, words and no words in one batch"


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


@pytest.mark.parametrize(
    ("make", "control", "family"),
    [(qwen, diffsynth, "qwen"), (z_image, fun, "zimage"), (anima, lllite, "anima")],
)
def test_words_per_layer_and_a_masked_patch_act_together(host, regions, weigh, make, control, family):
    scene = make()
    scene.latents = torch.zeros(*scene.latents.shape[:-2], 16, 16)
    values = {**WIDGETS, "prompt": "a meadow at noon", "negative": "dark"}
    base, positive, negative = regions.node.execute(
        scene.model, tiny.clip(family), halves(regions), **values
    ).result

    def sampled(model):
        return scene.sampled(model, positive=positive, negative=negative)

    model = control(scene, base)
    plain, full = sampled(base), sampled(model)
    assert not torch.equal(plain, full)
    assert torch.equal(sampled(weigh(model, base)), full)
    assert torch.equal(sampled(weigh(model, base, mask=mask_of(scene, 0.0))), plain)
    half = sampled(weigh(model, base, mask=left_half(scene)))
    after = regions.node.execute(
        weigh(control(scene), scene.model, mask=left_half(scene)),
        tiny.clip(family),
        halves(regions),
        **values,
    ).result
    assert torch.equal(scene.sampled(after[0], positive=after[1], negative=after[2]), half), (
        "the order matters"
    )


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
