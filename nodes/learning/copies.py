"""Copies of a MODEL and a CLIP through which gradients flow.

ComfyUI runs every node in PyTorch's inference mode, and loads weights in it: such weights can never take part in a
gradient. A copy has the same weights as ordinary tensors, and whatever learning does to it ends with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ...layered_core.errors import LayeredError


@contextmanager
def copies(
    model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP
) -> Iterator[tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP]]:
    """Give copies of a MODEL and a CLIP to a ``with`` block outside inference mode, and free them afterwards. On a
    GPU the UNet's blocks save memory."""
    own_model, own_clip = copied_model(model), copied_clip(clip)
    changed = [x for x in own_clip.cond_stage_model.modules() if "forward" in vars(x)]
    if not comfy.model_management.is_device_cpu(own_model.load_device):
        changed += save_memory(own_model.model.diffusion_model)
    try:
        yield own_model, own_clip
    finally:
        for module in changed:
            del module.forward  # it holds the module, which would then be freed late
        for patcher in (own_model, own_clip.patcher):
            comfy.model_management.unload_model_and_clones(patcher)


def copied_model(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """Return a copy of a MODEL with weights of its own, frozen. Call it outside inference mode."""
    return _frozen(_copied(model))


def copied_clip(clip: comfy.sd.CLIP) -> comfy.sd.CLIP:
    """Return a copy of a CLIP with weights of its own, frozen, whose layers change nothing in place. Call it outside
    inference mode."""
    other = clip.clone()
    other.patcher = _frozen(_copied(clip.patcher))
    other.cond_stage_model = other.patcher.model
    for module in other.cond_stage_model.modules():
        if isinstance(module, comfy.clip_model.CLIPLayer):
            module.forward = partial(
                _clip_layer, module
            )  # ComfyUI's own adds in place, which forbids gradients
    return other


def save_memory(unet: nn.Module) -> list[nn.Module]:
    """Let a UNet's blocks keep nothing for the gradient but their inputs, and compute the rest once more when it is
    needed. Return the modules with another ``forward``."""
    blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    layers = [layer for block in blocks for layer in block]
    for layer in layers:
        layer.forward = partial(_checkpointed, layer.forward)
    return layers


def _copied(patcher: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    if patcher.cached_patcher_init is None:
        if patcher.is_dynamic():
            raise LayeredError(
                f"model {type(patcher.model).__name__}: its loader cannot load it a second time, which learning needs. "
                "Load it with ComfyUI's own loader"
            )
        # Without what others have patched into the weights: the copy gets that when it is loaded.
        comfy.model_management.unload_model_and_clones(patcher)
        network = patcher.model
        shared = (getattr(network, "model_config", None), getattr(network, "current_patcher", None))
        own = copy.deepcopy(network, {id(x): x for x in shared if x is not None})
        return patcher.clone(model_override=(own, ({}, {}, {}, set())))
    load, values, *which = patcher.cached_patcher_init
    fresh = load(*values, disable_dynamic=True)
    fresh = fresh[which[0]] if which else fresh
    # Some loaders put the weights to work at once; ComfyUI would take what is left of that for a leak.
    comfy.model_management.unload_model_and_clones(fresh)
    return patcher.clone(model_override=fresh.get_clone_model_override())


def _frozen(patcher: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    patcher.model.requires_grad_(False)
    return patcher


def _clip_layer(
    layer: comfy.clip_model.CLIPLayer, x: Tensor, mask: Tensor | None = None, attention: Any = None
) -> Tensor:
    x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
    return x + layer.mlp(layer.layer_norm2(x))


def _checkpointed(forward: Callable[..., Tensor], *args: Any, **named: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*args, **named)
    return torch.utils.checkpoint.checkpoint(
        forward, *args, use_reentrant=False, preserve_rng_state=False, **named
    )
