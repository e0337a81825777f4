"""LayerDiffuse files that change a UNet's weights, read into one form from any of their key namings.

Three namings are known:

* Forge's: ``diffusion_model.<module>.weight::lora::0``, ``...::diff::0``;
* diffusers': whole differences under the names of ``UNet2DConditionModel``;
* LoRAs as most programs write them: ``<module>.lora_A.weight``, ``.lora.down.weight`` or
  ``.lora_down.weight``, under either kind of module name.

Sources: the loaders of Forge's extension, LayerDiffuse_DiffusersCLI and diffuser_layerdiffuse [V];
algorithms.md section 2.3. Whether diffuser_layerdiffuse's LoRA uses ``lora_A`` or ``lora.down`` is [?]: both
are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import LayeredError, invalid
from .layer_diffuse_files import LayerDiffuseMode, described, misfit
from .transparent_networks import CELL

CONV_IN = ("input_blocks.0.0.weight", "conv_in.weight")
"""The UNet's first convolution, in ldm's and in diffusers' names: the only weight to which a file may add
input channels."""

LATENT_CHANNELS = 4
"""Latent channels of Stable Diffusion 1.x and XL."""


_TYPED = re.compile(r"(?P<key>.+)::(?P<type>lora|diff)::(?P<index>\d)$")
_LORA = {
    ".lora_B.weight": "up", ".lora_A.weight": "down", ".lora.up.weight": "up", ".lora.down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".alpha": "alpha",
}  # fmt: skip
_FORGE_LORA = ("up", "down", "alpha", "mid")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.")


@dataclass(frozen=True)
class LowRank:
    """A LoRA of one weight: ``W + scale up @ down``."""

    up: Tensor
    """``[out, r]``; for a convolution ``[out, r, 1, 1]``."""
    down: Tensor
    """``[r, in]``; for a convolution ``[r, in, k, k]``."""
    alpha: float | None = None
    """scale = alpha / r. None: scale 1."""

    @property
    def difference(self) -> Tensor:
        """``scale up @ down``, a float32 matrix; for a convolution it is the flattened weight."""
        rank = self.down.shape[0]
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return product * (1.0 if self.alpha is None else self.alpha / rank)


@dataclass(frozen=True)
class Patches:
    """The changes that a file makes, under the host's own names of the UNet's weights."""

    lora: dict[str, LowRank] = field(default_factory=dict)
    """Low-rank changes."""
    diff: dict[str, Tensor] = field(default_factory=dict)
    """Whole differences, each with the shape of its weight."""
    concat: Tensor | None = None
    """The first convolution's weights for added input channels, ``[C, 4 n, 3, 3]`` for n pictures; the base
    model's weights are 0 there. None: no channels are added."""

    @property
    def pictures(self) -> int:
        """Number of encoded pictures that are concatenated to the noisy latents."""
        return 0 if self.concat is None else self.concat.shape[1] // LATENT_CHANNELS


def read_patches(
    weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], blocks: int, name: str, model: str
) -> Patches:
    """Return the patches of a file, each checked against the weight that it changes.

    Args:
        weights: the tensors of the file.
        shapes: shapes of the UNet's weights, by ldm names without prefix
            (``input_blocks.4.1.proj_in.weight``) or by diffusers' names.
        blocks: number of residual blocks in each level of the UNet.
        name: name of the file, for errors.
        model: name of the kind of model, for errors.

    Raises:
        LayeredError: a tensor belongs to no weight of this UNet or has another shape, or half of a LoRA is
            missing.
    """
    places = {diffusers_name(k, blocks): k for k in shapes}
    halves: dict[str, dict[str, Tensor]] = {}
    diff: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in weights.items():
        own, part = _split(key)
        target = places.get(diffusers_name(own, blocks))
        if target is None or part == "mid":
            unknown.append(key)
        elif part == "diff":
            diff[target] = tensor
        else:
            halves.setdefault(target, {})[part] = tensor
    if unknown:
        raise misfit(name, model, f"it has no {_first_names(unknown)}")
    incomplete = [k for k, v in halves.items() if "up" not in v or "down" not in v]
    if incomplete:
        raise LayeredError(
            f"{described(name)} lacks one half of the LoRA of {_first_names(incomplete)}. Download it again"
        )
    lora = {
        k: LowRank(v["up"], v["down"], float(v["alpha"]) if "alpha" in v else None) for k, v in halves.items()
    }
    concat = None
    for key in diff.keys() & set(CONV_IN):
        base = shapes[key][1]
        if diff[key].shape[1] > base and diff[key].shape[1] % LATENT_CHANNELS == 0:
            diff[key], concat = diff[key][:, :base].clone(), diff[key][:, base:].clone()
    wrong = [
        f"{k} {list(v.shape)} for {list(shapes[k])}" for k, v in diff.items() if tuple(v.shape) != shapes[k]
    ]
    wrong += [
        f"{k} {list(v.up.shape)} x {list(v.down.shape)} for {list(shapes[k])}"
        for k, v in lora.items()
        if not _fits(v, shapes[k])
    ]
    if wrong:
        raise misfit(name, model, f"weights have another shape there: {_first_names(wrong)}")
    return Patches(lora, diff, concat)


