"""The two networks of latent transparency (Zhang and Agrawala 2024, arXiv 2402.17113), as released: the
encoder turns a picture's alpha into an offset of its latents, the decoder turns a decoded picture and its
latents into RGBA.

With their default widths both have the parameter names and shapes of the published files; other widths are
taken from a file's shapes. diffusers is not needed. Evidence: algorithms.md §2.4, §2.5 [V].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import LayeredError
from ..progress import pause

GROUPS = 4
"""Number of groups in every group norm."""

HEAD = 8
"""Channels of an attention head."""

LATENT_STAGE = 3
"""Index of the down block before which the latent is added, at an eighth of the picture's side."""

ATTENTION_STAGE = 4
"""Down blocks from this index on, and the up blocks of the same resolutions, have self-attention."""

FLUX_CHANNELS = 16
"""Latent channels of Flux. In files for Flux alpha is the last channel, in those for Stable Diffusion (4
latent channels) the first."""

ENCODER_WIDTHS = (32, 64, 128, 256)
DECODER_WIDTHS = (32, 32, 64, 128, 256, 512, 512)
"""Channels of the published networks, from the full side to an eighth (encoder) and to a 64th (decoder) of
it."""

CELL = 8
"""Side in pixels of the part of a picture that one latent cell stands for."""

AttendPixels = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""A host's attention: ``(q, k, v, heads)``, each ``[B, N, heads * HEAD]``, to ``[B, N, heads * HEAD]``."""


def attend_with_torch(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Compute attention with torch's own function, as :data:`AttendPixels`."""
    q, k, v = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class TransparentEncoder(nn.Module):
    """RGBA to the offset of its latents: nine 3x3 convolutions with SiLU between them.

    Args:
        widths: channels at the full side, a half, a quarter and an eighth of it.
        latent_channels: latent channels of the VAE: 4, or 16 for Flux.
    """

    def __init__(self, widths: Sequence[int] = ENCODER_WIDTHS, latent_channels: int = 4) -> None:
        super().__init__()
        self.widths, self.latent_channels = tuple(widths), latent_channels
        layers: list[nn.Module] = [nn.Conv2d(4, widths[0], 3, 1, 1), nn.SiLU()]
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [
                nn.Conv2d(before, before, 3, 1, 1),
                nn.SiLU(),
                nn.Conv2d(before, after, 3, 2, 1),
                nn.SiLU(),
            ]
        layers += [
            nn.Conv2d(widths[-1], widths[-1], 3, 1, 1),
            nn.SiLU(),
            _zero(nn.Conv2d(widths[-1], latent_channels, 3, 1, 1)),
        ]
        self.blocks = nn.Sequential(*layers)

    def forward(self, picture: Tensor) -> Tensor:
        """Compute the offset ``[B, C, H/8, W/8]``.

        Args:
            picture: ``[B, 4, H, W]``, 0..1, channels in the order of the file (:func:`to_file_order`),
                colours padded under alpha 0.
        """
        return self.blocks(picture)  # type: ignore[no-any-return]

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], name: str) -> TransparentEncoder:
        """Return an encoder with the widths and values of ``weights``, in float32 and evaluation mode.

        Raises:
            LayeredError: keys or shapes are not those of an encoder; the error names the file, ``name``.
        """
        weights = _part(weights, "encoder")
        widths = [
            _size(weights, f"blocks.{4 * i}.weight", 0, usual) for i, usual in enumerate(ENCODER_WIDTHS)
        ]
        latent_channels = _size(weights, "blocks.16.weight", 0, 4)
        return _load_network(lambda: cls(widths, latent_channels), weights, name, "encoder")


