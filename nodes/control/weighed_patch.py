"""Weigh what the patches of a MODEL change by masks.

A control of a transformer may come as a MODEL_PATCH: its node puts patches on the MODEL, which ComfyUI calls
between the blocks. Each is wrapped here; the wrapper keeps what was there before, calls the patch, and weighs
the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
from torch import Tensor

from ...layered_core.control.token_weights import weighed
from ...layered_core.errors import LayeredError, invalid
from .patch_mask import KEY, PatchMask, sample


class Weighed:
    """A patch whose change is weighed. Whatever else ComfyUI asks of a patch is left to the patch itself."""

    def __init__(self, inner: Any, mask: PatchMask) -> None:
        self.inner, self.mask = inner, mask

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "inner" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.inner, name)

    def to(self, device_or_dtype: Any) -> Weighed:
        """Move the patch, as ComfyUI does before sampling."""
        moved = self.inner.to(device_or_dtype) if hasattr(self.inner, "to") else self.inner
        return self if moved is self.inner else type(self)(moved, self.mask)


class WeighedBlock(Weighed):
    """A patch of the image tokens after a block (``double_block``, ``noise_refiner``)."""

    def __call__(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with the image tokens ``img`` ``[B, N, C]``, their change weighed."""
        options = arguments["transformer_options"]
        weight = self.mask.weight(options)
        if not isinstance(weight, Tensor) and weight in (0, 1):
            return self.inner(arguments) if weight else arguments
        tokens, words = arguments["img"], arguments.get("txt")
        before = tokens.clone()  # ComfyUI's own patches write into it
        out = self.inner(dict(arguments))
        after = out.get("img", tokens)
        if out.get("txt", words) is not words or after.shape != before.shape:
            raise LayeredError(
                f"model: the patch {name_of(self.inner)} changes the words' tokens or the number of tokens, which "
                f"have no place that a mask could weigh. Connect a model with this patch to base too"
            )
        return {**out, "img": weighed(before, after, self._of_tokens(weight, arguments, before))}

    def _of_tokens(
        self, weight: Tensor | float, arguments: Mapping[str, Any], tokens: Tensor
    ) -> Tensor | float:
        if not isinstance(weight, Tensor):
            return weight
        options, latents = arguments["transformer_options"], arguments["x"]
        self.mask.check_size(options, latents.shape[-2], latents.shape[-1])
        return self.mask.of_tokens(
            weight, options, tokens,
            frames=latents.shape[2] if latents.ndim == 5 else 1,
            before=arguments.get("img_offset", 0),
            after=sum(options.get("reference_image_num_tokens", ())),
            # Z-Image refines reference pictures in front of the picture.
            at_end=arguments.get("block_type") == "noise_refiner",
        )  # fmt: skip


class WeighedFeatures(Weighed):
    """A patch of the features before a block's feed-forward network (``mlp_patch``)."""

    def __call__(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with the features ``x`` ``[B, T, rows, columns, C]``, their change weighed."""
        options = arguments["transformer_options"]
        weight = self.mask.weight(options)
        if not isinstance(weight, Tensor) and weight in (0, 1):
            return self.inner(arguments) if weight else arguments
        before = arguments["x"].clone()
        out = self.inner(dict(arguments))
        if isinstance(weight, Tensor):
            weight = self.mask.of_patches(weight, options, before)
        return {**out, "x": weighed(before, out["x"], weight)}


class WeighedAttention(Weighed):
    """Anima LLLite's patch of what an attention's queries, keys and values are made from. It changes features
    of image tokens alone."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, pe: Any = None, attn_mask: Any = None, extra_options: Any = None
    ) -> dict[str, Any]:  # fmt: skip
        """Return the features ``[B, N, C]``, their change weighed."""
        given = {"q": q, "k": k, "v": v, "pe": pe, "attn_mask": attn_mask}
        weight = self.mask.weight(extra_options)
        if not isinstance(weight, Tensor) and weight == 0:
            return given
        out: dict[str, Any] = self.inner(q, k, v, pe=pe, attn_mask=attn_mask, extra_options=extra_options)
        for name in ("q", "k", "v"):
            before, after = given[name], out[name]
            if after is not before:
                share = (
                    self.mask.of_tokens(weight, extra_options, before)
                    if isinstance(weight, Tensor)
                    else weight
                )
                out[name] = weighed(before, after, share)
        return out