def fitting_patches(
    weights: Mapping[str, Tensor],
    mode: LayerDiffuseMode,
    shapes: Mapping[str, tuple[int, ...]],
    blocks: int,
    name: str,
    model: str,
) -> Patches:
    """Read the patches of a file and check them against a mode and a UNet: what every host does first.

    Args:
        weights: of the file.
        mode: what is to be made.
        shapes, blocks, name, model: as :func:`read_patches`.

    Raises:
        LayeredError: the file is for another model or mode.
    """
    patches = read_patches(weights, shapes, blocks, name, model)
    check_pictures(patches, mode, name)
    return patches


def check_pictures(patches: Patches, mode: LayerDiffuseMode, name: str) -> None:
    """Raise :class:`LayeredError` unless a file takes as many pictures as a mode takes, and the mode makes
    one picture, as these files do."""
    fix = "Choose the mode that the file is for"
    if patches.pictures != len(mode.takes):
        raise invalid(
            f"{described(name)}: number of pictures that it takes",
            patches.pictures,
            f"{len(mode.takes)} in the mode {mode.name!r}",
            fix,
        )
    if len(mode.kinds) != 1:
        raise invalid(
            f"{described(name)}: number of pictures that it makes",
            1,
            f"{len(mode.kinds)} in the mode {mode.name!r}",
            fix,
        )


def patched_weight(weight: Tensor, difference: Tensor | LowRank, strength: float) -> Tensor:
    """Return ``W + strength difference``, summed in float32, in the dtype of ``weight``."""
    change = difference.difference if isinstance(difference, LowRank) else difference
    return (weight.float() + strength * change.to(weight.device).float().reshape(weight.shape)).to(
        weight.dtype
    )


