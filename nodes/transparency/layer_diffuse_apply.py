"""LayerDiffuse: a UNet that paints transparent layers, or what belongs in front of, behind or around given ones.

The node reads the file and lays what it says on a clone of the MODEL. Weights are patched by ComfyUI's own means; everything else is made
when a run begins, in that run's own copy of the model's options, and is gone with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.hooks
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.weight_adapter
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy_api.latest import io
from torch import Tensor, nn

from ...layered_core.errors import LayeredError, check_number, invalid
from ...layered_core.noise.window import Window
from ...layered_core.transparency.layer_diffuse_files import MODES, Mode, mode_of
from ...layered_core.transparency.layer_diffuse_frames import (
    AttentionSharing,
    Base,
    SharingUnit,
    check_frames,
    check_modules,
    check_rows,
    frame_contexts,
    is_attention_sharing,
    signal_for,
)
from ...layered_core.transparency.layer_diffuse_weights import (
    Patches,
    check_picture,
    check_pictures,
    concat_term,
    over_mid_grey,
    read_patches,
    transformer_blocks,
    with_pictures,
)
from .layer_model import layer_model_choices, read_layer_model

KEY = "layered_diffusion_layer_diffuse"
"""Of our wrappers and models on a MODEL."""

_PREFIX = "diffusion_model."


@dataclass(frozen=True)
class _Change:
    """What the node has put on a model, for the runs to come; nothing of it changes."""

    mode: Mode
    weight: float
    start: float
    """Share of the sampling, 0..1."""
    end: float
    pictures: dict[str, tuple[int, int]]
    """Height and width of every picture that was given, pixels."""
    hook: comfy.hooks.WeightHook | None = None
    """Patches of weights that begin or end on the way; None where they stay on the model throughout."""
    concat: Tensor | None = None
    """Weights of the first convolution for the pictures' latents."""
    latents: Tensor | None = None
    """The pictures' latents beside each other, ``[B, 4 n, h, w]``."""
    sharing: AttentionSharing | None = None
    words: tuple[Tensor | None, ...] = ()
    """Every frame's own words, ``[1, T, C]``."""
    signals: tuple[Tensor, ...] = ()
    """Of the control picture."""


class LayerDiffuseApply(io.ComfyNode):
    """A model that makes layers, by a published LayerDiffuse file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the user sees."""
        return io.Schema(
            node_id="LD_LayerDiffuseApply",
            display_name="LayerDiffuse Apply",
            category="layered diffusion/transparency",
            description=(
                "Let a model paint a transparent layer, or the foreground, background or blend that belongs to given pictures. "
                "Files come from models/layer_model under their published names. Decode foregrounds with Transparent Decode."
            ),
            search_aliases=["layerdiffuse", "layer diffusion", "layered diffusion apply", "transparent", "alpha", "rgba", "foreground", "background"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SDXL or the storybook model, as the file wants it. It is patched as a clone."),
                io.DynamicCombo.Input(
                    "mode", options=[io.DynamicCombo.Option(m.name, _inputs(m)) for m in MODES],
                    tooltip="What is made from what: 'a to b' makes b for a given picture a. One that makes several wants a batch of as many.",
                ),
                io.Float.Input("weight", default=1.0, min=0.0, max=2.0, step=0.05, tooltip="How far the file changes the model, 0 to 2. Neutral: 0."),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="Share of the sampling at which it begins, 0 to 1. Neutral: 0.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="Share of the sampling at which it ends and the base model goes on alone, 0 to 1. Neutral: 1.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, mode: Mapping[str, Any], weight: float, start_percent: float, end_percent: float) -> io.NodeOutput:  # noqa: ANN401
        """Read the file, check that it fits, patch a clone."""
        check_number("weight", weight, 0, 2)
        check_number("start_percent", start_percent, 0, 1)
        check_number("end_percent", end_percent, start_percent, 1)
        chosen = mode_of(mode["mode"])
        if weight == 0 or start_percent == end_percent:
            return io.NodeOutput(model)
        unet = model.model.diffusion_model
        unet = getattr(unet, "_orig_mod", unet)  # torch.compile's
        family = type(model.model.model_config).__name__
        if not isinstance(unet, UNetModel):
            raise invalid("model: family", family, "Stable Diffusion 1.5 or XL, as the file wants it")
        weights = read_layer_model(mode["file"], chosen.task)
        sharing, always = is_attention_sharing(weights), (start_percent, end_percent) == (0, 1)
        clone = model.clone() if sharing or always else _hookable(model)
        if clone.get_wrappers(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY):
            raise LayeredError("model: it comes from LayerDiffuse Apply already, and two files do not act together. Connect the base model")
        pictures = {p: _picture(p, mode) for p in chosen.takes}
        sizes = {p: (image.shape[-2], image.shape[-1]) for p, image in pictures.items()}
        change = partial(_Change, chosen, weight, start_percent, end_percent, sizes)
        if sharing:
            acting = change(**_share(clone, unet, weights, chosen, mode, family, pictures))
        else:
            patches = _fitting(unet, weights, chosen, mode, family)
            latents = _encoded(clone, mode["vae"], pictures) if pictures else None
            acting = change(hook=_patch(clone, patches, weight, start_percent, end_percent), concat=patches.concat, latents=latents)
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY, partial(_sample, acting))
        return io.NodeOutput(clone)


