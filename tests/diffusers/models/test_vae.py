"""Encoding and decoding with both kinds of VAE, and with SDXL's, which overflows in half precision."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from layered_diffusers.models import vae
from layered_diffusers.models.loading import STORYBOOK


def model(half=False, **config):
    torch.manual_seed(0)
    network = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
                            norm_num_groups=4, sample_size=16, scaling_factor=0.5, **config)  # fmt: skip
    return SimpleNamespace(vae=network.half() if half else network, unet=SimpleNamespace(dtype=torch.float32))


def test_latents_are_the_mean_in_the_unets_scale():
    here, pictures = model(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = 0.5 * here.vae.encode(pictures * 2 - 1).latent_dist.mean
    for _ in range(2):
        torch.testing.assert_close(vae.encode(here, pictures), expected)
    back = vae.decode(here, expected)
    assert back.shape == (2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(back, (here.vae.decode(expected * 2).sample / 2 + 0.5).clamp(0, 1))


def test_the_storybooks_vae_gives_a_picture_back():
    here = SimpleNamespace(
        vae=AutoencoderTiny.from_pretrained(STORYBOOK / "vae").float(),
        unet=SimpleNamespace(dtype=torch.float32),
    )
    picture = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    assert (vae.decode(here, vae.encode(here, picture)) - picture).abs().mean() < 0.1


@pytest.mark.parametrize("fails", [False, True])
def test_a_vae_that_overflows_in_half_precision_works_in_single_and_is_half_again_afterwards(fails):
    here, seen = model(half=True, force_upcast=True), []

    def look(module, arguments):
        seen.append(arguments[0].dtype)
        if fails:
            raise RuntimeError("stopped")

    here.vae.decoder.register_forward_pre_hook(look)
    if fails:
        with pytest.raises(RuntimeError, match="stopped"):
            vae.decode(here, torch.randn(1, 4, 8, 8))
    else:
        latents = torch.randn(1, 4, 8, 8)
        decoded = vae.decode(here, latents)
        with torch.no_grad():
            single = copy.deepcopy(here.vae).float().decode(latents * 2).sample
        torch.testing.assert_close(decoded, (single / 2 + 0.5).clamp(0, 1))
    assert set(seen) == {torch.float32}
    assert here.vae.dtype == torch.float16
