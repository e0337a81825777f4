"""Carry out LayerDiffuse's change of a model during a run of ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.hooks
import comfy.model_patcher
import comfy.patcher_extension
import comfy.weight_adapter
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ...layered_core.errors import LayeredError, invalid
from ...layered_core.joint.network import LayersAtOnce
from ...layered_core.noise.window import Window
from ...layered_core.transparency.layer_diffuse_files import LayerDiffuseMode
from ...layered_core.transparency.layer_diffuse_frames import (
    AttentionSharing,
    Base,
    check_rows,
    frame_contexts,
    signal_for,
)
from ...layered_core.transparency.layer_diffuse_weights import (
    check_picture,
    concat_term,
    transformer_blocks,
    with_pictures,
)

KEY = "layered_diffusion_layer_diffuse"
"""The key of our wrappers and additional models on a MODEL."""


@dataclass(frozen=True)
class ModelChange:
    """The change that the node has put on a model, the same for every run."""

    mode: LayerDiffuseMode
    weight: float
    start: float
    """Share of the sampling at which the change begins to act, 0..1; neutral 0."""
    end: float
    """Share of the sampling at which the change stops acting, ``start``..1; neutral 1."""
    pictures: dict[str, tuple[int, int]]
    """Height and width of every given picture, pixels."""
    hook: comfy.hooks.WeightHook | None = None
    """Patches of weights that begin or end during a run; None if they stay on the model throughout."""
    concat: Tensor | None = None
    """Weights of the first convolution for the channels of the pictures' latents."""
    latents: Tensor | None = None
    """The latents of n pictures, joined along the channels, ``[B, 4 n, h, w]``."""
    sharing: AttentionSharing | LayersAtOnce | None = None
    """The units that take the place of the model's attentions, for files whose pictures attend to each other."""
    words: tuple[Tensor | None, ...] = ()
    """The encoded words of each frame, ``[1, T, C]``; None: the frame has no words of its own."""
    signals: tuple[Tensor, ...] = ()
    """The output of the file's encoder for the given picture, at each resolution."""


def frames_of(model: comfy.model_patcher.ModelPatcher) -> int:
    """Return how many pictures of one scene a model makes together; 1 if no LayerDiffuse file says otherwise."""
    wrappers = model.get_wrappers(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY)
    changes: list[ModelChange] = [wrapper.args[0] for wrapper in wrappers]
    return max((c.sharing.frames for c in changes if c.sharing is not None), default=1)


def attentions_of(unet: UNetModel) -> list[nn.Module]:
    """Return every attention of the UNet, in the order of the files."""
    blocks = [
        unet.get_submodule(name) for name in transformer_blocks(name for name, _ in unet.named_parameters())
    ]
    return [attention for block in blocks for attention in (block.attn1, block.attn2)]


def sample_with_change(
    change: ModelChange,
    executor: comfy.patcher_extension.WrapperExecutor,
    noise: Tensor,
    *more: Any,
    **named: Any,
) -> Tensor:
    """Wrap a whole sampling run: check what is known only now, and install the change."""
    guider = executor.class_obj
    for name, size in change.pictures.items():
        check_picture(name, size, (noise.shape[-2], noise.shape[-1]))
    options = guider.model_options.setdefault("transformer_options", {})
    sampling = guider.model_patcher.get_model_object("model_sampling")
    run = _Run(change, Window(sampling.percent_to_sigma(change.start), sampling.percent_to_sigma(change.end)))
    if change.hook is not None:
        _hook(change, guider.conds)
    if change.latents is not None:
        if len(noise) % len(change.latents):
            raise invalid(
                "given pictures: number",
                len(change.latents),
                f"1, or {len(noise)} as in the batch of latents",
            )
        options.setdefault("patches", {}).setdefault("input_block_patch", []).append(run.add_pictures)
    if change.sharing is not None:
        check_rows(len(noise), change.sharing.frames)
        if any(options.get("patches_replace", {}).get(kind) for kind in ("attn1", "attn2")):
            raise LayeredError(
                "model: another node replaces its attentions (words per layer, an image adapter), and "
                "this file replaces them too. Use one of the two, or an SDXL file, which changes weights "
                "only"
            )
        comfy.patcher_extension.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY, run.forward, options
        )
    return executor(noise, *more, **named)


