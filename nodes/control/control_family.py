"""Refuse a ControlNet of another model family before sampling starts."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import comfy.controlnet
import torch

from ...layered_core.errors import invalid


class Kind(NamedTuple):
    """A kind of ComfyUI's networks."""

    name: str
    """What the user calls it."""
    mark: str
    """The name of a weight that networks of this kind alone have, among those further down the list."""
    first: str
    """The name of the weight of the first layer; its number of outputs is the width of the residuals."""
    has_nets: bool = True
    """Whether ComfyUI's model adds the residuals of a ControlNet. Others pass over them without a word."""


_KINDS = (
    Kind("a UNet", "input_blocks.0.0.weight", "input_blocks.0.0.weight"),
    Kind("a Hunyuan DiT", "extra_embedder.0.weight", "x_embedder.proj.weight"),
    Kind("an SD3 transformer", "x_embedder.proj.weight", "x_embedder.proj.weight"),
    Kind("a Flux or Qwen transformer", "img_in.weight", "img_in.weight"),
    Kind("a Z-Image or Lumina 2 transformer", "cap_embedder.1.weight", "x_embedder.weight", has_nets=False),
    Kind("a Krea 2 transformer", "txtmlp.1.weight", "first.weight", has_nets=False),
    Kind(
        "an Anima or Cosmos transformer",
        "x_embedder.proj.1.weight",
        "x_embedder.proj.1.weight",
        has_nets=False,
    ),
    Kind("a Wan transformer", "patch_embedding.weight", "patch_embedding.weight", has_nets=False),
)
"""The kinds of networks, of models and of their ControlNets. A network is of the first kind whose mark it has."""


_WORDS = ("attn2.to_k.weight", "context_embedder.weight", "txt_in.weight")
"""How the name of the first layer that reads words ends."""


def check_family(net: comfy.controlnet.ControlBase, model: Any) -> None:
    """Raise :class:`LayeredError` if shapes show that a ControlNet or T2I-Adapter was made for another family
    than the model's. If ComfyUI has no ControlNets for the model, and the net is of an unknown kind, the log says
    that it may do nothing."""
    wanted = _shape(model.diffusion_model)
    got = (
        _adapter_shape(net.t2i_model)
        if isinstance(net, comfy.controlnet.T2IAdapter)
        else _shape(getattr(net, "control_model", None))
    )
    kind = _kind(model.diffusion_model)
    without = kind is not None and not kind.has_nets
    if without and not got:
        logging.warning(
            f"Masked ControlNet Apply: ComfyUI's class of {kind.name} adds no ControlNet's residuals. Unless another "
            f"pack changes that, {type(net).__name__} does nothing"
        )
    fix = (
        f"ComfyUI has no ControlNets for {kind.name}. A control that comes as a model patch (Load Model Patch) acts "
        f"per layer through Masked Model Patch"
        if without
        else "It was made for another model family: load one of this family"
    )
    for what, own in got.items():
        if what in wanted and own != wanted[what]:
            allowed = f"{wanted[what]}, as the model has ({type(model).__name__})"
            raise invalid(f"control_net: {what}", own, allowed, fix)


def _weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a network by name, without the prefix of a ControlNet's own input."""
    # Packed weights (quantised to 4 bits) do not have the layer's shape.
    return {n.removeprefix("control_"): p for n, p in module.named_parameters() if p.is_floating_point()}


def _kind(module: torch.nn.Module | None) -> Kind | None:
    """Return the kind of a network; None if it is unknown."""
    names = set() if module is None else _weights(module).keys()
    return next((kind for kind in _KINDS if kind.mark in names and kind.first in names), None)


def _shape(module: torch.nn.Module | None) -> dict[str, Any]:
    """Return the properties that a model and its ControlNets have in common; an empty dict for an unknown
    network."""
    kind = _kind(module)
    if module is None or kind is None:
        return {}
    weights = _weights(module)
    shape: dict[str, Any] = {
        "kind of network": kind.name,
        "width of the residuals": int(weights[kind.first].shape[0]),
    }
    words = next((p for n, p in weights.items() if n.endswith(_WORDS)), None)
    if words is not None:
        shape["width of the words it reads"] = int(words.shape[1])
    if hasattr(module, "channel_mult"):
        shape["number of resolutions"] = len(module.channel_mult)
    return shape


def _adapter_shape(adapter: torch.nn.Module) -> dict[str, Any]:
    """Return the same for a T2I-Adapter for UNets. Adapters for SDXL serve its three resolutions."""
    if not hasattr(adapter, "channels"):
        return {}
    return {
        "kind of network": "a UNet",
        "width of the residuals": int(adapter.channels[0]),
        "number of resolutions": 3 if getattr(adapter, "xl", False) else len(adapter.channels),
    }
