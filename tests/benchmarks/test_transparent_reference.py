"""The transparent decoder equals the same network built from diffusers' blocks."""

import pytest
import torch

from benchmarks.transparent_reference import median_of_eight, random_pair
from layered_core.transparency.transparent_decode import decode
from layered_core.transparency.transparent_networks import DECODER_WIDTHS, from_file_order


@pytest.mark.parametrize(
    ("widths", "latent_channels"),
    [((16, 24, 32, 48, 64, 64, 64), 4), ((8, 8, 16, 8, 24, 16, 32), 16), (DECODER_WIDTHS, 4)],
)
def test_decoder_equals_the_reference(widths, latent_channels):
    ours, reference = random_pair(widths, latent_channels)
    picture, latent = torch.rand(1, 3, 128, 64), torch.randn(1, latent_channels, 16, 8)
    with torch.no_grad():
        expected = reference(picture, latent)
        assert expected.std() > 0.02
        assert (expected - reference(picture, latent * 0)).abs().max() > 1e-3
        torch.testing.assert_close(ours(picture, latent), expected, atol=1e-4, rtol=0)


def test_eight_augmentations_equal_the_reference():
    ours, reference = random_pair((16, 16, 16, 16, 32, 32, 32), 4)
    picture, latent = torch.rand(2, 3, 128, 192), torch.randn(2, 4, 16, 24)
    with torch.no_grad():
        expected = from_file_order(median_of_eight(reference, picture, latent), 4)
        torch.testing.assert_close(
            decode(ours, picture, latent, augmentations=8), expected, atol=1e-4, rtol=0
        )
        assert (expected - from_file_order(reference(picture, latent).clip(0, 1), 4)).abs().max() > 0.01