class TransparentDecoder(nn.Module):
    """A decoded picture and its latent to RGBA: the UNet called UNet1024 in the paper's code.

    Args:
        widths: channels of the seven blocks, from the full side to a 64th of it; multiples of 4, from the
            fifth on of 8.
        latent_channels: latent channels of the VAE: 4, or 16 for Flux.
    """

    STRIDE = 64
    """The sides of the picture must be multiples of this, pixels."""

    def __init__(self, widths: Sequence[int] = DECODER_WIDTHS, latent_channels: int = 4) -> None:
        super().__init__()
        self.widths, self.latent_channels = tuple(widths), latent_channels
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, 1, 1)
        self.latent_conv_in = _zero(nn.Conv2d(latent_channels, widths[LATENT_STAGE - 1], 1))
        self.down_blocks = nn.ModuleList(
            _DownBlock(widths[max(i - 1, 0)], width, i >= ATTENTION_STAGE, i < last)
            for i, width in enumerate(widths)
        )
        self.mid_block = _MidBlock(widths[-1])
        self.up_blocks = nn.ModuleList()
        before = widths[-1]
        for i in range(last, -1, -1):
            # The last resnet of a block gets the skip of the preceding down block.
            skips = (widths[i], widths[i], widths[max(i - 1, 0)])
            self.up_blocks.append(_UpBlock(before, widths[i], skips, i >= ATTENTION_STAGE, i > 0))
            before = widths[i]
        self.conv_norm_out = nn.GroupNorm(GROUPS, widths[0])
        self.conv_out = nn.Conv2d(widths[0], 4, 3, 1, 1)

    def forward(self, pixels: Tensor, latent: Tensor, attend: AttendPixels = attend_with_torch) -> Tensor:
        """Compute RGBA ``[B, 4, H, W]`` in the order of the file (:func:`from_file_order`), not clipped;
        colours are straight, padded under alpha 0.

        Args:
            pixels: the decoded picture, ``[B, 3, H, W]``, 0..1; sides are multiples of :data:`STRIDE`.
            latent: ``[B, C, H/8, W/8]`` in the VAE's space, as the VAE decodes it; zeros if there is none.
            attend: the host's attention.
        """
        x = self.conv_in(pixels)
        # Computed again when needed, from three channels: kept, it would be a fifth of the memory.
        skips: list[Skip] = [partial(self.conv_in, pixels)]
        for i, block in enumerate(self.down_blocks):
            if i == LATENT_STAGE:
                x = x + self.latent_conv_in(latent)
            x = block(x, skips, attend)
        # From here on only the stack refers to the tensors, so each is freed as soon as it is used.
        skips.append(self.mid_block(x, attend))
        del x
        for block in self.up_blocks:
            block(skips, attend)
        out: Tensor = self.conv_out(_norm_silu(_skip_tensor(skips.pop()), self.conv_norm_out, overwrite=True))
        return out

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], name: str) -> TransparentDecoder:
        """Return a decoder with the widths and values of ``weights``, in float32 and evaluation mode.

        Raises:
            LayeredError: keys or shapes are not those of a decoder; the error names the file, ``name``.
        """
        weights = _part(weights, "decoder")
        widths = [
            _size(weights, f"down_blocks.{i}.resnets.0.conv1.weight", 0, usual)
            for i, usual in enumerate(DECODER_WIDTHS)
        ]
        latent_channels = _size(weights, "latent_conv_in.weight", 1, 4)
        return _load_network(lambda: cls(widths, latent_channels), weights, name, "decoder")


def _zero(convolution: nn.Conv2d) -> nn.Conv2d:
    """Set all parameters of the convolution to 0, as at the start of training; return it."""
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution


Skip = Tensor | Callable[[], Tensor]
"""A skip connection from the down path to the up path: the tensor, or a function that computes it again."""


def _skip_tensor(skip: Skip) -> Tensor:
    return skip if isinstance(skip, Tensor) else skip()


def _norm_silu(x: Tensor, norm: nn.GroupNorm, overwrite: bool) -> Tensor:
    """Return ``silu(norm(x))``. With ``overwrite``, and without gradients, the result takes the memory of
    ``x``, which must not be used afterwards.

    One tensor at the full side of a 1024-pixel picture has 134 MB: such copies would be half of the memory of
    a decode.
    """
    if torch.is_grad_enabled() or not overwrite:
        return functional.silu(norm(x), inplace=not torch.is_grad_enabled())
    mean, variance = _group_statistics(x, norm.num_groups)
    scale = norm.weight.float().view(norm.num_groups, -1) * (variance + norm.eps).rsqrt()
    shift = norm.bias.float().view(norm.num_groups, -1) - scale * mean
    x.mul_(scale.view(*x.shape[:2], 1, 1).to(x.dtype)).add_(shift.view(*x.shape[:2], 1, 1).to(x.dtype))
    return functional.silu(x, inplace=True)


