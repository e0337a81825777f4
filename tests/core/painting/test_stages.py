"""Stages: their seeds, the layer that a stage adds, and the place that it finds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layered_core.canvas.compositing import composite
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.painting.mattes import difference_matte, least_alpha, stage_alpha, uncovered
from layered_core.painting.stages import changed_region, into_place, stage_region, stage_seed, with_stage


def ball(size=64, colour=(0.9, 0.1, 0.1)):
    """Return a picture, the same picture with a soft-edged disc on it, and the disc's alpha."""
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    before = torch.stack([columns / size, 0.5 + 0.3 * (rows / 7).sin(), 1 - rows / size])
    alpha = (16.5 - ((rows - 30) ** 2 + (columns - 34) ** 2).sqrt()).clamp(0, 1)
    return before, torch.tensor(colour)[:, None, None] * alpha + before * (1 - alpha), alpha


@given(st.integers(0, 2**63 - 1), st.text(max_size=20))
def test_a_stages_seed_depends_on_base_and_name_alone_and_fits(base, name):
    seed = stage_seed(base, name)
    assert seed == stage_seed(base, name)
    assert 0 <= seed < 2**63
    assert seed != stage_seed(base + 1, name)
    assert seed != stage_seed(base, name + "x")


def test_seeds_stay_the_same_over_versions():
    """Computed separately with Python's hashlib: int(sha256(b"7 tree").hexdigest()[:16], 16) >> 1."""
    assert stage_seed(7, "tree") == int("97db6ac22ec27f55", 16) >> 1


def test_a_difference_matte_finds_the_disc():
    before, after, alpha = ball()
    matte = difference_matte(before, after)
    assert float((matte - alpha).abs().mean()) < 0.02
    assert bool((matte[alpha == 0] == 0).all())
    assert bool((matte[alpha == 1] == 1).all())


def test_differences_up_to_the_low_one_are_none_and_from_the_high_one_on_whole():
    before = torch.full((3, 1, 5), 0.5)
    after = before + torch.tensor([0.05, 0.0599, 0.12, 0.18, 0.4])
    # On mid-grey a colour of any alpha from twice the difference on can do it.
    wanted = torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(difference_matte(before, after, close=0), wanted, atol=1e-4, rtol=0)


def test_the_layer_over_the_picture_before_it_is_the_picture_after_it():
    before, after, _ = ball()
    rgba = uncovered(before, after, difference_matte(before, after))
    again = rgba[..., :3].permute(2, 0, 1) * rgba[..., 3] + before * (1 - rgba[..., 3])
    torch.testing.assert_close(again[:, rgba[..., 3] > 0], after[:, rgba[..., 3] > 0], atol=1e-5, rtol=0)
    assert float((again - after).abs().max()) <= 0.06
    for linear in (False, True):
        whole = uncovered(before, after, torch.ones(64, 64), linear)
        assert torch.equal(whole[..., :3].permute(2, 0, 1), after)


@pytest.mark.parametrize("rules", ["photoshop", "comfyui"])
def test_so_it_is_when_composited_by_either_set_of_rules(rules):
    before, after, _ = ball()
    opaque = torch.cat([before, torch.ones(1, 64, 64)]).permute(1, 2, 0)
    rgba = uncovered(before, after, difference_matte(before, after), linear=rules == "comfyui")
    out = composite(LayerDocument(64, 64, (Layer("before", opaque), Layer("ball", rgba))), rules)[
        ..., :3
    ].permute(2, 0, 1)
    differs = (out - after).abs().amax(0)
    assert float(differs.mean()) < 0.003
    assert float(differs.max()) <= 0.08


def test_no_alpha_below_the_least_can_give_the_picture():
    before, after, _ = ball()
    least = least_alpha(before, after)
    at = least > 0.05
    for factor, fits in ((1.0, True), (0.9, False)):
        alpha = (least * factor).clamp_min(1e-6)
        colour = (after - (1 - alpha) * before) / alpha
        overshoot = torch.maximum(-colour.amin(0), colour.amax(0) - 1)[at]
        assert bool((overshoot <= 1e-4).all()) == fits


def test_a_thing_of_the_colour_behind_it_has_its_hole_closed():
    before, after, alpha = ball()
    after[:, 29:32, 33:36] = before[:, 29:32, 33:36]
    assert bool((difference_matte(before, after)[alpha == 1] == 1).all())


def test_the_mask_itself_can_be_the_alpha_and_other_words_are_refused():
    before, after, alpha = ball()
    assert torch.equal(stage_alpha(before, after, alpha, "mask"), alpha)
    assert bool((stage_alpha(before, after, alpha, "difference")[alpha == 0] == 0).all())
    with pytest.raises(LayeredError, match="alpha is 'magic'; allowed: difference, mask"):
        stage_alpha(before, after, alpha, "magic")


