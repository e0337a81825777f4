"""Pasting changes its part and leaves all other pixels exactly as they are."""

import pytest
import torch

from layered_core.canvas.soft_masks import feather, gaussian_blur, grow, keep_outside
from layered_core.metrics.picture_metrics import seam_gradient_ratio
from layered_core.noise.guidance import FORMING, classifier_free, guided_more, region_factor
from layered_core.painting.pasting import BLENDS, match_colours, meet_border, multi_band, paste


def test_zero_keeps_and_one_changes_to_the_bit_and_between_is_linear():
    generator = torch.Generator().manual_seed(0)
    changed, kept = (
        torch.randn(2, 3, 4, 6, generator=generator) * 1e3,
        torch.randn(2, 3, 4, 6, generator=generator) / 3,
    )
    mask = torch.zeros(4, 6)
    mask[:, 2:4] = 0.25
    mask[:, 4:] = 1
    out = keep_outside(changed, kept, mask)
    assert torch.equal(out[..., :2], kept[..., :2])
    assert torch.equal(out[..., 4:], changed[..., 4:])
    torch.testing.assert_close(out[..., 2:4], 0.25 * changed[..., 2:4] + 0.75 * kept[..., 2:4])


def test_what_is_kept_survives_even_when_the_change_is_not_a_number():
    out = keep_outside(torch.full((1, 2), torch.nan), torch.ones(1, 2), torch.tensor([[0.0, 1.0]]))
    assert out[0, 0] == 1
    assert out[0, 1].isnan()


def test_guidance_one_is_the_conditional_prediction_and_zero_the_other():
    uncond, cond = torch.tensor([1.0]), torch.tensor([3.0])
    assert [float(classifier_free(uncond, cond, s)) for s in (0, 1, 3)] == [1, 3, 7]


def scene(size=64):
    generator = torch.Generator().manual_seed(3)
    kept = torch.nn.functional.interpolate(
        torch.rand(1, 3, 5, 5, generator=generator), (size, size), mode="bicubic"
    )[0].clamp(0, 1)
    mask = torch.zeros(size, size)
    mask[20:44, 16:48] = 1
    return kept, mask


@pytest.mark.parametrize("pixels", [-3, -1, 0, 1, 4])
def test_growing_moves_every_border_by_that_many_pixels(pixels):
    mask = torch.zeros(20, 30)
    mask[6:14, 8:20] = 0.5
    wanted = torch.zeros(20, 30)
    wanted[6 - pixels : 14 + pixels, 8 - pixels : 20 + pixels] = 0.5
    assert torch.equal(grow(mask, pixels), wanted)


@pytest.mark.parametrize("pixels", [0, 1, 2, 5, 8])
def test_a_feather_keeps_the_inside_and_ends_after_exactly_its_width(pixels):
    _, mask = scene()
    soft = feather(mask, pixels)
    assert bool((soft[mask == 1] == 1).all())
    row = soft[32]
    assert torch.equal(row > 0, grow(mask, pixels)[32] > 0)
    assert bool((row[:17].diff() >= 0).all())


def test_a_blur_of_a_step_is_the_error_function():
    step = torch.zeros(1, 64)
    step[:, 32:] = 1
    x = (torch.arange(64) + 0.5 - 32) / 3
    torch.testing.assert_close(
        gaussian_blur(step, 3.0)[0], 0.5 * (1 + torch.erf(x / 2**0.5)), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("soften", [0, 6])
def test_every_paste_keeps_what_is_outside_to_the_bit_and_stays_in_range(blend, soften):
    kept, mask = scene()
    soft = feather(mask, soften)
    out = paste(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), kept, soft, blend)
    assert torch.equal(out[:, soft == 0], kept[:, soft == 0])
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


@pytest.mark.parametrize("blend", BLENDS)
def test_pasting_a_picture_onto_itself_changes_nothing(blend):
    kept, mask = scene()
    torch.testing.assert_close(paste(kept.clone(), kept, feather(mask, 4), blend), kept, atol=1e-5, rtol=0)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("shift", [-0.1, 0.1])
def test_a_shift_of_colour_leaves_no_seam(blend, shift):
    """The mean gradient on the border is at most 1.2 times that beside it; with a plain paste it is several
    times as large."""
    kept, mask = scene()
    kept = 0.2 + 0.6 * kept
    inner = feather(grow(mask, -8), 8)
    plain = torch.where(mask > 0, kept + shift, kept)
    assert seam_gradient_ratio(plain, mask) > 1.8
    assert seam_gradient_ratio(paste(kept + shift, kept, inner, blend), (inner > 0).float()) <= 1.2


def test_meeting_the_border_without_screening_is_the_harmonic_membrane():
    """On a strip between two borders the solution of Laplace's equation is a straight line."""
    kept = torch.zeros(1, 3, 11)
    kept[..., 10] = 1.0
    inside = torch.zeros(3, 11, dtype=torch.bool)
    inside[:, 1:10] = True
    out = meet_border(
        torch.zeros(1, 3, 11), kept, inside, reach=float("inf"), limit=float("inf"), tolerance=1e-6
    )
    torch.testing.assert_close(out[0, 1], torch.linspace(0, 1, 11) * inside[1], atol=1e-4, rtol=0)