def _inputs(mode: Mode) -> list[io.Input]:
    """What a mode needs."""
    choices = layer_model_choices(mode.task)
    inputs: list[io.Input] = [
        io.Combo.Input(
            "file", options=choices, default=choices[0],
            tooltip="A .safetensors file of models/layer_model. Published files that are missing are listed too: running says where they come from.",
        )
    ]  # fmt: skip
    for picture in mode.takes:
        alpha = " Its alpha counts: give RGBA (Join Image with Alpha)." if picture == "foreground" else ""
        inputs.append(io.Image.Input(picture, tooltip=f"The given {picture}, of the size that is sampled, one or one a latent.{alpha}"))
    if mode.takes:
        inputs.append(io.Vae.Input("vae", optional=len(mode.makes) > 1, tooltip="Encodes the given pictures. SD1.5's files do without."))
    if len(mode.makes) > 1:
        for frame in mode.makes:
            inputs.append(
                io.Conditioning.Input(f"{frame}_words", optional=True, tooltip=f"Words for the {frame} alone. Not connected: the sampler's positive.")
            )
    return inputs


def _picture(name: str, mode: Mapping[str, Any]) -> Tensor:
    """A given picture over mid-grey, ``[B, 3, H, W]``."""
    image = mode.get(name)
    if image is None:
        raise LayeredError(f"{name}: nothing is connected. The mode {mode['mode']!r} needs a picture there")
    return over_mid_grey(image.movedim(-1, 1).float())


def _hookable(model: Any) -> comfy.model_patcher.ModelPatcher:  # noqa: ANN401
    """A clone whose weights can change on the way: not one that ComfyUI loads piece by piece ("dynamic", on hosts that have it)."""
    dynamic = getattr(model, "is_dynamic", None)
    return model.get_non_dynamic_delegate() if dynamic is not None and dynamic() else model.clone()


def _fitting(unet: UNetModel, weights: Mapping[str, Tensor], chosen: Mode, mode: Mapping[str, Any], family: str) -> Patches:
    """The file's patches, checked against the model and the mode."""
    shapes = {name: tuple(p.shape) for name, p in unet.named_parameters()}
    patches = read_patches(weights, shapes, unet.num_res_blocks[0], mode["file"], family)
    check_pictures(patches, chosen, mode["file"])
    if chosen.takes and mode.get("vae") is None:
        raise LayeredError(f"vae: nothing is connected. The mode {chosen.name!r} encodes the given pictures with it")
    return patches


def _patch(clone: comfy.model_patcher.ModelPatcher, patches: Patches, weight: float, start: float, end: float) -> comfy.hooks.WeightHook | None:
    """Put the patches of weights on the model, for good or, where they begin or end on the way, as a hook."""
    forms: dict[str, Any] = {f"{_PREFIX}{k}": ("diff", (v,)) for k, v in patches.diff.items()}
    forms |= {f"{_PREFIX}{k}": comfy.weight_adapter.LoRAAdapter(set(), (v.up, v.down, v.alpha, None, None, None)) for k, v in patches.lora.items()}
    if (start, end) == (0, 1):
        clone.add_patches(forms, weight)
        return None
    hook = comfy.hooks.WeightHook(strength_model=weight)
    clone.add_hook_patches(hook, forms, weight)
    return hook


