"""What a LoRA adds to one module of ComfyUI's networks, and how the sum is put on modules for a while.

ComfyUI's own adapters compute it from a module's input and output, as for its bypass LoRAs; a module's weights are
never read, so they may be offloaded, cast or quantised.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import comfy.weight_adapter
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from ...layered_core.attention.lora_sum import Adapted, Delta, LowRank, Pixels, Reach, Rows

_NORMS = nn.GroupNorm, nn.LayerNorm
"""Modules whose weight and bias change each channel by itself; ComfyUI's Train LoRA changes them too."""

_ROTATIONS = comfy.weight_adapter.OFTAdapter, comfy.weight_adapter.BOFTAdapter

Weigh = Callable[[Tensor, Tensor], Rows | Pixels | None]
"""From a module's input and output to the weights of the LoRAs on it; None: none acts."""


class Target(NamedTuple):
    """What of a network a patch changes."""

    module: str
    """Name of the module."""
    is_bias: bool
    offset: tuple[int, int, int] | None
    """Dimension of the weight (0: outputs, 1: inputs), first index and length, where it is only a part."""
    function: Callable[[Tensor], Tensor] | None
    """Reorders the outputs of the patch along dimension 0; None: it does not."""


class LoraMisfitError(Exception):
    """A patch cannot be added to its module."""

    def __init__(self, text: str, *, of_shape: bool) -> None:
        """Say what is wrong, and whether it is the shape, so that the file is for another model."""
        super().__init__(text)
        self.of_shape = of_shape


def target_of(key: Any) -> Target:
    """Return the target of a key of ComfyUI's patches: a weight's name, or it with an offset and a function."""
    name, offset, function = (key, None, None) if isinstance(key, str) else (*key, None)[:3]
    module, _, what = name.rpartition(".")
    if what not in ("weight", "bias"):
        module = name
    return Target(module, what == "bias", offset, function)


def module_of(root: nn.Module, target: Target, patch: Any) -> nn.Module:
    """Return the module that a patch changes.

    Raises:
        LoraMisfitError: there is no such module, it is neither linear nor a convolution nor a norm, the patch has
            another shape, or is of a kind that cannot be added to a module's output.
    """
    try:
        module = root.get_submodule(target.module)
    except AttributeError:
        raise LoraMisfitError(f"changes {target.module}, which is not there", of_shape=True) from None
    fixed = f"changes {target.module} ({type(module).__name__}) in a way that cannot act in one layer alone"
    is_part = target.offset is not None or target.function is not None
    is_norm = isinstance(module, _NORMS) and not is_part and not isinstance(patch, WeightAdapterBase)
    if (is_part and isinstance(patch, comfy.weight_adapter.GLoRAAdapter)) or not (
        is_convolution(module) or _is_linear(module) or is_norm
    ):
        raise LoraMisfitError(fixed, of_shape=False)
    try:
        outputs, inputs = _sides(module, target)
        fits = _outputs(module, target, patch, inputs) == outputs
    except _UnfitKind:
        raise LoraMisfitError(fixed, of_shape=False) from None
    except (RuntimeError, ValueError, IndexError):  # PyTorch's, of shapes
        fits = False
    if not fits:
        raise LoraMisfitError(
            f"does not fit {target.module}, which has {inputs} inputs and {outputs} outputs", of_shape=True
        )
    return module


class _UnfitKind(Exception):  # noqa: N818  # tells what kind of error it is
    """A patch of a kind that cannot be added to a module's output."""


def has_pixels(module: nn.Module) -> bool:
    """Return whether a module's channels are its second dimension, with pixels behind."""
    return is_convolution(module) or isinstance(module, nn.GroupNorm)


def is_convolution(module: nn.Module) -> bool:
    """Return whether a module is a convolution, also one that is quantised."""
    return bool(comfy.weight_adapter.bypass.get_module_type_info(module)["is_conv"])


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    is_matrix = weight is not None and len(weight.shape) == 2 and not isinstance(module, nn.Embedding)
    return is_matrix or isinstance(module, nn.Linear)