def _group_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Compute mean and variance of each group of channels of ``[B, C, H, W]``, each ``[B, G, 1]`` in float32.

    Pixels are processed in pieces that fit a processor's cache, each about its own mean (Chan, Golub and
    LeVeque 1979). This takes a quarter of the time of a whole group norm.
    """
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    pieces = torch.split(pixels, max(2**17 // x.shape[1], 1), 1)
    sizes = torch.tensor([p.shape[1] / pixels.shape[1] for p in pieces], device=x.device).view(-1, 1, 1)
    means, squares = [], []
    for piece in pieces:
        values = piece.float()
        means.append(values.mean(1))
        squares.append((values - means[-1][:, None]).square_().mean(1))
    shape = (len(pieces), x.shape[0], groups, -1)
    each, within = torch.stack(means).view(shape), torch.stack(squares).view(shape)
    mean = (each * sizes[..., None]).sum(0).mean(2, keepdim=True)
    variance = ((within + (each - mean).square()) * sizes[..., None]).sum(0).mean(2, keepdim=True)
    return mean, variance


class _Resnet(nn.Module):
    """A residual block: twice norm, SiLU and convolution, plus a shortcut."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, inside)
        self.conv1 = nn.Conv2d(inside, out, 3, 1, 1)
        self.norm2 = nn.GroupNorm(GROUPS, out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
        self.conv_shortcut = nn.Conv2d(inside, out, 1) if inside != out else None

    def forward(self, parts: list[Tensor]) -> Tensor:
        """Apply the block to the concatenation of ``parts``, each ``[B, C_i, H, W]``. The list is emptied, so
        that its tensors are freed as soon as they are used."""
        pause()
        joined = len(parts) > 1
        x = torch.cat(parts, 1) if joined else parts[0]
        parts.clear()
        kept = x if self.conv_shortcut is None else self.conv_shortcut(x)
        h = _norm_silu(x, self.norm1, overwrite=joined and kept is not x)
        del x
        h = self.conv1(h)
        pause()
        h = self.conv2(_norm_silu(h, self.norm2, overwrite=True))
        result: Tensor = h + kept if torch.is_grad_enabled() else h.add_(kept)
        return result


class _Attention(nn.Module):
    """Self-attention over the pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.group_norm = nn.GroupNorm(GROUPS, width)
        self.to_q, self.to_k, self.to_v = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, attend: AttendPixels) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)
        h = self.to_out[0](attend(self.to_q(h), self.to_k(h), self.to_v(h), self.heads))
        result: Tensor = x + h.transpose(1, 2).reshape(x.shape)
        return result


class _Downsample(nn.Module):
    """A convolution that halves the side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class _Upsample(nn.Module):
    """Doubles the side, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0))  # type: ignore[no-any-return]


class _DownBlock(nn.Module):
    """Two resnets, each followed by attention or not, then a downsampling."""

    def __init__(self, inside: int, out: int, attention: bool, downsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_Resnet(inside, out), _Resnet(out, out)])
        self.attentions = nn.ModuleList(_Attention(out) for _ in range(2 * attention))
        self.downsamplers = nn.ModuleList(_Downsample(out) for _ in range(downsample))

    def forward(self, x: Tensor, skips: list[Skip], attend: AttendPixels) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet([x])
            if len(self.attentions):
                x = self.attentions[i](x, attend)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x


class _MidBlock(nn.Module):
    """A resnet, attention, and a resnet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_Resnet(width, width), _Resnet(width, width)])
        self.attentions = nn.ModuleList([_Attention(width)])

    def forward(self, x: Tensor, attend: AttendPixels) -> Tensor:
        out: Tensor = self.resnets[1]([self.attentions[0](self.resnets[0]([x]), attend)])
        return out