def _encoded(clone: comfy.model_patcher.ModelPatcher, vae: Any, pictures: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401
    """The pictures' latents beside each other, in the model's scale."""
    batches = {len(p) for p in pictures.values()}
    if len(batches - {1}) > 1:
        raise invalid("given pictures: batch sizes", sorted(batches), "one picture, or as many of each")
    latents = [clone.model.process_latent_in(vae.encode(p.movedim(1, -1))) for p in pictures.values()]
    return torch.cat([x.expand(max(batches), -1, -1, -1) for x in latents], 1)


def _share(
    clone: comfy.model_patcher.ModelPatcher, unet: UNetModel, weights: Mapping[str, Tensor], chosen: Mode, mode: Mapping[str, Any], family: str,
    pictures: Mapping[str, Tensor],
) -> dict[str, Any]:  # fmt: skip
    """Put the units of a file beside the model; what :class:`_Change` says of them."""
    network = AttentionSharing.from_weights(weights, mode["file"])
    check_frames(network, chosen, mode["file"])
    modules = [(m.to_q.in_features, m.to_k.in_features) for m in _attentions(unet)]
    check_modules(network, modules, mode["file"], family)
    network = network.to(clone.model.get_dtype_inference())
    manage = comfy.model_management
    patcher = comfy.model_patcher.ModelPatcher(network, load_device=clone.load_device, offload_device=manage.unet_offload_device())
    clone.set_additional_models(KEY, [patcher])
    signals: tuple[Tensor, ...] = ()
    if network.encoder is not None:
        (picture,) = pictures.values()
        if len(picture) != 1:
            raise invalid(f"{chosen.takes[0]}: number of pictures", len(picture), "1", "The file takes one picture for the whole batch")
        manage.load_models_gpu([patcher])
        signals = tuple(
            s.to(manage.intermediate_device()) for s in network.encoder(picture.to(patcher.load_device, next(network.parameters()).dtype))
        )
    words = tuple(_words(f"{frame}_words", mode) for frame in chosen.makes)
    return {"sharing": network, "words": words, "signals": signals}


def _words(name: str, mode: Mapping[str, Any]) -> Tensor | None:
    given = mode.get(name)
    if given is None:
        return None
    if len(given) != 1:
        raise invalid(f"{name}: conditionings", len(given), "one", "Connect CLIP Text Encode as it is, nothing combined")
    words: Tensor = given[0][0]
    return words[:1]


def _attentions(unet: UNetModel) -> list[nn.Module]:
    """Every attention of the UNet, in the order of the files."""
    blocks = [unet.get_submodule(name) for name in transformer_blocks(name for name, _ in unet.named_parameters())]
    return [attention for block in blocks for attention in (block.attn1, block.attn2)]


def _sample(change: _Change, executor: comfy.patcher_extension.WrapperExecutor, noise: Tensor, *more: Any, **named: Any) -> Tensor:  # noqa: ANN401
    """Around a whole run: check what only now is known, and install what acts in it."""
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
            raise invalid("given pictures: number", len(change.latents), f"1, or {len(noise)} as in the batch of latents")
        options.setdefault("patches", {}).setdefault("input_block_patch", []).append(run.add_pictures)
    if change.sharing is not None:
        check_rows(len(noise), change.sharing.frames)
        if any(options.get("patches_replace", {}).get(kind) for kind in ("attn1", "attn2")):
            raise LayeredError(
                "model: another node replaces its attentions (words per layer, an image adapter), which this file replaces too. Use one of them, "
                "or an SDXL file, which changes weights only"
            )
        comfy.patcher_extension.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY, run.forward, options)
    return executor(noise, *more, **named)


def _hook(change: _Change, conds: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Give every conditioning of a run the hook, with keyframes of its own: they count steps."""
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
    """One sampling run."""

    change: _Change
    window: Window
    """When the change acts; as ComfyUI's hooks count."""
    terms: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict)
    """What the pictures add to the first convolution, of one batch; the same at every step."""

    def acts(self, options: Mapping[str, Any]) -> bool:
        """Whether this step is inside the window."""
        return self.window.acts(float(options["sigmas"].flatten()[0]))

    def add_pictures(self, h: Tensor, options: Mapping[str, Any]) -> Tensor:
        """After each input block; acts on the first, a convolution."""
        if tuple(options["block"]) != ("input", 0) or not self.acts(options):
            return h
        key = h.device, h.dtype
        latents = self.change.latents
        if key not in self.terms:
            self.terms[key] = concat_term(latents.to(h), self.change.concat.to(h), self.change.weight)
        return with_pictures(h, self.terms[key])

    def forward(
        self, executor: comfy.patcher_extension.WrapperExecutor, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None,  # noqa: ANN401
        control: Any = None, transformer_options: dict[str, Any] | None = None, **more: Any,  # noqa: ANN401
    ) -> Tensor:  # fmt: skip
        """Around a forward pass: units in place of the attentions of the UNet that runs, and only while it does."""
        options = {} if transformer_options is None else transformer_options
        if not self.acts(options):
            return executor(x, timesteps, context, y, control, options, **more)
        marks = options["cond_or_uncond"]
        conditional = [mark == 0 for mark in marks for _ in range(len(x) // len(marks))]
        with self._installed(_attentions(executor.class_obj), conditional):
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
        self, module: nn.Module, unit: SharingUnit, crossed: bool, conditional: Sequence[bool], x: Tensor, context: Tensor | None = None,
        value: Tensor | None = None, mask: Tensor | None = None, transformer_options: Mapping[str, Any] | None = None,
    ) -> Tensor:  # fmt: skip
        """In place of one attention's forward."""
        seen = context if crossed else x
        if len(x) != len(conditional) or any(given is not None and given is not seen for given in (context, value)):
            raise LayeredError(
                "model: another node changes what its attentions see (HyperTile, an attention patch), which this file replaces. Use one of them, "
                "or an SDXL file, which changes weights only"
            )
        named = {"attn_precision": module.attn_precision, "transformer_options": transformer_options}

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return comfy.ldm.modules.attention.optimized_attention(q, k, v, module.heads, **named)

        base = Base(module.to_q, module.to_k, module.to_v, module.to_out, attend)
        contexts = frame_contexts(context, unit.frames, self.change.words, conditional) if crossed else None
        signal = signal_for(self.change.signals, x.shape[1])
        return unit(x, contexts, base, None if signal is None else signal.to(x), self.change.weight)
