"""The files of a joint network, and the checks that every host makes before it samples.

A file holds ``layers.{i}.…`` for every attention i of the UNet: ``to_{q,k,v,out}_lora.{role}.{down,up}.weight``,
``temporal_{n,i,q,k,v,o}.{weight,bias}``, ``role``, ``depth.{0,2}.…``; the ``enhancer.…``, which may be missing; and
``trained_layers``, a whole number. Files of attention sharing for foreground, background and blend, such as the
published ``layer_sd15_joint``, are read too, as trained for one layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import LayeredError
from ..transparency.layer_diffuse_files import described, misfit
from ..transparency.layer_diffuse_frames import AttentionSharing, check_modules, is_attention_sharing
from ..transparency.transparent_networks import mismatch
from .enhancer import PromptEnhancer
from .frames import ROLES, SceneFrames
from .network import JointNetwork, JointUnit


def is_joint(weights: Mapping[str, Tensor]) -> bool:
    """Return whether a file holds a joint network in this project's own format."""
    return "trained_layers" in weights


def read_joint(weights: Mapping[str, Tensor], name: str) -> JointNetwork:
    """Return the network of a file, with its dtype, in evaluation mode.

    Raises:
        LayeredError: the file is of another kind, lacks a role, or has tensors that are missing, unexpected or of the
            wrong shape; the error names the file, ``name``.
    """
    if is_attention_sharing(weights):
        sharing = AttentionSharing.from_weights(weights, name)
        if sharing.frames != len(ROLES) or sharing.encoder is not None:
            raise LayeredError(
                f"{described(name)} does not make foreground, background and blend at once. Choose a file that does, "
                f"such as layer_sd15_joint.safetensors"
            )
        return JointNetwork.from_sharing(sharing)
    if not is_joint(weights):
        raise LayeredError(
            f"{described(name)} holds no network for layers made at once: the tensor 'trained_layers' is missing. "
            f"Choose another file"
        )
    for role, what in enumerate(ROLES):
        if not any(f"_lora.{role}." in key for key in weights):
            raise LayeredError(
                f"{described(name)} has no weights for the role {what!r}: no key has '_lora.{role}.'. Make the file "
                f"again"
            )
    with torch.device("meta"):
        network = _build(weights)
    if found := mismatch(network, weights):
        raise LayeredError(
            f"{described(name)} is no complete network for layers made at once. {found}. Copy it again"
        )
    network.load_state_dict(dict(weights), assign=True)
    return network.eval().requires_grad_(False)


def _build(weights: Mapping[str, Tensor]) -> JointNetwork:
    numbers = {int(m[1]) for k in weights if (m := re.match(r"layers\.(\d+)\.", k))}

    def size(key: str, axis: int, usual: int) -> int:
        return int(weights[key].shape[axis]) if key in weights and weights[key].ndim > axis else usual

    units = []
    for i in range(max(numbers, default=-1) + 1):
        unit = f"layers.{i}."
        width = size(f"{unit}temporal_i.weight", 0, 320)
        context = size(f"{unit}to_k_lora.0.down.weight", 1, width)
        units.append(JointUnit(width, context, size(f"{unit}to_q_lora.0.down.weight", 0, 16)))
    has_enhancer = any(k.startswith("enhancer.") for k in weights)
    return JointNetwork(units, PromptEnhancer(size("enhancer.q.weight", 0, 768)) if has_enhancer else None)


def fitting_joint(
    weights: Mapping[str, Tensor], modules: Sequence[tuple[int, int]], name: str, model: str
) -> JointNetwork:
    """Read a file and check it against a UNet: what every host does first.

    Args:
        weights: of the file.
        modules: width and context width of every attention, in the order of :class:`AttentionSharing`.
        name, model: of the file, and of the kind of model, for errors.

    Raises:
        LayeredError: the file is broken, or for another model.
    """
    network = read_joint(weights, name)
    check_modules(network, modules, name, model)
    text = max((context for _, context in modules[1::2]), default=0)
    if network.enhancer is not None and network.enhancer.width != text:
        raise misfit(
            name, model, f"its prompt enhancer reads texts of width {network.enhancer.width}, not {text}"
        )
    return network


def untrained(network: JointNetwork, scene: SceneFrames, name: str) -> str | None:
    """Return the warning that a host tells if the network was not trained for as many layers; None if it was."""
    trained = int(network.trained_layers)
    if scene.layers <= trained:
        return None
    return (
        f"{described(name)} was trained to make {trained} layer{'s' * (trained != 1)} at once, and {scene.layers} are "
        f"asked for. It is run without training for them: expect layers in the same place"
    )
