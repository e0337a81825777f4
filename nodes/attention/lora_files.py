"""Read the LoRA files of layers, and find out before sampling whether they fit the model."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_patcher
import comfy.sd
import comfy.utils
import comfy.weight_adapter
import folder_paths
from torch import nn

from ...layered_core.errors import LayeredError
from ..layers.lora_files import KIND, lora_file
from .lora_modules import LoraMisfitError, Target, module_of, target_of

_MARKS = ("lora", "hada_", "lokr_", "oft_", ".a1.", ".diff", ".w_norm", ".set_weight", ".alpha")
"""Pieces of the names of tensors in files of LoRAs; each file has at least one."""


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA's file, as ComfyUI reads it for a model and a text encoder."""

    name: str
    """The file's name in ComfyUI's list."""
    model: Mapping[Target, Any]
    """What it changes in the model: ComfyUI's patches."""
    texts: Mapping[Target, Any]
    """What it changes in the text encoders."""
    made_for: tuple[weakref.ref[nn.Module], weakref.ref[nn.Module]]
    """The model and the text encoders that it was read for."""


_READ: weakref.WeakValueDictionary[Any, LoraFile] = weakref.WeakValueDictionary()
"""The files that some conditioning still uses, by what they were read from and for."""


def read_lora(
    layer: str, lora: str, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP
) -> LoraFile:
    """Read a LoRA for a model and its text encoder.

    Args:
        layer: name of the layer, for errors.
        lora: its name in the recipe.
        model, clip: what the LoRA is to change.

    Raises:
        LayeredError: the file is missing, broken or no LoRA; it is for another model; or it changes something that
            cannot change in one layer alone.
    """
    file = lora_file(layer, lora)
    path = Path(folder_paths.get_full_path_or_raise(KIND, file))
    if not hasattr(comfy.weight_adapter, "BypassForwardHook"):
        raise LayeredError(f"layer {layer!r}: LoRA {file!r} needs a ComfyUI that has bypass LoRAs. Update it")
    stamp, networks = path.stat(), (model.model, clip.cond_stage_model)
    key = str(path), stamp.st_mtime_ns, stamp.st_size, *(id(network) for network in networks)
    found = _READ.get(key)
    if found is None or tuple(network() for network in found.made_for) != networks:
        found = _READ[key] = _read(f"layer {layer!r}: LoRA {file!r}", file, path, model, clip)
    return found


def _read(
    where: str, file: str, path: Path, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP
) -> LoraFile:
    try:
        tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:  # of many kinds, by the file's format
        told = (str(error).splitlines() or [""])[0]
        raise LayeredError(f"{where} cannot be read: {told}. Copy it again") from error
    names = [str(name) for name in tensors]
    if not any(mark in name for name in names for mark in _MARKS):
        raise LayeredError(
            f"{where} is no LoRA: it holds {', '.join(names[:2]) or 'nothing'}. Name a LoRA, or load a checkpoint, "
            "ControlNet or embedding with the node for it"
        )
    for ending, what in ((".dora_scale", "of the kind DoRA"), (".reshape_weight", "that widens the model")):
        if any(name.endswith(ending) for name in names):
            raise LayeredError(
                f"{where} is a LoRA {what}, which cannot act in one layer alone. Use it for the whole picture with "
                "ComfyUI's Load LoRA, or take another file"
            )
    of_model = comfy.lora.model_lora_keys_unet(model.model, {})
    of_texts = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    patches = comfy.lora.load_lora(
        comfy.lora_convert.convert_lora(tensors), {**of_texts, **of_model}, log_missing=False
    )
    targets = {target_of(key): patch for key, patch in patches.items()}
    for target in [t for t in targets if t.is_bias]:  # modules without a bias get none, as in ComfyUI
        root = model.model if target.module.startswith("diffusion_model.") else clip.cond_stage_model
        if getattr(root.get_submodule(target.module), "bias", None) is None:
            del targets[target]
    read = LoraFile(
        file,
        {t: patch for t, patch in targets.items() if t.module.startswith("diffusion_model.")},
        {t: patch for t, patch in targets.items() if not t.module.startswith("diffusion_model.")},
        (weakref.ref(model.model), weakref.ref(clip.cond_stage_model)),
    )
    family = type(model.model.model_config).__name__
    if not read.model and (not read.texts or any(not _is_of(of_texts, name) for name in names)):
        raise LayeredError(
            f"{where} is for another model: of its {len(names)} tensors, such as {names[0]}, none fits this model, "
            f"which is of the family {family}. Take a LoRA that was trained for {family}"
        )
    for root, part in ((model.model, read.model), (clip.cond_stage_model, read.texts)):
        check_fit(where, root, part, family)
    if (idle := sum(not _is_of({**of_texts, **of_model}, name) for name in names)) > 0:
        logging.warning("%s: %d of its %d tensors fit nothing in this model", where, idle, len(names))
    return read


def check_fit(where: str, root: nn.Module, patches: Mapping[Target, Any], family: str) -> None:
    """Raise :class:`LayeredError` if a patch does not fit its module of the network ``root``.

    Args:
        where: what the error begins with: the layer and the LoRA.
        root: the model or the text encoders.
        patches: those of a :class:`LoraFile`.
        family: name of the model's family, for the error.
    """
    for target, patch in patches.items():
        try:
            module_of(root, target, patch)
        except LoraMisfitError as error:
            raise LayeredError(f"{where} {error}" + (
                f". It is for another model: take a LoRA that was trained for {family}" if error.of_shape
                else ". Use it for the whole picture with ComfyUI's Load LoRA, or take another file"
            )) from error  # fmt: skip


def _is_of(known: Mapping[str, Any], name: str) -> bool:
    """Return whether a tensor of a file belongs to one of the modules whose names ComfyUI knows."""
    return any(part in known for part in _beginnings(name))


def _beginnings(name: str) -> Iterator[str]:
    """Yield the beginnings of a tensor's name that may be a module's."""
    yield name
    at = name.rfind(".")
    while at > 0:
        yield name[:at].removesuffix("_lora")
        yield name[:at]
        at = name.rfind(".", 0, at)
