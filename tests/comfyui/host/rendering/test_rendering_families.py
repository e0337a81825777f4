"""Layered Rendering on transformers and on a tiny SD1.5: it runs, and what is planted hits its own rows alone."""

import comfy.patcher_extension
import pytest
import tiny
import tiny_transformers as transformers
import torch
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxGuidance
from rendering_scene import PLAIN, guided, render

FAMILIES = ("flux", "sd3", "zimage", "qwen")
WORDS = {"prompt": "a meadow at noon", "negative": "dark"}


def watched(model):
    """Return a clone, and the rows of its passes by their uuids, before and after ours: ComfyUI calls wrappers in
    the order in which their keys came, and ours comes when a run begins."""
    clone, before, after = model.clone(), {}, {}
    kinds, add = comfy.patcher_extension.WrappersMP, comfy.patcher_extension.add_wrapper_with_key

    def keep(rows):
        def wrapper(executor, x, t, concat=None, context=None, control=None, options=None, **more):
            uuids = options["uuids"]
            rows.update(zip(uuids, x.clone().chunk(len(uuids)), strict=True))
            return executor(x, t, concat, context, control, options, **more)

        return wrapper

    def begin(executor, *more, **named):
        options = executor.class_obj.model_options
        add(kinds.APPLY_MODEL, "after", keep(after), options, is_model_options=True)
        return executor(*more, **named)

    clone.add_wrapper_with_key(kinds.APPLY_MODEL, "before", keep(before))
    return clone, begin, before, after


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_led_on_transformers(regions, family):
    model, clip = transformers.model(family), transformers.clip(family)
    plain = transformers.sampled(
        model, family, *render(regions, model, clip, share=0.0, **WORDS)[1:], cfg=3.0
    )
    apart, led = (
        transformers.sampled(
            *(out := render(regions, model, clip, share=0.6, strength=strength, **WORDS))[:1], family, *out[1:],
            cfg=3.0, steps=2,
        )
        for strength in (0.0, 0.5)
    )  # fmt: skip
    assert bool(torch.isfinite(led).all())
    assert float((apart - plain).abs().max()) > 1e-3
    assert float((led - apart).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["flux", "qwen"])
def test_what_is_planted_is_in_the_rows_of_its_layer_alone(regions, family):
    model, begin, before, after = watched(transformers.model(family))
    clip, shape = transformers.clip(family), transformers.MODELS[family][2]
    values = {**PLAIN, **WORDS, "strength": 0.5}
    led, *words = render(regions, model, clip, one_layer(regions), **values)
    led.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "late", begin)
    transformers.sampled(led, family, *words, cfg=3.0, steps=1)
    changed = [u for u in before if not torch.equal(before[u], after[u])]
    # Two rows of the background, two of the layer, and two that are asked for the colour once.
    assert (len(before), len(changed)) == (6, 2)
    for uuid in changed:
        shift = (after[uuid] - before[uuid]).reshape(shape[0], *shape[-2:])
        inside, outside = shift[:, :, :6], shift[:, :, 6:]
        assert float(inside.square().mean().sqrt()) == pytest.approx(0.5, rel=1e-3)
        torch.testing.assert_close(outside, -inside, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["flux", "qwen"])
def test_while_layers_are_rendered_regions_do_not_act_on_transformers(regions, family):
    model, clip = transformers.model(family), transformers.clip(family)
    alone, *others = (
        transformers.sampled(out[0], family, *out[1:], cfg=3.0)
        for then in ("prompt", "regions", "regions guided")
        for out in [render(regions, model, clip, share=1.0, then=then, **WORDS)]
    )
    for other in others:
        torch.testing.assert_close(other, alone, atol=1e-5, rtol=1e-5)


def one_layer(regions):
    """A layer on the left half."""
    layer = regions.document.Layer("ball", x=0, y=0, width=64, height=128, prompt="a red ball")
    return regions.layers.write_stack(regions.document.LayerDocument(128, 128, (layer,)))


def test_a_model_that_words_per_layer_do_not_know_is_led_with_then_prompt(regions, loaded, tmp_path):
    """A tiny SD1.5 behind the storybook's text encoder."""
    model, (_, clip) = tiny.build("sd15", tmp_path), loaded
    noise, sigmas = (
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.tensor([8.0, 3.0, 0]),
    )
    plain, led = (
        guided(*render(regions, model, clip, share=share, then="prompt"), noise, sigmas)
        for share in (0.0, 0.5)
    )
    assert bool(torch.isfinite(led).all())
    assert float((led - plain).abs().max()) > 1e-2


def test_guidance_and_references_behind_the_node_and_in_front_of_it_act_in_all_passes(regions):
    model, clip = transformers.model("flux"), transformers.clip("flux")
    latent = {"samples": torch.randn(1, 16, 16, 12, generator=torch.Generator().manual_seed(5))}

    def changed(positive):
        positive = FluxGuidance.execute(conditioning=positive, guidance=7.0).result[0]
        return ReferenceLatent.execute(conditioning=positive, latent=latent).result[0]

    values = {**WORDS, "share": 0.6, "then": "prompt"}
    led, positive, negative = render(regions, model, clip, **values)
    plain = render(regions, model, clip, **{**values, "share": 0.0})
    behind = transformers.sampled(led, "flux", changed(positive), negative)
    first = render(regions, model, clip, positive_after=changed(plain[1]), negative_after=plain[2], **values)
    assert torch.equal(transformers.sampled(first[0], "flux", *first[1:]), behind)
    assert float((behind - transformers.sampled(led, "flux", positive, negative)).abs().max()) > 1e-3
