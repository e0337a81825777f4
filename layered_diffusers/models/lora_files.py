"""LoRA files of kohya's scripts, of diffusers and of peft, read for a model without being loaded into it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from layered_core.errors import LayeredError
from layered_diffusers.models.loading import is_transformer

_PART = re.compile(r"(.+?)[._]lora(?:_linear_layer)?[._](A|B|down|up)(?:\.\w+)?\.weight")
"""One of the two matrices of a LoRA, by any of the names that diffusers' readers give or leave."""

_OTHER_KINDS = {
    r"hada_w": "LoHa",
    r"lokr_w": "LoKr",
    r"[ab][12]\.weight$": "GLoRA",
    r"oft_": "OFT",
    r"dora_scale": "DoRA",
    r"\.diff": "full",
}
"""Parts of the names by which kinds of files that are not read are told."""


@dataclass(frozen=True)
class Pair:
    """The two matrices of a LoRA for one linear layer or convolution, which adds ``scale U D x`` to its output."""

    down: Tensor
    """D, ``[r, C]``; of a convolution ``[r, C, k, k]``."""
    up: Tensor
    """U, ``[C', r]``; of a convolution ``[C', r, 1, 1]``."""
    scale: float = 1.0
    """Alpha over the rank r."""

    def shaped(self, module: nn.Module) -> Pair | None:
        """Return the same in the shape that a module needs, a linear layer or a convolution; None if its sizes are
        others."""
        down, up = self.down, self.up
        if isinstance(module, nn.Conv2d):
            down, up = (x[..., None, None] if x.ndim == 2 else x for x in (down, up))
            fits = down.shape[1:] == (module.in_channels // module.groups, *module.kernel_size)
            fits = fits and up.shape == (module.out_channels, down.shape[0], 1, 1)
        else:
            down, up = (x.flatten(1) if x[0, 0].numel() == 1 else x for x in (down, up))
            fits = down.ndim == 2 and down.shape[1] == getattr(module, "in_features", None)
            fits = fits and up.shape == (getattr(module, "out_features", None), down.shape[0])
        return replace(self, down=down, up=up) if fits else None


File = Mapping[str, Mapping[str, Pair]]
"""A file's pairs by the part of the pipeline (``unet``, ``text_encoder``) and by the name of the layer in it."""


def read_lora(model: DiffusionPipeline, file: Path) -> File:
    """Read a LoRA file for the parts of a model.

    Names are those of kohya's scripts, of ComfyUI, of diffusers and of peft; linear layers and convolutions are read.

    Args:
        model: any of the pipelines that this package loads. It is not changed.
        file: safetensors.

    Raises:
        LayeredError: the file is broken, or no LoRA; it is of a kind that is not read, or of another family of
            models: none of its layers is in the model, or one has another size there.
    """
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as opened:
            written = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise LayeredError(f"LoRA {file.name!r} cannot be read: {str(error).splitlines()[0]}") from error
    for mark, kind in _OTHER_KINDS.items():
        if any(re.search(mark, key) for key in tensors):
            raise LayeredError(
                f"LoRA {file.name!r} is of the kind {kind}; allowed: LoRA, of linear layers and convolutions. Other "
                f"kinds act in ComfyUI"
            )
    names = tensors.keys()
    if not any("lora" in key for key in names):
        raise LayeredError(
            f"file {file.name!r} is no LoRA: none of its {len(names)} tensors is one of a LoRA's matrices"
        )
    try:
        found, alphas = _named_as_diffusers(model, tensors)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise LayeredError(
            f"LoRA {file.name!r} does not fit {_family(model)}: {str(error).splitlines()[0]}"
        ) from error
    return _fitted(model, file.name, found, alphas, written)


def _named_as_diffusers(model: Any, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and alphas by the names that diffusers' own reader of the model gives them."""
    options: dict[str, Any] = {}
    if hasattr(model, "unet"):
        options["unet_config"] = model.unet.config
        tensors = {_as_kohya(key): x for key, x in tensors.items()}
    elif type(model).__name__.startswith("Flux"):
        options["return_alphas"] = True
    found = model.lora_state_dict(dict(tensors), **options)
    named, alphas = found if isinstance(found, tuple) else (found, None)
    return named, alphas or {}


def _as_kohya(key: str) -> str:
    """Return ComfyUI's name of a UNet's tensor as kohya writes it, other names unchanged."""
    if not key.startswith("diffusion_model."):
        return key
    path, mark, rest = key.removeprefix("diffusion_model.").partition(
        ".lora_" if ".lora_" in key else ".alpha"
    )
    return f"lora_unet_{path.replace('.', '_')}{mark}{rest}"


def _fitted(
    model: DiffusionPipeline, name: str, tensors: Mapping[str, Tensor], alphas: Mapping[str, Any],
    written: Mapping[str, Any],
) -> File:  # fmt: skip
    """Return the pairs that fit the model; errors as :func:`read_lora`."""
    scales = {_place(model, key.removesuffix(".alpha")): float(a) for key, a in alphas.items()}
    matrices: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if part := _PART.fullmatch(key):
            side = "down" if part[2] in ("A", "down") else "up"
            matrices.setdefault(_place(model, key), {})[side] = tensor
    whole = {place: pair for place, pair in matrices.items() if len(pair) == 2}
    if not whole:
        raise LayeredError(f"file {name!r} is no LoRA: it has no pair of a LoRA's matrices")
    found: dict[str, dict[str, Pair]] = {}
    for (component, path), pair in whole.items():
        module = _module(getattr(model, component), path)
        if module is None:
            continue
        rank = pair["down"].shape[0]
        scale = scales.get((component, path), _written_alpha(written, component, path, rank)) / rank
        fitting = Pair(pair["down"], pair["up"], scale).shaped(module[1])
        if fitting is None:
            raise LayeredError(
                f"LoRA {name!r} does not fit {_family(model)}: its layer {path!r} takes {pair['down'].shape[1]} "
                f"numbers and gives {pair['up'].shape[0]}, the model's has a weight of "
                f"{' x '.join(str(x) for x in module[1].weight.shape)}. Use a LoRA that was trained for this model's "
                f"family"
            )
        found.setdefault(component, {})[module[0]] = fitting
    if not found:
        raise LayeredError(
            f"LoRA {name!r} does not fit {_family(model)}: none of its {len(whole)} layers is in the model. Use a LoRA "
            f"that was trained for this model's family"
        )
    return found


def _place(model: DiffusionPipeline, key: str) -> tuple[str, str]:
    """Return the part of the pipeline and the layer that a tensor's or an alpha's name means."""
    part = _PART.fullmatch(key)
    path = (part[1] if part else key).replace(".processor.", ".").removeprefix("base_model.model.")
    component, _, rest = path.partition(".")
    own = "transformer" if is_transformer(model) else "unet"
    if not isinstance(model.components.get(component), nn.Module):
        component, rest = own, path
    if component == own:
        return component, re.sub(r"\.to_out$", ".to_out.0", rest)
    # In text encoders diffusers' reader names the projections as in a UNet.
    return component, re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", rest)


def _module(part: nn.Module, path: str) -> tuple[str, Any] | None:
    """Return the name and the module of a layer; text encoders are one level deeper in some versions of their
    library. None: there is no such layer."""
    for name in (path, path.removeprefix("text_model."), f"text_model.{path}"):
        try:
            module = part.get_submodule(name)
        except AttributeError:
            continue
        if hasattr(module, "weight"):
            return name, module
    return None


def _written_alpha(written: Mapping[str, Any], component: str, path: str, rank: int) -> float:
    """Return a layer's alpha by the metadata that diffusers and peft write; the rank without them."""
    own = written.get(f"{component}.alpha_pattern") or {}
    return float(own.get(path, written.get(f"{component}.lora_alpha", rank)))


def _family(model: DiffusionPipeline) -> str:
    """Return what kind of model it is, for errors."""
    return type(model).__name__.removesuffix("Pipeline").removesuffix("Inpaint")
