"""Regional Prompt Attention's guidance in the real host: where and when it acts, and together with other
packs' functions on the prediction."""

import pytest
import torch
from regional_guidance import dual, dually, guided, left_half, plainly
from regional_scene import WIDGETS, apply, encode, halves, once


@pytest.mark.parametrize("mode", ["regions", "collage"])
def test_its_neutral_value_changes_no_bit(regions, loaded, mode):
    seen = guided(regions, loaded, mode=mode, guidance=1.0)
    assert torch.equal(seen["guided"], plainly(seen))


@pytest.mark.parametrize("record", [False, True])
def test_without_strength_it_does_nothing(regions, loaded, record):
    model, clip = loaded
    plain = once(model, encode(clip, WIDGETS["prompt"]), encode(clip, ""))
    assert torch.equal(
        guided(regions, loaded, guidance=6.0, strength=0.0, record=record)["guided"], plain["guided"]
    )


def test_it_raises_the_scale_inside_layers_while_the_picture_forms(regions, loaded):
    stack = left_half(regions)
    seen = guided(regions, loaded, stack=stack, guidance=4.0)
    expected = seen["uncond"] + (seen["cond"] - seen["uncond"]) * 3 * (1 + 3 / 2)  # half of the canvas
    torch.testing.assert_close(seen["guided"][..., :8], expected[..., :8], atol=1e-4, rtol=1e-4)
    assert torch.equal(seen["guided"][..., 8:], plainly(seen)[..., 8:])
    late = guided(regions, loaded, stack=stack, guidance=4.0, sigma=0.9)
    assert torch.equal(late["guided"], plainly(late))


def test_start_and_end_bound_it(regions, loaded):
    sampling = loaded[0].get_model_object("model_sampling")
    for share, acts in ((0.1, False), (0.3, True), (0.5, False)):
        seen = guided(
            regions, loaded, guidance=4.0, start=0.2, end=0.4, sigma=sampling.percent_to_sigma(share)
        )
        assert torch.equal(seen["guided"], plainly(seen)) != acts


def test_a_batch_is_its_pictures(regions, loaded):
    together, alone = (guided(regions, loaded, guidance=4.0, batch=n)["guided"] for n in (2, 1))
    torch.testing.assert_close(together[:1], alone, atol=1e-3, rtol=1e-3)
    assert not torch.equal(together[0], together[1])


def test_at_cfg_1_there_is_nothing_to_be_guided_away_from(regions, loaded):
    seen = guided(regions, loaded, guidance=4.0, cfg=1.0)
    assert torch.equal(seen["guided"], guided(regions, loaded, guidance=1.0, cfg=1.0)["guided"])
    torch.testing.assert_close(seen["guided"], seen["cond"])


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_packs_function_on_the_prediction_is_called_too_whichever_node_comes_first(
    regions, loaded, order
):
    model, clip = loaded

    def brighter(model):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda a: a["denoised"] + 0.5)
        return model

    if order == "before":
        both = once(*apply(regions, brighter(model), clip, guidance=4.0))
    else:
        out, *words = apply(regions, model, clip, guidance=4.0)
        both = once(brighter(out), *words)
    torch.testing.assert_close(both["guided"], guided(regions, loaded, guidance=4.0)["guided"] + 0.5)


def test_words_without_layers_are_guided_as_they_are(regions, loaded):
    model, clip = loaded
    out, positive, negative = apply(regions, model, clip, guidance=4.0)
    assert out.model_options.get("sampler_post_cfg_function") is None, "the model itself carries nothing"
    seen = once(out, positive, negative)
    other = once(out, encode(clip, "a white house"), negative)
    assert torch.equal(other["guided"], plainly(other))
    assert not torch.equal(seen["guided"], plainly(seen))


@pytest.mark.parametrize("size", [(16, 24), (9, 17)])
def test_any_latent_size_is_guided(regions, loaded, size):
    seen = once(*apply(regions, *loaded, halves(regions), guidance=3.0), batch=2, size=size)
    # Each half of the canvas is half of it: 1 + (3 - 1) (1 - 1/2), wherever the two meet.
    wanted = seen["uncond"] + 3.0 * 2.0 * (seen["cond"] - seen["uncond"])
    torch.testing.assert_close(seen["guided"], wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("style", ["regular", "nested"])
@pytest.mark.parametrize("cfg2", [2.0, 1.0])
def test_under_dual_cfg_guider_it_raises_the_scale_of_the_positives_words(regions, loaded, style, cfg2):
    seen = dual(regions, loaded, style, guidance=4.0, cfg2=cfg2)
    scale = torch.full((16, 16), 3.0)
    scale[:, :8] *= 1 + 3 / 2  # half of the canvas
    if cfg2 == 1 and style == "regular":  # the negative is not computed and counts nothing
        seen["negative"] = seen["middle"]
    torch.testing.assert_close(seen["guided"], dually(seen, style, scale, cfg2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_under_dual_cfg_guider_its_neutral_value_and_late_steps_change_nothing(regions, loaded, style):
    for guidance, sigma in ((1.0, 5.0), (4.0, 0.9)):
        seen = dual(regions, loaded, style, guidance, sigma)
        torch.testing.assert_close(seen["guided"], dually(seen, style, 3.0, 2.0), atol=1e-5, rtol=1e-5)
