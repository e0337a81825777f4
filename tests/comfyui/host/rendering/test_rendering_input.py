"""Bad input to Layered Rendering is refused before a step is made, in one line that says how to go on."""

from functools import partial

import comfy.patcher_extension
import pytest
import torch
from comfy_extras.nodes_hooks import ConditioningSetDefaultAndCombine
from regional_scene import encode, everywhere, in_tiles
from rendering_scene import render
from sampling import sample

import nodes as comfy_nodes


def refused(regions, *args, **values):
    with pytest.raises(regions.error) as error:
        render(regions, *args, **values)
    return str(error.value)


def test_a_stack_without_words_or_out_of_sight_is_refused(regions, loaded):
    assert "none has words" in refused(regions, *loaded, everywhere(regions, ""))
    away = regions.document.Layer("far", x=300, y=0, width=9, height=9, prompt="a ball")
    stack = regions.layers.write_stack(regions.document.LayerDocument(128, 128, (away,)))
    assert "'far'" in refused(regions, *loaded, stack)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"share": 1.5}, "share"), ({"strength": -0.1}, "strength"), ({"colour": "red"}, "colour"),
        ({"constant": "white"}, "constant"), ({"colour": "constant"}, "vae"),
        ({"colour": "picture"}, "layer 'layer 0'"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named(regions, loaded, values, named):
    message = refused(regions, *loaded, **values)
    assert named in message
    assert "allowed" in message


def test_a_family_that_regions_do_not_know_is_told_to_go_on_with_the_prompt(
    regions, loaded, monkeypatch, pack
):
    module = pack("nodes.attention.attention_patch")
    monkeypatch.setattr(module, "cross_attentions", lambda network: {})
    assert "set then to 'prompt'" in refused(regions, *loaded)
    render(regions, *loaded, then="prompt")


def test_a_model_that_makes_pictures_of_one_scene_together_is_refused(regions, loaded, pack):
    class Two:
        frames = 2

    run = pack("nodes.transparency.layer_diffuse_run")
    change = run.ModelChange(None, 1.0, 0.0, 1.0, {}, sharing=Two())
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    model = loaded[0].clone()
    model.add_wrapper_with_key(kind, run.KEY, partial(run.sample_with_change, change))
    assert "2 pictures of one scene" in refused(regions, model, loaded[1])


def stopped(regions, model, positive, negative):
    """Return the error of a run, before which no pass of the model was made."""
    passes = []
    clone = model.clone()
    clone.set_model_unet_function_wrapper(lambda apply, args: passes.append(args))
    with pytest.raises(regions.error) as error:
        sample(clone, positive, negative)
    assert not passes
    return str(error.value)


def test_an_area_beside_it_is_refused_before_the_first_pass(regions, loaded):
    model, positive, negative = render(regions, *loaded)
    area = comfy_nodes.ConditioningSetArea().append(encode(loaded[1], "a house"), 64, 64, 0, 0, 1.0)[0]
    assert "area" in stopped(regions, model, positive + area, negative)
    bounds = comfy_nodes.ConditioningSetMask().append(positive, torch.ones(1, 128, 128), "mask bounds", 1.0)[
        0
    ]
    assert "area" in stopped(regions, model, bounds, negative)


def test_a_conditioning_for_the_rest_is_refused_before_the_first_pass(regions, loaded):
    model, positive, negative = render(regions, *loaded)
    default = encode(loaded[1], "a house")
    both = ConditioningSetDefaultAndCombine().set_default_and_combine(positive, default)[0]
    assert "Cond Set Default Combine" in stopped(regions, model, both, negative)


def test_the_conditionings_of_two_nodes_are_refused_before_the_first_pass(regions, loaded):
    model, positive, negative = render(regions, *loaded)
    other = render(regions, *loaded, prompt="a house")[1]
    assert "2 nodes" in stopped(regions, model, positive + other, negative)


def test_tiles_are_refused_at_the_first_pass(regions, loaded):
    model, *words = render(regions, *loaded)
    with pytest.raises(regions.error, match="tiles"):
        sample(in_tiles(model, [(0, 8), (8, 16)]), *words)


def test_another_models_vae_is_named_before_the_first_pass(regions, loaded):
    class Vae:
        def spacial_compression_encode(self):
            return 8

        def encode(self, pixels):
            return torch.zeros(len(pixels), 16, 8, 8)

    model, *words = render(regions, *loaded, colour="constant", vae=Vae())
    assert "vae: channels" in stopped(regions, model, *words)
