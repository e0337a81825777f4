"""Crops: their place, the size at which they are sampled, and that pasting back is exact if nothing is
scaled."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layered_core.errors import LayeredError
from layered_core.painting.cropping import plan_crop


def box_mask(height, width, box):
    mask = torch.zeros(height, width)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


@given(st.data())
def test_a_crop_holds_its_region_lies_in_the_picture_and_pads_to_the_unit(data):
    height, width = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    unit, side, context = (
        data.draw(st.sampled_from([1, 8, 16, 32])),
        data.draw(st.sampled_from([0, 64, 128])),
        data.draw(st.floats(0, 4)),
    )
    crop = plan_crop(
        box_mask(height, width, (left, top, right, bottom)), context=context, side=side, unit=unit
    )
    assert 0 <= crop.left <= left < right <= crop.right <= width
    assert 0 <= crop.top <= top < bottom <= crop.bottom <= height
    assert crop.padded_width % unit == 0 <= crop.padded_width - crop.width < unit
    assert crop.padded_height % unit == 0 <= crop.padded_height - crop.height < unit
    picture = torch.rand(3, height, width)
    part = crop.cut(picture)
    assert part.shape == (3, crop.padded_height, crop.padded_width)
    back = crop.put_back(part, picture)
    assert back.shape == picture.shape
    if (crop.width, crop.height) == (crop.right - crop.left, crop.bottom - crop.top):
        assert torch.equal(back, picture)


def test_without_a_side_the_whole_picture_is_taken_as_it_is():
    crop = plan_crop(box_mask(67, 101, (5, 5, 9, 9)), side=0, unit=8)
    assert (crop.left, crop.top, crop.right, crop.bottom) == (0, 0, 101, 67)
    assert (crop.width, crop.height, crop.padded_width, crop.padded_height) == (101, 67, 104, 72)


def test_context_is_a_share_of_the_longer_side_on_every_side():
    crop = plan_crop(box_mask(400, 400, (100, 100, 140, 120)), context=0.5, side=1, unit=1)
    assert (crop.left, crop.right, crop.top, crop.bottom) == (80, 160, 80, 140)


def test_a_small_region_is_scaled_up_to_the_models_area_and_a_large_one_keeps_its_scale():
    small = plan_crop(box_mask(512, 512, (100, 100, 164, 164)), context=0.5, side=512, unit=8)
    assert (small.right - small.left, small.width, small.height) == (128, 512, 512)
    large = plan_crop(box_mask(2048, 2048, (100, 100, 1000, 1000)), context=0.5, side=512, unit=8)
    assert large.width == large.right - large.left == 1800


def test_a_thin_strip_gets_more_surroundings():
    crop = plan_crop(box_mask(400, 400, (0, 200, 400, 202)), context=0.0, side=512)
    assert crop.bottom - crop.top == 200


def test_its_shorter_side_is_at_least_half_of_the_longer_one_with_its_surroundings():
    crop = plan_crop(box_mask(400, 400, (150, 200, 250, 202)), context=0.25, side=1)
    assert (crop.right - crop.left, crop.bottom - crop.top) == (150, 76)


def test_an_oblong_region_is_scaled_to_the_models_area_and_keeps_its_aspect():
    crop = plan_crop(box_mask(400, 400, (100, 100, 240, 180)), context=0.0, side=192)
    assert crop.width * crop.height == pytest.approx(192 * 192, rel=0.01)
    assert crop.width / crop.height == pytest.approx(140 / 80, rel=0.01)


def test_a_part_put_back_smaller_stays_within_what_a_picture_may_hold():
    crop = plan_crop(box_mask(64, 64, (20, 20, 40, 40)), context=0.0, side=128)
    part = torch.zeros(3, crop.padded_height, crop.padded_width)
    part[:, :, part.shape[2] // 2 :] = 1
    back = crop.put_back(part, torch.zeros(3, 64, 64))
    assert (float(back.min()), float(back.max())) == (0, 1)


def test_at_the_edge_a_crop_moves_inwards_before_it_is_cut():
    crop = plan_crop(box_mask(400, 400, (0, 0, 40, 40)), context=0.5, side=1)
    assert (crop.left, crop.right, crop.top, crop.bottom) == (0, 80, 0, 80)


def test_a_scaled_part_comes_back_as_it_was_up_to_resampling():
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    picture = (torch.stack([rows, columns, rows + columns]) / 15).sin() * 0.4 + 0.5
    crop = plan_crop(box_mask(96, 96, (30, 30, 60, 60)), context=0.5, side=256)
    assert crop.width > 3 * (crop.right - crop.left)
    torch.testing.assert_close(crop.put_back(crop.cut(picture), picture), picture, atol=0.01, rtol=0)


def test_masks_of_the_picture_at_any_size_are_cut_alike():
    crop = plan_crop(box_mask(160, 160, (48, 64, 80, 96)), context=0.5, side=128)
    assert (crop.left, crop.top, crop.right, crop.bottom, crop.width) == (32, 48, 96, 112, 128)
    for scale in (1, 2):
        mask = box_mask(160 * scale, 160 * scale, (0, 0, 64 * scale, 160 * scale))
        part = crop.cut_scaled(mask, 160, 160)
        assert part.shape == (128, 128)
        assert float(part[:, :62].min()) == 1  # the border at 64 lies at (64 - 32) * 2 in the cut-out
        assert float(part[:, 66:].max()) == 0


def test_a_mask_of_one_pixel_is_cut_too():
    crop = plan_crop(box_mask(160, 160, (48, 64, 80, 96)), context=0.5, side=128)
    assert torch.equal(crop.cut_scaled(torch.full((2, 1, 1), 0.5), 160, 160), torch.full((2, 128, 128), 0.5))


def test_a_box_is_cut_and_scaled_to_pixels_of_the_cut_out():
    crop = plan_crop(box_mask(160, 160, (48, 64, 80, 96)), context=0.5, side=128)
    assert crop.place((40, 56, 48, 64)) == (16, 16, 32, 32)
    assert crop.place((0, 0, 160, 64)) == (0, 0, 128, 32)
    assert crop.place((96, 0, 160, 160)) is None


def test_a_crop_is_whole_if_nothing_is_cut_or_scaled():
    whole = plan_crop(torch.ones(67, 101), unit=8)
    assert whole.is_whole(101, 67)
    assert not whole.is_whole(104, 72)
    assert not plan_crop(torch.ones(64, 64), side=128).is_whole(64, 64)
    assert not plan_crop(box_mask(160, 160, (48, 64, 80, 96)), side=64).is_whole(160, 160)


def test_a_mask_that_touches_no_pixel_is_refused():
    with pytest.raises(LayeredError, match="mask is 0 everywhere on the picture.*move the mask"):
        plan_crop(torch.zeros(8, 8), side=64)


def test_a_part_of_another_size_is_refused():
    crop = plan_crop(box_mask(64, 64, (8, 8, 16, 16)))
    with pytest.raises(LayeredError, match="size of the sampled picture is '32x32'; allowed: 64x64"):
        crop.put_back(torch.zeros(3, 32, 32), torch.zeros(3, 64, 64))


@pytest.mark.parametrize(
    "values", [{"context": -1.0}, {"context": float("nan")}, {"side": -8}, {"side": 100_000}]
)
def test_numbers_out_of_range_are_named(values):
    with pytest.raises(LayeredError, match="allowed"):
        plan_crop(torch.ones(8, 8), **values)