class _UpBlock(nn.Module):
    """Three resnets, each on the block's input concatenated with a skip connection, then an upsampling."""

    def __init__(
        self, before: int, out: int, skips: tuple[int, int, int], attention: bool, upsample: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _Resnet(a + b, out) for a, b in zip((before, out, out), skips, strict=True)
        )
        self.attentions = nn.ModuleList(_Attention(out) for _ in range(3 * attention))
        self.upsamplers = nn.ModuleList(_Upsample(out) for _ in range(upsample))

    def forward(self, stack: list[Skip], attend: AttendPixels) -> None:
        """Apply the block to ``stack``: the skip connections, and on top the block's input, which is replaced
        by its output."""
        for i, resnet in enumerate(self.resnets):
            stack.append(resnet([_skip_tensor(stack.pop()), _skip_tensor(stack.pop())]))
            if len(self.attentions):
                stack.append(self.attentions[i](_skip_tensor(stack.pop()), attend))
        for upsampler in self.upsamplers:
            stack.append(upsampler(_skip_tensor(stack.pop())))


def to_file_order(rgba: Tensor, latent_channels: int) -> Tensor:
    """Reorder RGBA ``[B, 4, H, W]`` to the channel order of the files for a VAE with ``latent_channels``:
    alpha first, for Flux last."""
    return rgba if latent_channels == FLUX_CHANNELS else rgba.roll(1, 1)


def from_file_order(picture: Tensor, latent_channels: int) -> Tensor:
    """Reorder channels from the file's order to RGBA: the inverse of :func:`to_file_order`."""
    return picture if latent_channels == FLUX_CHANNELS else picture.roll(-1, 1)


_Network = TypeVar("_Network", TransparentEncoder, TransparentDecoder)


def _part(weights: Mapping[str, Tensor], part: str) -> Mapping[str, Tensor]:
    """Return the tensors of the encoder or decoder from a file that holds both and perhaps the VAE, as Flux's
    TransparentVAE does; from other files return all."""
    parts = ("encoder.", "decoder.", "sd_vae.")
    if not weights or not all(k.startswith(parts) for k in weights):
        return weights
    return {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")}


def over_mid_grey(picture: Tensor) -> Tensor:
    """Lay a picture ``[B, 3 or 4, H, W]`` in 0..1 over grey 0.5, as in the training of the published files;
    return ``[B, 3, H, W]``."""
    if picture.shape[1] == 3:
        return picture
    colour, alpha = picture[:, :3], picture[:, 3:]
    return 0.5 + (colour - 0.5) * alpha


def mismatch(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Say which keys of ``weights`` a network lacks, which it wants besides, and which have another shape; an
    empty string where they fit."""
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    kinds = {
        "missing keys": sorted(expected.keys() - weights.keys()),
        "unexpected keys": sorted(weights.keys() - expected.keys()),
        "wrong shapes": [
            f"{k} {list(weights[k].shape)} instead of {list(shape)}"
            for k, shape in expected.items()
            if k in weights and tuple(weights[k].shape) != shape
        ],
    }
    return (
        "; ".join(f"{kind}: {_listed(keys)}" for kind, keys in kinds.items()) if any(kinds.values()) else ""
    )


def _load_network(
    build: Callable[[], _Network], weights: Mapping[str, Tensor], name: str, what: str
) -> _Network:
    with torch.device("meta"):
        network = build()
    if found := mismatch(network, weights):
        raise LayeredError(
            f"model file {name!r} is not a transparent {what}. {found}. Choose a file "
            f"vae_transparent_{what}.safetensors"
        )
    network.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _size(weights: Mapping[str, Tensor], key: str, axis: int, usual: int) -> int:
    """Return a channel count of a convolution, or ``usual``, the published network's, if the file lacks
    it."""
    return int(weights[key].shape[axis]) if key in weights and weights[key].ndim == 4 else usual


def _listed(names: Sequence[str], most: int = 40) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