def _hook(change: ModelChange, conds: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Give the hook to every conditioning of a run, as a copy with its own keyframes, because keyframes count
    steps."""
    hook = change.hook.clone()
    hook.hook_keyframe = comfy.hooks.HookKeyframeGroup()
    if change.start > 0:
        hook.hook_keyframe.add(comfy.hooks.HookKeyframe(0.0, 0.0, guarantee_steps=0))
    hook.hook_keyframe.add(comfy.hooks.HookKeyframe(1.0, change.start, guarantee_steps=0))
    if change.end < 1:
        hook.hook_keyframe.add(comfy.hooks.HookKeyframe(0.0, change.end, guarantee_steps=0))
    group = comfy.hooks.HookGroup()
    group.add(hook)
    with_others: dict[Any, comfy.hooks.HookGroup] = {}
    for entry in (e for conditions in conds.values() for e in conditions or ()):
        others = entry.get("hooks")
        if others not in with_others:
            with_others[others] = group if others is None else others.clone_and_combine(group)
        entry["hooks"] = with_others[others]


@dataclass
class _Run:
    """The change in one sampling run."""

    change: ModelChange
    window: Window
    """When the change acts, counted as ComfyUI's hooks count."""
    terms: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict)
    """The pictures' term, added to the first convolution, for one batch; the same at every step."""

    def acts(self, options: Mapping[str, Any]) -> bool:
        """Return whether this step is inside the window."""
        return self.window.acts(float(options["sigmas"].flatten()[0]))

    def add_pictures(self, h: Tensor, options: Mapping[str, Any]) -> Tensor:
        """Add the pictures' term. ComfyUI calls this after each input block; it acts on the first, a
        convolution."""
        if tuple(options["block"]) != ("input", 0) or not self.acts(options):
            return h
        key = h.device, h.dtype
        latents = self.change.latents
        if key not in self.terms:
            self.terms[key] = concat_term(latents.to(h), self.change.concat.to(h), self.change.weight)
        return with_pictures(h, self.terms[key])

    def forward(
        self, executor: comfy.patcher_extension.WrapperExecutor, x: Tensor, timesteps: Any = None,
        context: Any = None, y: Any = None,
        control: Any = None, transformer_options: dict[str, Any] | None = None, **more: Any,
    ) -> Tensor:  # fmt: skip
        """Wrap a forward pass: units replace the attentions of the UNet that runs, and only while it runs."""
        options = {} if transformer_options is None else transformer_options
        if not self.acts(options):
            return executor(x, timesteps, context, y, control, options, **more)
        chunks = options["cond_or_uncond"]
        conditional = [chunk == 0 for chunk in chunks for _ in range(len(x) // len(chunks))]
        with self._installed(attentions_of(executor.class_obj), conditional):
            return executor(x, timesteps, context, y, control, options, **more)

    @contextmanager
    def _installed(self, attentions: Sequence[nn.Module], conditional: Sequence[bool]) -> Iterator[None]:
        units = self.change.sharing.units
        before = [module.__dict__.get("forward") for module in attentions]
        try:
            for i, (module, unit) in enumerate(zip(attentions, units, strict=True)):
                module.forward = partial(self._attend, module, unit, i % 2 == 1, conditional)
            yield
        finally:
            for module, own in zip(attentions, before, strict=True):
                module.__dict__.pop("forward", None)
                if own is not None:
                    module.forward = own

    def _attend(
        self, module: nn.Module, unit: Callable[..., Tensor], crossed: bool, conditional: Sequence[bool], x: Tensor,
        context: Tensor | None = None,
        value: Tensor | None = None, mask: Tensor | None = None,
        transformer_options: Mapping[str, Any] | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the output of one attention, computed by ``unit``; takes the place of the attention's
        forward."""
        seen = context if crossed else x
        if len(x) != len(conditional) or any(
            given is not None and given is not seen for given in (context, value)
        ):
            raise LayeredError(
                "model: another node changes what its attentions see (HyperTile, an attention patch), "
                "and this file replaces those attentions. Use one of the two, or an SDXL file, which "
                "changes weights only"
            )
        named = {"attn_precision": module.attn_precision, "transformer_options": transformer_options}

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return comfy.ldm.modules.attention.optimized_attention(q, k, v, module.heads, **named)

        base = Base(module.to_q, module.to_k, module.to_v, module.to_out, attend)
        contexts = None
        if crossed:
            sharing = self.change.sharing
            given = frame_contexts(context, sharing.frames, self.change.words, conditional)
            contexts = sharing.texts(given)
        signal = signal_for(self.change.signals, x.shape[1])
        return unit(x, contexts, base, None if signal is None else signal.to(x), self.change.weight)
