"""RGBA to latents: padding, grey, offset."""

import pytest
import torch
from torch.nn import functional

from layered_core.errors import LayeredError
from layered_core.transparency.transparent_encode import (
    _area_resize,
    crop_to_cells,
    encode,
    pad_colours,
    with_alpha,
)
from layered_core.transparency.transparent_networks import TransparentEncoder, over_mid_grey


def picture(height=48, width=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rgba = torch.rand(2, 4, height, width, generator=generator)
    rgba[:, 3] = (rgba[:, 3] - 0.5).clamp(0, 1) * 2
    return rgba


def test_padding_keeps_opaque_colours_and_forgets_those_under_alpha_0():
    rgba = picture()
    rgba[:, 3, 10:20] = 1
    padded = pad_colours(rgba)
    torch.testing.assert_close(padded[:, :, 10:20], rgba[:, :3, 10:20], atol=1e-6, rtol=0)
    hidden = rgba.clone()
    hidden[:, :3] = torch.where(rgba[:, 3:] == 0, 0.123, rgba[:, :3])
    assert torch.equal(pad_colours(hidden), padded)


def test_padding_spreads_the_nearest_colour_outwards():
    rgba = torch.zeros(1, 4, 64, 64)
    rgba[:, :, 20:44, 8:24] = torch.tensor([1.0, 0, 0, 1]).view(1, 4, 1, 1)
    rgba[:, :, 20:44, 40:56] = torch.tensor([0.0, 0, 1, 1]).view(1, 4, 1, 1)
    padded = pad_colours(rgba)[0]
    assert padded[0, 32, 26] > 0.8 > 0.2 > padded[2, 32, 26]
    assert padded[2, 32, 37] > 0.8 > 0.2 > padded[0, 32, 37]
    torch.testing.assert_close(padded.sum(0), torch.ones(64, 64), atol=1e-4, rtol=0)


def test_padding_one_level_is_the_formula():
    """``f <- c + (1 - a) f``, starting from the mean at the top level, with sides that the ratio reduces to 1
    in one step."""
    rgba = picture(2, 2)
    alpha = rgba[:, 3:]
    colour = rgba[:, :3] * alpha
    mean = colour.mean((2, 3), keepdim=True) / alpha.mean((2, 3), keepdim=True).clamp_min(1e-8)
    top = colour.mean((2, 3), keepdim=True) + (1 - alpha.mean((2, 3), keepdim=True)) * mean
    torch.testing.assert_close(pad_colours(rgba), colour + (1 - alpha) * top)


def test_an_all_transparent_picture_pads_to_black_without_a_nan():
    assert not pad_colours(torch.cat([torch.rand(1, 3, 30, 50), torch.zeros(1, 1, 30, 50)], 1)).any()


@pytest.mark.parametrize("size", [(40, 30), (33, 17), (1, 25), (48, 1)])
def test_area_resize_keeps_the_mean_and_equals_pooling_where_that_is_exact(size):
    x = picture()
    torch.testing.assert_close(_area_resize(x, *size).mean((2, 3)), x.mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(_area_resize(x, 24, 10), functional.avg_pool2d(x, (2, 4)))


def test_latents_are_mean_plus_deviation_times_scaled_offset():
    torch.manual_seed(0)
    encoder = TransparentEncoder((4, 4, 4, 4)).requires_grad_(False)
    torch.nn.init.normal_(encoder.blocks[-1].weight)
    rgba, seen = picture(), []
    mean, deviation = torch.randn(2, 4, 6, 5), torch.rand(2, 4, 6, 5)

    def posterior(pixels):
        seen.append(pixels)
        return mean, deviation

    latents = encode(encoder, rgba, posterior, 300)
    padded = torch.cat([pad_colours(rgba), rgba[:, 3:]], 1)
    offset = encoder(padded[:, [3, 0, 1, 2]])
    assert offset.abs().mean() > 1e-3
    torch.testing.assert_close(latents, mean + deviation * 300 * offset)
    torch.testing.assert_close(seen[0], ((2 * padded[:, :3] - 1) * padded[:, 3:] + 1) / 2)
    assert torch.equal(encode(encoder, rgba, posterior, 0), mean)


def test_what_is_transparent_is_grey_for_the_vae():
    assert (over_mid_grey(torch.cat([torch.rand(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)], 1)) == 0.5).all()


def test_bad_sizes_and_vaes_of_another_family_are_refused():
    encoder = TransparentEncoder((4, 4, 4, 4))
    with pytest.raises(LayeredError, match="size is '41x48'; allowed: multiples of 8"):
        encode(encoder, picture(48, 41), lambda _: pytest.fail("encoded"))
    with pytest.raises(LayeredError, match="latent channels is 16; allowed: 4"):
        encode(encoder, picture(), lambda _: (torch.zeros(2, 16, 6, 5), torch.ones(2, 16, 6, 5)))
    assert crop_to_cells(picture(50, 47)).shape == (2, 4, 48, 40)
    assert torch.equal(crop_to_cells(picture(50, 47)), picture(50, 47)[:, :, 1:49, 3:43])


def test_the_encoder_is_the_published_ladder_of_convolutions():
    """Writes out nine convolutions with SiLU between them, and compares the strides, the order and the
    result."""
    torch.manual_seed(0)
    encoder, x = TransparentEncoder((4, 8, 12, 16)).requires_grad_(False), torch.rand(1, 4, 48, 40)
    torch.nn.init.normal_(encoder.blocks[-1].weight)
    weights, h = encoder.state_dict(), x
    for number, stride in zip(range(0, 18, 2), (1, 1, 2, 1, 2, 1, 2, 1, 1), strict=True):
        h = functional.conv2d(
            h, weights[f"blocks.{number}.weight"], weights[f"blocks.{number}.bias"], stride, 1
        )
        h = h if number == 16 else h * torch.sigmoid(h)
    torch.testing.assert_close(encoder(x), h, atol=1e-4, rtol=0)


def test_one_picture_with_several_masks_is_several_and_other_numbers_are_refused():
    one, three = torch.rand(1, 3, 16, 16), torch.rand(3, 3, 16, 16)
    masks = torch.rand(3, 16, 16)
    several = with_alpha(one, masks)
    assert torch.equal(several[:, 3], masks)
    assert torch.equal(several[:, :3], one.expand(3, -1, -1, -1))
    assert torch.equal(with_alpha(three, masks[:1])[:, 3], masks[:1].expand(3, -1, -1))
    with pytest.raises(LayeredError, match="mask: batch size is 2; allowed: 1 or 3"):
        with_alpha(three, masks[:2])


def test_a_picture_below_one_cell_is_refused_with_its_own_size():
    with pytest.raises(LayeredError, match="size is '5x9'; allowed: at least 8x8"):
        crop_to_cells(torch.rand(1, 4, 9, 5))
