"""Regional Prompt Attention's rescale in the real host: against ComfyUI's RescaleCFG, in its place and time,
and under other guiders."""

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3, RescaleCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from regional_guidance import dual, dually, guided, left_half, plainly
from regional_scene import apply, as_layer, encode, everywhere, halves, in_tiles, once


def rescaled(whole, cond, mask, amount):
    """The rescaled picture by the paper's formula, for one layer with a hard mask."""
    whole, inside = whole.clone(), mask.bool().expand_as(whole)
    for i in range(len(whole)):
        factor = cond[i][inside[i]].std() / whole[i][inside[i]].std()
        whole[i][inside[i]] *= amount * factor + 1 - amount
    return whole


def left(width=16):
    mask = torch.zeros(1, 1, 16, width)
    mask[..., : width // 2] = 1
    return mask


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_its_neutral_value_changes_no_bit(regions, loaded, guidance):
    without = guided(regions, loaded, guidance=guidance)
    seen = guided(regions, loaded, guidance=guidance, rescale=0.0)
    assert torch.equal(seen["guided"], without["guided"])
    if guidance == 1:
        assert torch.equal(seen["guided"], plainly(seen))


@pytest.mark.parametrize("sigma", [0.95, 0.5, 0.1])
@pytest.mark.parametrize("amount", [0.4, 1.0])
def test_a_layer_over_the_whole_canvas_is_rescaled_as_flow_models_by_comfyuis_own_node(
    regions, loaded, sigma, amount
):
    """ComfyUI's node rescales the picture of flow models too; the storybook is sampled here as if it were one."""
    model, clip = loaded
    model = ModelSamplingSD3().patch(model, shift=1.0)[0]
    out, *words = as_layer(regions, model, clip)
    wanted = once(RescaleCFG().patch(out, amount)[0], *words, sigma=sigma, cfg=6.0)
    out, *words = as_layer(regions, model, clip, rescale=amount)
    seen = once(out, *words, sigma=sigma, cfg=6.0)
    torch.testing.assert_close(seen["guided"], wanted["guided"], atol=1e-4, rtol=1e-4)
    assert float((seen["guided"] - plainly(seen, 6.0)).abs().max()) > 0.01


def test_it_acts_in_layers_alone(regions, loaded):
    seen = guided(regions, loaded, stack=left_half(regions), rescale=0.7)
    wanted = rescaled(plainly(seen), seen["cond"], left(), 0.7)
    torch.testing.assert_close(seen["guided"], wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(seen["guided"][..., 8:], plainly(seen)[..., 8:])
    assert not torch.equal(seen["guided"][..., :8], plainly(seen)[..., :8])


def test_it_acts_after_the_raised_guidance(regions, loaded):
    seen = guided(regions, loaded, stack=left_half(regions), rescale=0.7, guidance=4.0)
    raised = seen["uncond"] + (seen["cond"] - seen["uncond"]) * 3 * (1 + 3 / 2)  # half of the canvas
    wanted = rescaled(raised, seen["cond"], left(), 0.7)
    torch.testing.assert_close(seen["guided"][..., :8], wanted[..., :8], atol=1e-4, rtol=1e-4)
    assert torch.equal(seen["guided"][..., 8:], plainly(seen)[..., 8:])


def test_it_acts_from_start_to_end_and_with_a_layers_strength(regions, loaded):
    sampling = loaded[0].get_model_object("model_sampling")
    for share, acts in ((0.1, False), (0.3, True), (0.5, False)):
        sigma = sampling.percent_to_sigma(share)
        seen = guided(regions, loaded, rescale=0.7, start=0.2, end=0.4, sigma=sigma)
        assert torch.equal(seen["guided"], plainly(seen)) != acts
    model, clip = loaded
    plain = once(model, encode(clip, "a meadow"), encode(clip, ""))
    seen = guided(regions, loaded, prompt="a meadow", rescale=1.0, strength=0.0)
    assert torch.equal(seen["guided"], plain["guided"])


def test_at_cfg_1_there_is_nothing_to_rescale(regions, loaded):
    seen = guided(regions, loaded, rescale=1.0, cfg=1.0)
    assert torch.equal(seen["guided"], guided(regions, loaded, cfg=1.0)["guided"])


@pytest.mark.parametrize("size", [(16, 24), (9, 17)])
def test_any_latent_size_is_rescaled(regions, loaded, size):
    seen = once(*apply(regions, *loaded, everywhere(regions), rescale=0.5), batch=2, size=size)
    wanted = rescaled(plainly(seen), seen["cond"], torch.ones(1, 1, *size), 0.5)
    torch.testing.assert_close(seen["guided"], wanted, atol=1e-4, rtol=1e-4)


def test_a_batch_is_its_pictures(regions, loaded):
    together, alone = (guided(regions, loaded, rescale=0.7, batch=n)["guided"] for n in (2, 1))
    torch.testing.assert_close(together[:1], alone, atol=1e-3, rtol=1e-3)


def test_tiles_are_rescaled_as_one_picture(regions, loaded):
    out, *words = apply(regions, *loaded, left_half(regions), rescale=0.7)
    seen = once(in_tiles(out, [(0, 16), (16, 32)]), *words, size=(16, 32))
    wanted = rescaled(plainly(seen), seen["cond"], left(32), 0.7)
    torch.testing.assert_close(seen["guided"], wanted, atol=1e-4, rtol=1e-4)


def test_another_packs_function_on_the_prediction_keeps_its_effect(regions, loaded):
    model, clip = loaded
    louder = model.clone()
    louder.set_model_sampler_post_cfg_function(lambda a: a["denoised"] * 1.5)
    seen = once(*apply(regions, louder, clip, left_half(regions), rescale=0.7))
    wanted = rescaled(1.5 * plainly(seen), seen["cond"], left(), 0.7)
    torch.testing.assert_close(seen["guided"], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("style", ["regular", "nested"])
@pytest.mark.parametrize("cfg2", [2.0, 1.0])
def test_under_dual_cfg_guider_the_final_prediction_is_rescaled(regions, loaded, style, cfg2):
    seen = dual(regions, loaded, style, 1.0, cfg2=cfg2, rescale=0.7)
    if cfg2 == 1 and style == "regular":  # the negative is not computed and counts nothing
        seen["negative"] = seen["middle"]
    whole = dually(seen, style, 3.0, cfg2)
    wanted = rescaled(whole, seen["positive"], left(), 0.7)
    torch.testing.assert_close(seen["guided"], wanted, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(seen["guided"][..., 8:], whole[..., 8:], atol=1e-5, rtol=1e-5)
    assert float((seen["guided"] - whole).abs().max()) > 0.01


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_a_prediction_of_one_conditioning_between_does_not_disturb_dual_cfg_guider(regions, loaded, style):
    def look_again(args):
        options = args["model_options"]
        comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"]

    how = {"guidance": 4.0, "rescale": 0.7}
    plain = dual(regions, loaded, style, **how)
    seen = dual(regions, loaded, style, **how, function=look_again)
    assert torch.equal(seen["guided"], plain["guided"])


def test_two_layers_have_statistics_of_their_own(regions, loaded):
    seen = guided(regions, loaded, stack=halves(regions), rescale=1.0)
    wanted = rescaled(plainly(seen), seen["cond"], left(), 1.0)
    wanted = rescaled(wanted, seen["cond"], 1 - left(), 1.0)
    torch.testing.assert_close(seen["guided"], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("neg_scale", [1.0, 0.0])
def test_under_perp_neg_guider_what_it_predicts_is_rescaled(regions, loaded, neg_scale):
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip, left_half(regions), rescale=0.7)
    seen = {}

    def keep(args):
        seen.update(whole=args["denoised"], cond=args["cond_denoised"])
        return args["denoised"]

    def look(m, x, sigmas, extra_args=None, **_):
        seen["guided"] = m(x, sigmas[:1].expand(len(x)), **extra_args)
        return seen["guided"]

    out.set_model_sampler_post_cfg_function(keep)
    guider = Guider_PerpNeg(out)
    guider.set_conds(positive, negative, encode(clip, ""))
    guider.set_cfg(3.0, neg_scale)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sampler, sigmas = comfy.samplers.KSAMPLER(look), torch.tensor([5.0, 0.0])
    with torch.inference_mode():
        guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=0)
    wanted = rescaled(seen["whole"], seen["cond"], left(), 0.7)
    torch.testing.assert_close(seen["guided"], wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(seen["guided"][..., 8:], seen["whole"][..., 8:])
    assert not torch.equal(seen["guided"], seen["whole"])
