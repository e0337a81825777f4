"""The networks: names and shapes of the published files, files of other networks, reused memory."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from layered_core.errors import LayeredError
from layered_core.transparency.transparent_networks import (
    TransparentDecoder,
    TransparentEncoder,
    _group_statistics,
    from_file_order,
    to_file_order,
)

KEYS = json.loads((Path(__file__).parents[2] / "data" / "transparent_autoencoder_keys.json").read_text())
SMALL = (8, 8, 8, 8, 16, 16, 16)


def meta(keys: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Return tensors of the published names and shapes that take no memory."""
    return {k: torch.empty(shape, dtype=torch.float16, device="meta") for k, shape in keys.items()}


def random_decoder(widths=SMALL, latent_channels=4, seed=0) -> TransparentDecoder:
    """Return a decoder all of whose parameters affect the output, most of which lies in 0..1."""
    torch.manual_seed(seed)
    decoder = TransparentDecoder(widths, latent_channels).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.ndim == 1 else 1.4 / parameter[0].numel() ** 0.5)
    decoder.conv_out.bias.fill_(0.5)
    return decoder


@pytest.mark.parametrize(
    ("part", "network"), [("decoder", TransparentDecoder), ("encoder", TransparentEncoder)]
)
def test_full_width_has_exactly_the_published_keys_and_shapes(part, network):
    with torch.device("meta"):
        own = {k: list(v.shape) for k, v in network().state_dict().items()}
    assert own == KEYS[part]
    assert (
        sum(v.numel() for v in network.from_weights(meta(KEYS[part]), "published").parameters())
        == {"decoder": 104_104_804, "encoder": 1_181_764}[part]
    )


@pytest.mark.parametrize("channels", [4, 16])
def test_widths_and_latent_channels_are_read_from_the_file(channels):
    decoder = random_decoder((8, 12, 16, 8, 24, 16, 32), channels)
    again = TransparentDecoder.from_weights({k: v.half() for k, v in decoder.state_dict().items()}, "x")
    assert (again.widths, again.latent_channels) == ((8, 12, 16, 8, 24, 16, 32), channels)
    encoder = TransparentEncoder((4, 8, 12, 16), channels)
    again = TransparentEncoder.from_weights(encoder.state_dict(), "x")
    assert (again.widths, again.latent_channels) == ((4, 8, 12, 16), channels)


def test_loaded_weights_are_the_files_in_single_precision():
    decoder = random_decoder()
    again = TransparentDecoder.from_weights({k: v.half() for k, v in decoder.state_dict().items()}, "x")
    for key, value in again.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, decoder.state_dict()[key].half().float()), key


def test_missing_unexpected_and_misshapen_tensors_are_all_named():
    weights = meta(KEYS["decoder"])
    del weights["mid_block.attentions.0.to_q.bias"], weights["latent_conv_in.weight"]
    weights["surplus.weight"] = torch.zeros(1)
    weights["conv_out.bias"] = torch.zeros(3)
    with pytest.raises(LayeredError) as error:
        TransparentDecoder.from_weights(weights, "broken.safetensors")
    for part in (
        "'broken.safetensors'",
        "latent_conv_in.weight, mid_block.attentions.0.to_q.bias",
        "unexpected keys: surplus.weight",
        "conv_out.bias [3] instead of [4]",
    ):
        assert part in str(error.value)


def test_an_encoder_is_no_decoder():
    with pytest.raises(
        LayeredError, match=r"is not a transparent decoder.*and 498 more.*unexpected keys: blocks\.0\.bias"
    ):
        TransparentDecoder.from_weights(meta(KEYS["encoder"]), "vae_transparent_encoder.safetensors")
    with pytest.raises(LayeredError, match="is not a transparent encoder"):
        TransparentEncoder.from_weights(meta(KEYS["decoder"]), "vae_transparent_decoder.safetensors")


def test_alpha_is_first_in_files_of_stable_diffusion_and_last_in_those_of_flux():
    rgba = torch.arange(4.0).view(1, 4, 1, 1)
    assert to_file_order(rgba, 4).flatten().tolist() == [3, 0, 1, 2]
    assert to_file_order(rgba, 16).flatten().tolist() == [0, 1, 2, 3]
    for channels in (4, 16):
        assert torch.equal(from_file_order(to_file_order(rgba, channels), channels), rgba)


def test_new_networks_start_without_the_latent_and_without_an_offset():
    torch.manual_seed(0)
    decoder, picture = TransparentDecoder(SMALL), torch.rand(1, 3, 64, 64)
    assert torch.equal(decoder(picture, torch.randn(1, 4, 8, 8)), decoder(picture, torch.zeros(1, 4, 8, 8)))
    assert not TransparentEncoder((4, 4, 4, 4))(torch.rand(1, 4, 64, 64)).any()


def test_memory_used_again_changes_no_value():
    decoder = random_decoder((8, 12, 16, 8, 24, 16, 32))
    picture, latent = torch.rand(2, 3, 64, 128), torch.randn(2, 4, 8, 16)
    with torch.enable_grad():
        plain = decoder(picture, latent)
    with torch.no_grad():
        lean = decoder(picture, latent)
        last = decoder(picture.contiguous(memory_format=torch.channels_last), latent)
    assert plain.std() > 0.01
    torch.testing.assert_close(lean, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_group_statistics_hold_where_the_mean_is_far_from_zero(dtype):
    torch.manual_seed(0)
    x = (torch.randn(2, 12, 130, 257) + 30 * torch.randn(2, 12, 1, 1)).to(dtype)
    mean, variance = _group_statistics(x, 4)
    expected_variance, expected_mean = torch.var_mean(x.double().view(2, 4, -1), -1, correction=0)
    torch.testing.assert_close(mean[..., 0].double(), expected_mean, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(variance[..., 0].double(), expected_variance, atol=1e-4, rtol=1e-5)


def test_attention_of_the_host_is_used_for_every_attention():
    decoder, calls = random_decoder(), []

    def attend(q, k, v, heads):
        calls.append((q.shape, heads))
        return torch.zeros_like(q)

    picture, latent = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        result = decoder(picture, latent, attend)
        assert len(calls) == 3 * 2 + 1 + 3 * 3
        assert calls[0] == ((1, 16, 16), 2)
        assert not torch.equal(result, decoder(picture, latent))


def test_a_file_that_holds_both_and_the_vae_gives_each_its_own():
    decoder, encoder = random_decoder(latent_channels=16), TransparentEncoder((4, 8, 12, 16), 16)
    whole = {f"decoder.{k}": v for k, v in decoder.state_dict().items()} | {
        f"encoder.{k}": v for k, v in encoder.state_dict().items()
    }
    whole["sd_vae.quant_conv.weight"] = torch.zeros(1)
    assert torch.equal(
        TransparentDecoder.from_weights(whole, "TransparentVAE.safetensors").conv_in.weight,
        decoder.conv_in.weight,
    )
    assert torch.equal(
        TransparentEncoder.from_weights(whole, "TransparentVAE.safetensors").blocks[0].weight,
        encoder.blocks[0].weight,
    )
    del whole["decoder.conv_in.weight"]
    with pytest.raises(LayeredError, match=r"missing keys: conv_in\.weight"):
        TransparentDecoder.from_weights(whole, "TransparentVAE.safetensors")