def _shape(module: nn.Module) -> tuple[int, int]:
    """Return a module's numbers of outputs and inputs; quantised weights may be packed in another shape."""
    if isinstance(module, _NORMS):
        return len(module.weight), len(module.weight)
    names = ("out_channels", "in_channels") if is_convolution(module) else ("out_features", "in_features")
    outputs, inputs = (getattr(module, name, None) for name in names)
    groups = getattr(module, "groups", 1)
    return int(outputs or module.weight.shape[0]), int(inputs or module.weight.shape[1] * groups)


def _sides(module: nn.Module, target: Target) -> tuple[int, int]:
    """Return how many outputs and inputs of a module a patch is for."""
    sides = list(_shape(module))
    if target.offset is not None:
        sides[target.offset[0]] = target.offset[2]
    return sides[0], sides[1]


def _outputs(module: nn.Module, target: Target, patch: Any, inputs: int) -> int:
    """Return how many outputs a patch gives for so many inputs, computed without data."""
    if isinstance(patch, _ROTATIONS):
        blocks = patch.weights[0]
        return int(blocks.shape[-3] * blocks.shape[-1])
    if isinstance(patch, comfy.weight_adapter.GLoRAAdapter):
        wide, deep = max(patch.weights[2:4], key=len), max(patch.weights[:2], key=len)
        return len(wide) if len(deep) == inputs else 0
    if isinstance(patch, WeightAdapterBase):
        adapter = _adapter(module, patch, 1.0)
        if _is_plain(adapter) and all(w.ndim == 2 for w in adapter.weights[:2]):
            up, down = adapter.weights[:2]
            return len(up) if up.shape[1] == len(down) and down.shape[1] == inputs else 0
        _move(adapter, torch.device("meta"), torch.float32)
        sides = [8] * adapter.conv_dim
        x = torch.zeros(1, inputs, *sides, device="meta")
        return int(adapter.h(x, x).shape[1])
    change = _difference(patch)
    if change.ndim > 1 and change[0].numel() != math.prod(module.weight.shape[1:]):
        return 0
    return len(change)


def delta_of(
    module: nn.Module, target: Target, patch: Any, strength: float, device: torch.device, dtype: torch.dtype
) -> Delta:
    """Return what a patch adds to its module, ready for inputs of a device and a type.

    Args:
        module: what :func:`module_of` returned.
        target: the module's name, and which part of it.
        patch: one of ComfyUI's adapters, or the difference of a weight or bias.
        strength: any number; 0 adds nothing.
        device, dtype: those of the module's input.
    """
    axis = 1 if has_pixels(module) else -1
    if not isinstance(patch, WeightAdapterBase):
        change = (_difference(patch) * strength).to(device, dtype)
        added = _bias(change, axis) if target.is_bias else _weight(module, change)
        return _placed(added, target, axis)
    adapter = _adapter(module, patch, strength)
    if _is_plain(adapter) and target.function is None:
        return _low_rank(module, target, adapter, device, dtype)
    _move(adapter, device, dtype)
    if isinstance(patch, comfy.weight_adapter.GLoRAAdapter):
        return _of_input(module, adapter)
    if isinstance(patch, _ROTATIONS):
        return _placed(_rotation(adapter, axis), target, axis)
    return _placed(adapter.h, target, axis)


def _adapter(module: nn.Module, patch: WeightAdapterBase, strength: float) -> Any:
    """Return a copy of an adapter that knows its module and its strength, as ComfyUI's bypass makes it."""
    adapter = copy.copy(patch)
    comfy.weight_adapter.BypassForwardHook(module, adapter, strength)
    return adapter


def _move(adapter: Any, device: torch.device, dtype: torch.dtype) -> None:
    adapter.weights = tuple(w.to(device, dtype) if isinstance(w, Tensor) else w for w in adapter.weights)


def _is_plain(adapter: Any) -> bool:
    """Return whether an adapter is a LoRA of a linear layer, without anything between its two matrices."""
    plain = isinstance(adapter, comfy.weight_adapter.LoRAAdapter)
    return plain and not adapter.is_conv and adapter.weights[3] is None


