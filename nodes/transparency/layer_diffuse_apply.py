"""LayerDiffuse: a UNet that paints transparent layers, or what belongs in front of, behind or around given
ones.

The node reads the file and lays what it says on a clone of the MODEL. Weights are patched by ComfyUI's own
means; everything else is made when a run begins, in that run's own copy of the model's options, and is gone
with it.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from torch import Tensor

from ...layered_core.errors import LayeredError, check_number, invalid
from ...layered_core.transparency.layer_diffuse_files import LAYER_DIFFUSE_MODES, LayerDiffuseMode, mode_of
from ...layered_core.transparency.layer_diffuse_frames import (
    AttentionSharing,
    check_frames,
    check_modules,
    is_attention_sharing,
)
from ...layered_core.transparency.layer_diffuse_weights import (
    Patches,
    check_pictures,
    over_mid_grey,
    read_patches,
)
from .layer_diffuse_run import KEY, ModelChange, attentions_of, sample_with_change
from .layer_model import layer_model_choices, read_layer_model

_PREFIX = "diffusion_model."


class LayerDiffuseApply(io.ComfyNode):
    """A model that makes layers, by a published LayerDiffuse file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayerDiffuseApply",
            display_name="LayerDiffuse Apply",
            category="layered diffusion/transparency",
            description=(
                "Let a model paint a transparent layer, or the foreground, background or blend that belongs "
                "to given pictures. "
                "Files come from models/layer_model under their published names. Decode foregrounds with "
                "Transparent Decode."
            ),
            search_aliases=["layerdiffuse", "layer diffusion", "layered diffusion apply", "transparent",
            "alpha", "rgba", "foreground", "background"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SDXL or the storybook model, as the file wants it. "
                "It is patched as a clone."),
                io.DynamicCombo.Input(
                    "mode", options=[io.DynamicCombo.Option(m.name, _inputs(m)) for m in LAYER_DIFFUSE_MODES],
                    tooltip="What is made from what: 'a to b' makes b for a given picture a. One that makes "
                    "several wants a batch of as many.",
                ),
                io.Float.Input("weight", default=1.0, min=0.0, max=2.0, step=0.05, tooltip="How far the file "
                "changes the model, 0 to 2. Neutral: 0."),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="Share of the sampling at which it begins, 0 to 1. Neutral: 0.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="Share of the sampling at which it ends and the base model goes on alone, 0 to "
                    "1. Neutral: 1.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, mode: Mapping[str, Any], weight: float, start_percent: float, end_percent: float
    ) -> io.NodeOutput:
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
            raise LayeredError(
                "model: it comes from LayerDiffuse Apply already, and two files do not act together. Connect "
                "the base model"
            )
        pictures = {p: _picture(p, mode) for p in chosen.takes}
        sizes = {p: (image.shape[-2], image.shape[-1]) for p, image in pictures.items()}
        change = partial(ModelChange, chosen, weight, start_percent, end_percent, sizes)
        if sharing:
            acting = change(**_share(clone, unet, weights, chosen, mode, family, pictures))
        else:
            patches = _fitting(unet, weights, chosen, mode, family)
            latents = _encoded(clone, mode["vae"], pictures) if pictures else None
            acting = change(
                hook=_patch(clone, patches, weight, start_percent, end_percent),
                concat=patches.concat,
                latents=latents,
            )
        clone.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY, partial(sample_with_change, acting)
        )
        return io.NodeOutput(clone)


def _inputs(mode: LayerDiffuseMode) -> list[io.Input]:
    """What a mode needs."""
    choices = layer_model_choices(mode.task)
    inputs: list[io.Input] = [
        io.Combo.Input(
            "file", options=choices, default=choices[0],
            tooltip="A .safetensors file of models/layer_model. Published files that are missing are listed "
            "too: running says where they come from.",
        )
    ]  # fmt: skip
    for picture in mode.takes:
        alpha = " Its alpha counts: give RGBA (Join Image with Alpha)." if picture == "foreground" else ""
        inputs.append(
            io.Image.Input(
                picture,
                tooltip=f"The given {picture}, of the size that is sampled, one or one a latent.{alpha}",
            )
        )
    if mode.takes:
        inputs.append(
            io.Vae.Input(
                "vae",
                optional=len(mode.makes) > 1,
                tooltip="Encodes the given pictures. SD1.5's files do without.",
            )
        )
    if len(mode.makes) > 1:
        for frame in mode.makes:
            inputs.append(
                io.Conditioning.Input(
                    f"{frame}_words",
                    optional=True,
                    tooltip=f"Words for the {frame} alone. Not connected: the sampler's positive.",
                )
            )
    return inputs