def concat_term(latents: Tensor, weight: Tensor, strength: float = 1.0) -> Tensor:
    """Compute the term that added input channels contribute to a UNet's first convolution, ``[B, C, h, w]``:
    ``conv(cat[x, c]) = conv(x) + concat_term(c)``.

    It is the same for cond and uncond and at every noise level.

    Args:
        latents: the encoded pictures, concatenated along the channels, ``[B, 4 n, h, w]``, in the model's
            scale.
        weight: :attr:`Patches.concat`.
        strength: factor on the term. Neutral: 0.
    """
    return strength * functional.conv2d(latents.to(weight), weight, padding=weight.shape[-1] // 2)


def with_pictures(out: Tensor, term: Tensor) -> Tensor:
    """Add :func:`concat_term` ``[B, C, h, w]`` to the output of a first convolution ``[R, C, h, w]``; the
    term's rows are repeated in order.

    Raises:
        LayeredError: the sizes differ, because only a part of the picture is sampled.
    """
    if out.shape[2:] != term.shape[2:]:
        got, allowed = (f"{t.shape[3]}x{t.shape[2]}" for t in (out, term))
        raise invalid(
            "given pictures: latent's size",
            got,
            allowed,
            "Sample the whole picture at once: no conditioning areas, no tiles",
        )
    return out + term.to(out).repeat(-(-len(out) // len(term)), 1, 1, 1)[: len(out)]


def check_picture(what: str, size: tuple[int, int], latent: tuple[int, int]) -> None:
    """Raise :class:`LayeredError` unless a picture that a file takes has the size that is sampled.

    Args:
        what: name of the picture in the error.
        size: height and width of the picture, pixels.
        latent: height and width of the latent that is sampled, cells.
    """
    height, width = (CELL * n for n in latent)
    if size != (height, width):
        raise invalid(
            f"{what}: size of the picture", f"{size[1]}x{size[0]}",
            f"{width}x{height}, the size that is sampled",
            "Scale or crop it, or sample at its size. For a second pass at a higher resolution give this "
            "node the enlarged picture too",
        )  # fmt: skip


def diffusers_name(key: str, blocks: int) -> str:
    """Return the name in diffusers' ``UNet2DConditionModel`` of a weight with an ldm name; other names are
    returned unchanged.

    Args:
        key: name of the weight without prefix.
        blocks: number of residual blocks in each level.
    """
    for ldm, other in _WHOLE.items():
        if key.startswith(ldm):
            return other + key[len(ldm) :]
    if found := _MIDDLE.match(key):
        return _inner(
            ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")[int(found[1])], found[2]
        )
    if not (found := _SIDE.match(key)):
        return key
    side, number, layer, rest = found[1], int(found[2]), int(found[3]), found[4]
    level, index = divmod(number - (side == "input"), blocks + 1)
    module = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
    if rest.startswith("op."):
        return f"{module}.downsamplers.0.conv{rest[2:]}"
    if rest.startswith("conv."):
        return f"{module}.upsamplers.0.{rest}"
    return _inner(f"{module}.{'attentions' if layer else 'resnets'}.{index}", rest)


_MIDDLE = re.compile(r"middle_block\.([012])\.(.+)")
_SIDE = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
_WHOLE = {
    "input_blocks.0.0.": "conv_in.", "out.0.": "conv_norm_out.", "out.2.": "conv_out.",
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.", "label_emb.0.0.": "add_embedding.linear_1.",
    "label_emb.0.2.": "add_embedding.linear_2.",
}  # fmt: skip
_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "out_layers.0": "norm2", "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}  # fmt: skip


def _inner(module: str, rest: str) -> str:
    """Return the name of a weight inside a residual or transformer block; only those of residual blocks
    differ."""
    for ldm, other in _RESNET.items():
        if rest.startswith(f"{ldm}."):
            return f"{module}.{other}{rest[len(ldm) :]}"
    return f"{module}.{rest}"


def transformer_blocks(names: Iterable[str]) -> list[str]:
    """Return the modules ``...transformer_blocks.i`` of a UNet, found in its weight names, in the order of
    the published
    files: input, output, middle."""
    found = {m[1] for n in names if (m := re.match(r"(.+\.transformer_blocks\.\d+)\.", n))}
    order = ("i", "d", "o", "u", "m")  # input_ or down_, output_ or up_, middle_ or mid_block
    return sorted(found, key=lambda n: (order.index(n[0]), [int(x) for x in re.findall(r"\d+", n)]))


def _split(key: str) -> tuple[str, str]:
    """Split a file's key into the weight's name without prefix and the part of the change: diff, up, down,
    alpha or mid."""
    part = "diff"
    if typed := _TYPED.match(key):
        key = typed["key"]
        part = "diff" if typed["type"] == "diff" else _FORGE_LORA[min(int(typed["index"]), 3)]
    else:
        for ending, kind in _LORA.items():
            if key.endswith(ending):
                key, part = key[: -len(ending)] + ".weight", kind
                break
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key, part


def _fits(lora: LowRank, shape: tuple[int, ...]) -> bool:
    rank = lora.down.shape[0]
    inside = torch.Size(shape[1:]).numel()
    return (
        lora.up.shape[0] == shape[0]
        and lora.up.flatten(1).shape[1] == rank
        and lora.down.flatten(1).shape[1] == inside
    )


def _first_names(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