def _low_rank(
    module: nn.Module, target: Target, adapter: Any, device: torch.device, dtype: torch.dtype
) -> LowRank:
    """Return a plain LoRA, as wide as the module, with its strength in it."""
    up, down = (w.flatten(1).to(device, dtype) for w in adapter.weights[:2])
    alpha = adapter.weights[2]
    scale = (1.0 if alpha is None else alpha / len(down)) * adapter.multiplier
    if target.offset is not None:
        dim, first, length = target.offset
        rest = _shape(module)[dim] - first - length
        if dim == 0:
            up = functional.pad(up, (0, 0, first, rest))
        else:
            down = functional.pad(down, (first, rest))
    return LowRank(down, up, scale)


def _of_input(module: nn.Module, adapter: Any) -> Delta:
    """Return what a GLoRA adds: ``f(x + A x) + B x - f(x)``. ComfyUI's bypass swaps the factors of A and B."""
    a1, a2, b1, b2, alpha, _ = adapter.weights
    is_old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    is_new = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    if is_old and not is_new:
        a1, a2, b1, b2 = a2, a1, b2, b1
    scale = (1.0 if alpha is None else alpha / a2.shape[0]) * adapter.multiplier
    parts = [
        _weight(module, w, alone=alone) for w, alone in ((a2, True), (a1, True), (b2, False), (b1, True))
    ]

    def added(x: Tensor, y: Tensor) -> Tensor:
        a_down, a_up, b_down, b_up = parts
        out: Tensor = module.forward(x + a_up(a_down(x, y), y) * scale) - y
        return out + b_up(b_down(x, y), y) * scale

    return added


def _rotation(adapter: Any, axis: int) -> Delta:
    """Return what OFT and BOFT add: the module's output with its channels rotated, less the output."""
    adapter.is_conv = False  # it gets channels last
    turn = adapter.g if isinstance(adapter, comfy.weight_adapter.BOFTAdapter) else partial(_rotated, adapter)
    return lambda x, y: turn(y.movedim(axis, -1)).movedim(-1, axis) - y


def _rotated(adapter: Any, y: Tensor) -> Tensor:
    """Return ``y`` ``[..., C]`` rotated by OFT, as its own ``g``, which needs another layout in memory."""
    rotation, count, size = adapter._get_orthogonal_matrix(y.device, y.dtype)
    identity = torch.eye(size, device=y.device, dtype=y.dtype)
    rotation = rotation.to(y.dtype) * adapter.multiplier + (1 - adapter.multiplier) * identity
    out = torch.einsum("knm,...kn->...km", rotation, y.unflatten(-1, (count, size))).flatten(-2)
    rescale = adapter.weights[1]
    return out if rescale is None else out * rescale.view(-1)


def _difference(patch: Any) -> Tensor:
    """Return the difference of a weight or bias that a patch is, ``[C', ...]``."""
    kind, values, *_ = patch
    if kind != "diff" or len(values) > 1 or not isinstance(values[0], Tensor):
        raise _UnfitKind
    change: Tensor = values[0]
    return change


def _bias(change: Tensor, axis: int) -> Delta:
    """Return the delta that adds a difference of the bias ``[C']``."""

    def added(x: Tensor, y: Tensor) -> Tensor:
        shape = [1] * y.ndim
        shape[axis] = -1
        return change.view(shape).expand_as(y)

    return added