class WeighedInput(Weighed):
    """Anima LLLite's patch that encodes the control picture at the start of an evaluation."""

    def __call__(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments; the picture is encoded unless the weight is 0 everywhere."""
        options, latents = arguments["transformer_options"], arguments["x"]
        weight = self.mask.weight(options)
        if isinstance(weight, Tensor):
            self.mask.check_size(options, latents.shape[-2], latents.shape[-1])
        elif weight == 0:
            return arguments
        return self.inner(arguments)


_KINDS: dict[str, type[Weighed]] = {
    "double_block": WeighedBlock,
    "noise_refiner": WeighedBlock,
    "mlp_patch": WeighedFeatures,
}
"""How a patch is weighed, by ComfyUI's name of its place."""

_LLLITE: dict[str, type[Weighed]] = {
    "AnimaLLLitePatch": WeighedInput,
    "AnimaLLLiteAttentionPatch": WeighedAttention,
}
"""How patches of ``comfy.ldm.anima.lllite`` are weighed in other places, by class."""


def weigh_patches(
    model: comfy.model_patcher.ModelPatcher, base: comfy.model_patcher.ModelPatcher, mask: PatchMask
) -> comfy.model_patcher.ModelPatcher:
    """Return a clone of ``model`` in which the patches that ``base`` lacks are weighed. Patches that are weighed
    already stay as they are.

    Raises:
        LayeredError: ``model`` was not made from ``base``, has no patch that it lacks, or has one that cannot be
            weighed.
    """
    before, after = _patches(base), _patches(model)
    missing = [(where, p) for where, p in _all(before) if not _in(p, after.get(where, ()))]
    if model.model is not base.model or missing:
        told = f"has patches that model lacks ({name_of(missing[0][1])})" if missing else "is another model"
        raise LayeredError(
            f"base: {told}. Connect to base the MODEL that went into the node whose control is to be weighed, and "
            f"to model what came out of it"
        )
    new = [(w, p) for w, p in _all(after) if not _in(p, before.get(w, ())) and not isinstance(p, Weighed)]
    if not new:
        raise invalid(
            "model: number of patches that base lacks", 0, "1 or more",
            "Connect to model what came out of the node that applies the model patch, and to base what went in",
        )  # fmt: skip
    unit = replace(mask, patch=_patch_side(model), multiple=_multiple(model))
    wrapped = {id(p): _kind(where, p)(p, unit) for where, p in new}
    clone = model.clone()
    clone.model_options["transformer_options"]["patches"] = {
        where: [wrapped.get(id(p), p) for p in group] for where, group in after.items()
    }
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    clone.remove_wrappers_with_key(kind, KEY)
    clone.add_wrapper_with_key(kind, KEY, sample)
    return clone


def other_changes(
    model: comfy.model_patcher.ModelPatcher, base: comfy.model_patcher.ModelPatcher
) -> list[str]:
    """Return what ``model`` has besides patches that differs from ``base``; masks do not weigh it."""
    options, own = (dict(m.model_options) for m in (model, base))
    inner, own_inner = ({**o.pop("transformer_options", {})} for o in (options, own))
    for patches in (inner, own_inner):
        patches.pop("patches", None)
    found = {
        "weights, e.g. a LoRA": model.patches_uuid == base.patches_uuid,
        "sampling options": _same(options, own),
        "transformer options": _same(inner, own_inner),
        "wrappers": _same(_wrappers(model), _wrappers(base)),
        "replaced parts": _same(model.object_patches, base.object_patches),
    }
    return [name for name, same in found.items() if not same]


def name_of(patch: Any) -> str:
    """Return the name of a patch's class or function."""
    function = patch[-1] if isinstance(patch, tuple) and patch else patch
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def _kind(where: str, patch: Any) -> type[Weighed]:
    own = _LLLITE if type(patch).__module__ == "comfy.ldm.anima.lllite" else {}
    kind = _KINDS.get(where) or own.get(type(patch).__name__)
    if kind is None or not callable(patch):
        raise invalid(
            f"model: place of the patch {name_of(patch)}",
            where,
            f"{', '.join(_KINDS)}, and those of Anima LLLite. Elsewhere it is not known which part of the picture "
            "a patch changes",
            "Connect a model with this patch to base too, so that it acts everywhere",
        )
    return kind


def _patches(model: comfy.model_patcher.ModelPatcher) -> dict[str, list[Any]]:
    """Return the patches between a model's blocks by place."""
    patches: dict[str, list[Any]] = model.model_options.get("transformer_options", {}).get("patches", {})
    return patches


def _all(patches: Mapping[str, Sequence[Any]]) -> list[tuple[str, Any]]:
    return [(where, patch) for where, group in patches.items() for patch in group]


def _in(patch: Any, group: Sequence[Any]) -> bool:
    """Return whether a group has this very patch: clones of a model share patches, and some have no ``==``."""
    return any(patch is other for other in group)


def _wrappers(model: comfy.model_patcher.ModelPatcher) -> dict[str, Any]:
    """Return the wrappers of other nodes on a model."""
    groups = {
        kind: {k: w for k, w in group.items() if w and k != KEY} for kind, group in model.wrappers.items()
    }
    return {kind: group for kind, group in groups.items() if group}


def _same(one: Any, other: Any) -> bool:
    """Return whether options are the same objects; clones of a model have copies of dicts and lists."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other or (isinstance(one, (bool, int, float, str)) and one == other)


def _patch_side(model: comfy.model_patcher.ModelPatcher) -> int:
    """Return the side of the square of latent cells that one token stands for."""
    network = model.model.diffusion_model
    if (
        getattr(getattr(network, "img_in", None), "in_features", 0)
        == model.model.latent_format.latent_channels
    ):
        return 1  # Lens names the patches that its VAE makes
    side = getattr(network, "patch_spatial", None) or getattr(network, "patch_size", 1)
    return int(side[-1] if isinstance(side, (tuple, list)) else side)


def _multiple(model: comfy.model_patcher.ModelPatcher) -> int:
    return int(getattr(model.model.diffusion_model, "pad_tokens_multiple", None) or 1)
