"""The transparent decoder built from diffusers' blocks after the published architecture: the reference that
ours must equal and is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block, get_up_block
from torch import Tensor, nn

from layered_core.transparency.transparent_networks import (
    ATTENTION_STAGE,
    DECODER_WIDTHS,
    GROUPS,
    HEAD,
    LATENT_STAGE,
    TransparentDecoder,
)

_SHARED = {
    "temb_channels": None,
    "resnet_eps": 1e-5,
    "resnet_act_fn": "silu",
    "resnet_groups": GROUPS,
    "attention_head_dim": HEAD,
}


class ReferenceDecoder(nn.Module):
    """The reference of :class:`layered_core.transparency.transparent_networks.TransparentDecoder`, with the
    same parameters, arguments and result."""

    def __init__(self, widths: Sequence[int] = DECODER_WIDTHS, latent_channels: int = 4) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.latent_conv_in = nn.Conv2d(latent_channels, widths[LATENT_STAGE - 1], 1)
        self.down_blocks = nn.ModuleList(
            get_down_block(
                "AttnDownBlock2D" if i >= ATTENTION_STAGE else "DownBlock2D", num_layers=2,
                in_channels=widths[max(i - 1, 0)], out_channels=width,
                add_downsample=i < last, downsample_padding=1, downsample_type="conv" if i < last else None,
                **_SHARED,
            )
            for i, width in enumerate(widths)
        )  # fmt: skip
        self.mid_block = UNetMidBlock2D(
            in_channels=widths[-1],
            temb_channels=None,
            resnet_eps=1e-5,
            resnet_act_fn="silu",
            resnet_groups=GROUPS,
            attention_head_dim=HEAD,
        )
        self.up_blocks = nn.ModuleList()
        before = widths[-1]
        for i in range(last, -1, -1):
            self.up_blocks.append(
                get_up_block(
                    "AttnUpBlock2D" if i >= ATTENTION_STAGE else "UpBlock2D", num_layers=3,
                    in_channels=widths[max(i - 1, 0)],
                    out_channels=widths[i], prev_output_channel=before, add_upsample=i > 0,
                    upsample_type="conv" if i > 0 else None, **_SHARED,
                )
            )  # fmt: skip
            before = widths[i]
        self.conv_norm_out = nn.GroupNorm(GROUPS, widths[0], eps=1e-5)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], 4, 3, padding=1)

    def forward(self, pixels: Tensor, latent: Tensor) -> Tensor:
        """Return ``[B, 4, H, W]``, alpha and colours in the file's order, not clipped."""
        x = self.conv_in(pixels)
        skips: tuple[Tensor, ...] = (x,)
        for i, block in enumerate(self.down_blocks):
            if i == LATENT_STAGE:
                x = x + self.latent_conv_in(latent)
            x, left = block(x, None)
            skips += left
        x = self.mid_block(x, None)
        for block in self.up_blocks:
            count = len(block.resnets)
            x = block(x, skips[-count:], None)
            skips = skips[:-count]
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


def one_pass(decoder: nn.Module, pixels: Tensor, latent: Tensor) -> Tensor:
    """Decode in one pass and clip, ``[B, 4, H, W]``."""
    return decoder(pixels, latent).clip(0, 1)


def median_of_eight(decoder: nn.Module, pixels: Tensor, latent: Tensor) -> Tensor:
    """Decode in eight passes over flips and quarter turns, clip and turn back, and return the lower median,
    ``[B, 4, H, W]``."""
    results = []
    for flip in (False, True):
        for turns in range(4):
            a, b = (t.flip(3) if flip else t for t in (pixels, latent))
            out = decoder(a.rot90(turns, (2, 3)), b.rot90(turns, (2, 3))).clip(0, 1)
            out = out.rot90(-turns, (2, 3))
            results.append(out.flip(3) if flip else out)
    return torch.stack(results).median(0).values


def random_pair(
    widths: Sequence[int] = DECODER_WIDTHS, latent_channels: int = 4, seed: int = 0
) -> tuple[TransparentDecoder, ReferenceDecoder]:
    """Return our decoder and the reference with the same random weights, all of which affect the result, and
    with most results in 0..1."""
    torch.manual_seed(seed)
    ours = TransparentDecoder(widths, latent_channels).eval().requires_grad_(False)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.ndim == 1 else 1.4 / parameter[0].numel() ** 0.5)
    ours.conv_out.bias.fill_(0.5)
    reference = ReferenceDecoder(widths, latent_channels).eval().requires_grad_(False)
    reference.load_state_dict(ours.state_dict(), assign=True)
    return ours, reference