def _weight(module: nn.Module, change: Tensor, *, alone: bool = False) -> Delta:
    """Return the delta that adds a difference of the weight.

    Args:
        module: the module.
        change: the difference, ``[C', ...]``.
        alone: whether a convolution's pixels are each by themselves.
    """
    if isinstance(module, nn.GroupNorm):
        groups, epsilon = module.num_groups, module.eps
        return lambda x, y: functional.group_norm(x, groups, change, torch.zeros_like(change), epsilon)
    if isinstance(module, nn.LayerNorm):
        last, epsilon = module.normalized_shape, module.eps
        return lambda x, y: functional.layer_norm(x, last, change, torch.zeros_like(change), epsilon)
    info = comfy.weight_adapter.bypass.get_module_type_info(module)
    if not info["is_conv"]:
        return lambda x, y: functional.linear(x, change.flatten(1))
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[info["conv_dim"] - 1]
    kernel = [1] * info["conv_dim"] if alone else info["kernel_size"]
    own = change.reshape(len(change), -1, *kernel)
    keys = () if alone else ("stride", "padding", "dilation", "groups")
    return lambda x, y: convolve(x, own, **{key: info[key] for key in keys})


def _placed(delta: Delta, target: Target, axis: int) -> Delta:
    """Return a delta of a part of a module's inputs or outputs as one of the whole module.

    Args:
        delta: of the part.
        target: which part it is, and how its outputs are reordered.
        axis: the dimension of channels.
    """
    if target.offset is None and target.function is None:
        return delta
    dim, first, length = target.offset or (0, 0, 0)

    def added(x: Tensor, y: Tensor) -> Tensor:
        if target.offset is not None and dim == 1:
            found = delta(x.narrow(axis, first, length), y)
        elif target.offset is not None:
            found = torch.zeros_like(y)
            found.narrow(axis, first, length).copy_(delta(x, y.narrow(axis, first, length)))
        else:
            found = delta(x, y)
        if target.function is not None:
            found = target.function(found.movedim(axis, 0)).movedim(0, axis)
        return found

    return added


class Changes:
    """What the LoRAs of a run add to the modules of one network."""

    def __init__(self, root: nn.Module, loras: Iterable[tuple[int, Mapping[Target, Any], float]]) -> None:
        """Gather the changes by module.

        Args:
            root: the network.
            loras: number, patches and strength of every LoRA.
        """
        self.modules: dict[str, nn.Module] = {}
        self._parts: dict[str, list[tuple[int, Target, Any, float]]] = {}
        for number, patches, strength in loras:
            for target, patch in patches.items():
                self.modules[target.module] = root.get_submodule(target.module)
                self._parts.setdefault(target.module, []).append((number, target, patch, strength))
        self._made: dict[tuple[str, torch.device, torch.dtype], Adapted] = {}

    def adapted(self, name: str, x: Tensor) -> Adapted:
        """Return what is added to a module for inputs like ``x``."""
        key = name, x.device, x.dtype
        if key not in self._made:
            module = self.modules[name]
            self._made[key] = Adapted(
                [
                    (number, delta_of(module, target, patch, strength, x.device, x.dtype))
                    for number, target, patch, strength in self._parts[name]
                ],
                _reach(module),
            )
        return self._made[key]

    def put_on(self, weigh: Callable[[str], Weigh]) -> list[RemovableHandle]:
        """Let the modules' outputs have the sums until the handles are removed.

        Args:
            weigh: for a module's name, what weighs its LoRAs at each call.
        """
        return [
            module.register_forward_hook(self._hook(name, weigh(name)), with_kwargs=True)
            for name, module in self.modules.items()
        ]

    def _hook(self, name: str, weigh: Weigh) -> Callable[..., Tensor | None]:
        def added(
            module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], y: Tensor
        ) -> Tensor | None:
            x = given[0] if given else next(iter(named.values()))
            found = weigh(x, y)
            if found is None:
                return None
            adapted = self.adapted(name, x)
            return adapted.to_rows(y, x, found) if isinstance(found, Rows) else adapted.to_pixels(y, x, found)

        return added


def _reach(module: nn.Module) -> Reach | None:
    """Return how far a convolution over pictures reads; None for anything else, and for paddings that are not of a
    number of zeros."""
    info = comfy.weight_adapter.bypass.get_module_type_info(module)
    if info["conv_dim"] != 2 or getattr(module, "padding_mode", "zeros") != "zeros":
        return None
    if isinstance(info["padding"], str):
        return None
    return Reach(*(tuple(info[key]) for key in ("kernel_size", "stride", "padding", "dilation")))
