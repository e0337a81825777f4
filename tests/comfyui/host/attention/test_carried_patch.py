"""The conditionings of Regional Prompt Attention act on a sampler whose MODEL does not come from the node, to the
bit as with the node's own."""

import comfy.sampler_helpers
import comfy.samplers
import pytest
import tiny_transformers as tiny
import torch
from comfy_extras.nodes_custom_sampler import DualCFGGuider
from comfy_extras.nodes_flux import FluxGuidance
from regional_scene import WIDGETS, apply, encode, halves
from sampling import explode, sample

import nodes as comfy_nodes

GUIDED = {"guidance": 4.0, "rescale": 0.5, "growth": 0.1, "auto_negative": True}
"""Settings that act on the prediction too."""


@pytest.mark.parametrize("mode", ["regions", "joint", "collage"])
def test_another_model_samples_what_the_nodes_model_samples(regions, loaded, mode):
    model, clip = loaded
    patched, *words = apply(regions, model, clip, mode=mode, **GUIDED)
    wanted = sample(patched, *words)
    assert torch.equal(sample(model, *words), wanted)
    assert float((wanted - sample(model, *plain(clip))).abs().max()) > 0.1


def plain(clip, prompt=WIDGETS["prompt"]):
    return encode(clip, prompt), encode(clip, "")


@pytest.mark.parametrize("family", list(tiny.MODELS))
def test_so_it_is_with_transformers(regions, family):
    model, clip = tiny.shared_model(family), tiny.clip(family)
    values = {**WIDGETS, "prompt": "a meadow at noon", "negative": "dark", "guidance": 3.0}
    patched, *words = regions.node.execute(model, clip, halves(regions), **values).result
    wanted = tiny.sampled(patched, family, *words, cfg=3.0)
    assert torch.equal(tiny.sampled(model, family, *words, cfg=3.0), wanted)
    without = tiny.sampled(model, family, tiny.encode(clip, "a meadow at noon"), words[1], cfg=3.0)
    assert float((wanted - without).abs().max()) > 1e-2


def test_layers_act_beside_a_plain_negative(regions, loaded):
    model, clip = loaded
    patched, positive, _ = apply(regions, model, clip)
    negative = encode(clip, "dark")
    assert torch.equal(sample(model, positive, negative), sample(patched, positive, negative))


def test_layers_act_behind_nodes_that_change_the_conditioning(regions, loaded):
    model, clip = loaded
    patched, positive, negative = apply(regions, model, clip)
    changed = FluxGuidance.execute(conditioning=positive, guidance=3.0).result[0]
    changed = comfy_nodes.ConditioningSetTimestepRange().set_range(changed, 0.0, 1.0)[0]
    assert torch.equal(sample(model, changed, negative), sample(patched, changed, negative))
    assert torch.equal(sample(model, changed, negative), sample(patched, positive, negative))


def test_layers_act_with_guiders_of_several_conditionings(regions, loaded):
    model, clip = loaded
    patched, positive, negative = apply(regions, model, clip, **GUIDED)

    def run(of):
        guider = DualCFGGuider.execute(
            model=of, cond1=positive, cond2=encode(clip, "a meadow"), negative=negative,
            cfg_conds=3.0, cfg_cond2_negative=2.0, style="regular",
        ).result[0]  # fmt: skip
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        sigmas = comfy.samplers.calculate_sigmas(of.get_model_object("model_sampling"), "normal", 3)
        with torch.inference_mode():
            return guider.sample(
                noise, torch.zeros_like(noise), comfy.samplers.ksampler("euler"), sigmas, seed=0
            )

    assert torch.equal(run(model), run(patched))


def test_a_sampler_sees_no_hooks_for_which_it_would_load_the_model_in_another_way(regions, loaded):
    model, clip = loaded
    _, positive, negative = apply(regions, model, clip, negative="dark", auto_negative=True)
    changed = FluxGuidance.execute(conditioning=positive, guidance=3.0).result[0]
    assert not any(comfy.sampler_helpers.cond_has_hooks(x) for x in (positive, negative, changed))


def test_the_conditionings_of_two_nodes_act_in_one_run_once(regions, loaded):
    model, clip = loaded
    first, left, negative = apply(regions, model, clip)
    _, right, _ = apply(regions, model, clip, halves(regions, "a green tree", "a white house"))
    both = comfy_nodes.ConditioningSetTimestepRange().set_range(left, 0.0, 0.5)[0]
    both = both + comfy_nodes.ConditioningSetTimestepRange().set_range(right, 0.5, 1.0)[0]
    assert torch.equal(sample(model, both, negative), sample(first, both, negative))


def test_a_model_samples_as_before_after_a_run_that_broke(regions, loaded):
    model, clip = loaded
    _, *words = apply(regions, model, clip)
    before = sample(model, *plain(clip))
    with pytest.raises(RuntimeError, match="broken on purpose"):
        sample(model, *words, explode)
    assert torch.equal(sample(model, *plain(clip)), before)
    assert torch.equal(sample(model, *words), sample(model, *words))