def _picture(name: str, mode: Mapping[str, Any]) -> Tensor:
    """A given picture over mid-grey, ``[B, 3, H, W]``."""
    image = mode.get(name)
    if image is None:
        raise LayeredError(f"{name}: nothing is connected. The mode {mode['mode']!r} needs a picture there")
    return over_mid_grey(image.movedim(-1, 1).float())


def _hookable(model: Any) -> comfy.model_patcher.ModelPatcher:
    """A clone whose weights can change on the way: not one that ComfyUI loads piece by piece ("dynamic", on
    hosts that have it)."""
    dynamic = getattr(model, "is_dynamic", None)
    return model.get_non_dynamic_delegate() if dynamic is not None and dynamic() else model.clone()


def _fitting(
    unet: UNetModel,
    weights: Mapping[str, Tensor],
    chosen: LayerDiffuseMode,
    mode: Mapping[str, Any],
    family: str,
) -> Patches:
    """The file's patches, checked against the model and the mode."""
    shapes = {name: tuple(p.shape) for name, p in unet.named_parameters()}
    patches = read_patches(weights, shapes, unet.num_res_blocks[0], mode["file"], family)
    check_pictures(patches, chosen, mode["file"])
    if chosen.takes and mode.get("vae") is None:
        raise LayeredError(
            f"vae: nothing is connected. The mode {chosen.name!r} encodes the given pictures with it"
        )
    return patches


def _patch(
    clone: comfy.model_patcher.ModelPatcher, patches: Patches, weight: float, start: float, end: float
) -> comfy.hooks.WeightHook | None:
    """Put the patches of weights on the model, for good or, where they begin or end on the way, as a hook."""
    forms: dict[str, Any] = {f"{_PREFIX}{k}": ("diff", (v,)) for k, v in patches.diff.items()}
    forms |= {
        f"{_PREFIX}{k}": comfy.weight_adapter.LoRAAdapter(set(), (v.up, v.down, v.alpha, None, None, None))
        for k, v in patches.lora.items()
    }
    if (start, end) == (0, 1):
        clone.add_patches(forms, weight)
        return None
    hook = comfy.hooks.WeightHook(strength_model=weight)
    clone.add_hook_patches(hook, forms, weight)
    return hook


def _encoded(clone: comfy.model_patcher.ModelPatcher, vae: Any, pictures: Mapping[str, Tensor]) -> Tensor:
    """The pictures' latents beside each other, in the model's scale."""
    batches = {len(p) for p in pictures.values()}
    if len(batches - {1}) > 1:
        raise invalid("given pictures: batch sizes", sorted(batches), "one picture, or as many of each")
    latents = [clone.model.process_latent_in(vae.encode(p.movedim(1, -1))) for p in pictures.values()]
    return torch.cat([x.expand(max(batches), -1, -1, -1) for x in latents], 1)


def _share(
    clone: comfy.model_patcher.ModelPatcher, unet: UNetModel, weights: Mapping[str, Tensor], chosen: LayerDiffuseMode,
    mode: Mapping[str, Any], family: str,
    pictures: Mapping[str, Tensor],
) -> dict[str, Any]:  # fmt: skip
    """Put the units of a file beside the model; what :class:`ModelChange` says of them."""
    network = AttentionSharing.from_weights(weights, mode["file"])
    check_frames(network, chosen, mode["file"])
    modules = [(m.to_q.in_features, m.to_k.in_features) for m in attentions_of(unet)]
    check_modules(network, modules, mode["file"], family)
    network = network.to(clone.model.get_dtype_inference())
    manage = comfy.model_management
    patcher = comfy.model_patcher.ModelPatcher(
        network, load_device=clone.load_device, offload_device=manage.unet_offload_device()
    )
    clone.set_additional_models(KEY, [patcher])
    signals: tuple[Tensor, ...] = ()
    if network.encoder is not None:
        (picture,) = pictures.values()
        if len(picture) != 1:
            raise invalid(
                f"{chosen.takes[0]}: number of pictures",
                len(picture),
                "1",
                "The file takes one picture for the whole batch",
            )
        manage.load_models_gpu([patcher])
        signals = tuple(
            s.to(manage.intermediate_device())
            for s in network.encoder(picture.to(patcher.load_device, next(network.parameters()).dtype))
        )
    words = tuple(_words(f"{frame}_words", mode) for frame in chosen.makes)
    return {"sharing": network, "words": words, "signals": signals}


def _words(name: str, mode: Mapping[str, Any]) -> Tensor | None:
    given = mode.get(name)
    if given is None:
        return None
    if len(given) != 1:
        raise invalid(
            f"{name}: conditionings", len(given), "one", "Connect CLIP Text Encode as it is, nothing combined"
        )
    words: Tensor = given[0][0]
    return words[:1]