def test_meeting_the_border_falls_off_by_e_in_its_reach():
    kept, changed = torch.ones(1, 3, 400), torch.zeros(1, 3, 400)
    inside = torch.zeros(3, 400, dtype=torch.bool)
    inside[:, 1:] = True
    out = meet_border(changed, kept, inside, reach=8.0, limit=float("inf"), tolerance=1e-6)[0, 1]
    assert float(out[50] / out[42]) == pytest.approx(1 / 2.718, rel=0.01)


def test_another_thing_at_the_border_does_not_bleed_into_the_region():
    kept, changed = torch.zeros(3, 20, 20), torch.full((3, 20, 20), 0.8)
    inside = torch.zeros(20, 20, dtype=torch.bool)
    inside[5:15, 5:15] = True
    assert torch.equal(meet_border(changed, kept, inside), changed)
    near = meet_border(changed, changed - 0.1, inside)
    assert float((near - changed)[:, 5, 10].mean()) < -0.05


def test_a_whole_or_an_empty_region_has_no_border_to_meet():
    changed, kept = torch.rand(3, 8, 8), torch.rand(3, 8, 8)
    for inside in (torch.ones(8, 8, dtype=torch.bool), torch.zeros(8, 8, dtype=torch.bool)):
        assert torch.equal(meet_border(changed, kept, inside), changed)


def test_colours_are_matched_where_both_show_the_same_and_only_by_what_a_vae_does():
    kept, mask = scene()
    changed = (kept - 0.5) * 1.1 + 0.53
    changed[:, mask > 0] = 0.9
    out = match_colours(changed, kept, 1 - mask)
    torch.testing.assert_close(out[:, mask == 0], kept[:, mask == 0], atol=0.01, rtol=0)
    assert torch.equal(match_colours(changed, kept, mask * 0.1), changed)


@pytest.mark.parametrize(("contrast", "spread", "gain"), [(0.5, 0.25, 1.25), (1.6, 0.2, 0.8)])
def test_contrast_is_matched_by_a_quarter_more_or_a_fifth_less_at_most(contrast, spread, gain):
    """What differs more than that is another picture, not the doing of a VAE."""
    kept = (0.5 + torch.linspace(-spread, spread, 64)).expand(3, 64, 64)
    changed = (kept - 0.5) * contrast + 0.48
    out = match_colours(changed, kept, torch.ones(64, 64))
    torch.testing.assert_close(out, (changed - 0.48) * gain + 0.5, atol=1e-4, rtol=0)


def test_what_shows_something_else_says_nothing_about_colours():
    kept = 0.2 + 0.2 * torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    changed = kept + 0.05
    changed[:, :24] += 0.4
    out = match_colours(changed, kept, torch.ones(64, 64))
    torch.testing.assert_close(out, changed - 0.05, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("rows", "enough"), [(15, False), (16, True)])
def test_less_than_a_quarter_of_a_picture_says_nothing_about_the_rest(rows, enough):
    kept = 0.2 + 0.2 * torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(64, 64)
    weight[:rows] = 1
    out = match_colours(kept + 0.05, kept, weight)
    assert torch.equal(out, kept + 0.05) != enough
    if enough:
        torch.testing.assert_close(out, kept, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("shift", "counts"), [(0.1, 1.0), (0.2, 2 / 3), (0.25, 1 / 3), (0.3, 0.0), (0.5, 0.0)]
)
def test_a_difference_at_the_border_counts_less_from_the_limit_on_and_not_at_all_from_twice_it(shift, counts):
    inside = torch.zeros(20, 20, dtype=torch.bool)
    inside[5:15, 5:15] = True
    changed = torch.full((3, 20, 20), 0.3)
    all_of_it = meet_border(changed, changed + shift, inside, limit=float("inf"), tolerance=1e-6)
    out = meet_border(changed, changed + shift, inside, tolerance=1e-6)
    torch.testing.assert_close(out - changed, counts * (all_of_it - changed), atol=1e-5, rtol=0)


def test_bands_of_equal_pictures_add_up_again():
    kept, mask = scene(61)
    torch.testing.assert_close(multi_band(kept, kept, mask), kept, atol=1e-5, rtol=0)


def test_small_regions_are_guided_more_while_the_picture_forms():
    masks = torch.zeros(2, 8, 8)
    masks[0], masks[0, :2, :4], masks[1, :2, :4] = 1, 0, 1  # a background, and an object on an eighth of it
    factor = region_factor(masks, [1, 1], 5.0, FORMING + 0.1)
    assert factor[0, 0] == pytest.approx(1 + 4 * 7 / 8)
    assert factor[7, 7] == pytest.approx(1 + 4 / 8)
    assert (region_factor(masks, [1, 1], 5.0, FORMING) == 1).all()
    assert (region_factor(masks, [1, 1], 1.0, 10.0) == 1).all()


def test_more_guidance_afterwards_is_guidance_with_the_greater_scale():
    uncond, cond, factor = torch.randn(3, 4, 8, 8).unbind()[0], torch.randn(4, 8, 8), torch.rand(8, 8) + 1
    again = guided_more(classifier_free(uncond, cond, 3.0), uncond, cond, 3.0, factor)
    torch.testing.assert_close(again, classifier_free(uncond, cond, 3.0 * factor))