def disc(height, width, x, y, radius, alpha=1.0):
    """Draw a red disc with a faint haze over the whole picture."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    inside = (radius + 0.5 - ((rows - y) ** 2 + (columns - x) ** 2).sqrt()).clamp(0, 1)
    colour = torch.tensor([0.9, 0.1, 0.1]).expand(height, width, 3) * (inside > 0)[..., None]
    return torch.cat([colour, (inside * alpha).clamp_min(0.03)[..., None]], -1)


@pytest.mark.parametrize(("alpha", "size"), [(1.0, (64, 96)), (0.4, (64, 96)), (1.0, (200, 200))])
def test_a_thing_painted_alone_comes_to_its_place_whole_as_large_as_fits_and_in_the_middle(alpha, size):
    region = torch.zeros(80, 100)
    region[10:60, 20:80] = 1
    out = into_place(disc(*size, 40, 30, 12, alpha), region)
    assert bool((out[region == 0] == 0).all())
    opaque = out[..., 3] > alpha / 2
    rows, columns = opaque.any(1).nonzero()[:, 0], opaque.any(0).nonzero()[:, 0]
    assert 36 <= len(rows) <= 50
    assert abs(len(rows) - len(columns)) <= 1
    assert abs(float(rows.float().mean()) - 34.5) <= 1
    assert abs(float(columns.float().mean()) - 49.5) <= 1
    assert abs(float(out[35, 50, 3]) - alpha) < 0.01
    torch.testing.assert_close(out[35, 50, :3], torch.tensor([0.9, 0.1, 0.1]), atol=0.01, rtol=0)
    assert float((out[opaque][:, :3] - torch.tensor([0.9, 0.1, 0.1])).abs().max()) < 0.1, (
        "no colour bleeds in from outside"
    )


@pytest.mark.parametrize(("size", "box"), [((40, 20), (0, 10, 40, 30)), ((20, 40), (10, 0, 30, 40))])
def test_what_is_narrower_than_its_place_lies_in_the_middle_of_it_either_way(size, box):
    out = into_place(torch.ones(*reversed(size), 4), torch.ones(40, 40))
    wanted = torch.zeros(40, 40)
    wanted[box[1] : box[3], box[0] : box[2]] = 1
    torch.testing.assert_close(out[..., 3], wanted)


def test_a_soft_place_cuts_what_comes_to_it_and_an_empty_layer_stays_empty():
    region = torch.full((30, 30), 0.5)
    whole = into_place(torch.ones(16, 16, 4), region)
    torch.testing.assert_close(whole, torch.cat([torch.ones(30, 30, 3), region[..., None]], -1))
    assert bool((into_place(torch.zeros(16, 16, 4), region) == 0).all())


def test_the_place_of_a_thing_is_where_its_draft_differs_most():
    before, after, alpha = ball()
    noisy = after + 0.05 * torch.rand(after.shape, generator=torch.Generator().manual_seed(0))
    region = changed_region(before, noisy)
    iou = float((region * (alpha > 0.5)).sum() / ((region + (alpha > 0.5)) > 0).sum())
    assert iou > 0.75


def test_the_place_is_one_connected_part():
    before = torch.zeros(3, 64, 64)
    draft = before.clone()
    draft[:, 8:24, 8:24], draft[:, 40:48, 40:48] = 1.0, 0.9
    region = changed_region(before, draft)
    assert bool((region[10:22, 10:22] == 1).all())
    assert bool((region[38:50, 38:50] == 0).all())


def test_a_single_pixel_that_differs_is_no_place_for_a_thing():
    before = torch.zeros(3, 128, 128)
    draft = before.clone()
    draft[:, 80:110, 80:110], draft[:, 20, 20] = 0.5, 1.0
    region = changed_region(before, draft)
    assert bool((region[85:105, 85:105] == 1).all())
    assert not region[:60].any()


def test_every_share_finds_a_place_and_a_larger_one_a_smaller():
    before = torch.zeros(3, 64, 64)
    draft = before.clone()
    draft[:, 8:24, 8:24] = 1.0
    whole, half, some = (changed_region(before, draft, share) for share in (1.0, 0.5, 0.0))
    assert 1 <= float(whole.sum()) < float(half.sum()) < float(some.sum())
    assert bool((draft[0][whole == 1] == 1).all())
    assert bool((some[half == 1] == 1).all())


def test_a_draft_that_is_the_picture_is_named():
    with pytest.raises(LayeredError, match="draft is equal to the picture.*change more"):
        changed_region(torch.ones(3, 8, 8), torch.ones(3, 8, 8))


def test_a_stage_keeps_its_box_and_takes_its_picture_from_the_canvas():
    canvas = torch.rand(20, 30, 4)
    layer = with_stage(
        Layer("ball", x=25, y=-3, width=10, height=8, mask=torch.ones(4, 5), prompt="a ball"), canvas
    )
    assert (layer.x, layer.y, layer.width, layer.height) == (25, 0, 5, 5)
    assert torch.equal(layer.image, canvas[0:5, 25:30])
    assert layer.prompt == "a ball"
    assert layer.mask is None


def test_a_stage_may_paint_where_its_box_or_mask_is_whatever_its_picture():
    mask = torch.zeros(4, 4)
    mask[:, :2] = 1
    assert stage_region(Layer("a", torch.zeros(4, 4, 4), mask, x=1), 6, 4)[0].tolist() == [0, 1, 1, 0, 0, 0]
    with pytest.raises(LayeredError, match="layer 'a': place is 'x 9, y 0'"):
        stage_region(Layer("a", width=2, height=2, x=9), 6, 4)


def test_a_name_with_half_a_letter_has_a_seed_of_its_own():
    assert stage_seed(5, "a\ud800") != stage_seed(5, "a\ud801")
    assert 0 <= stage_seed(5, "a\ud800") < 2**63
