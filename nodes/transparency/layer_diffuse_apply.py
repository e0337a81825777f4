"""Apply LayerDiffuse to a UNet, which then paints transparent layers, or foregrounds, backgrounds and blends
for given pictures.

The node reads the file and puts its changes on a clone of the MODEL. Weights are patched by ComfyUI's own
means; everything else is made when a run begins, in that run's own copy of the model's options, and is
dropped with it.
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
    fitting_frames,
    is_attention_sharing,
)
from ...layered_core.transparency.layer_diffuse_weights import Patches, fitting_patches
from ...layered_core.transparency.transparent_networks import over_mid_grey
from ..layers.pictures import pictures
from .layer_diffuse_run import KEY, ModelChange, attentions_of, sample_with_change
from .layer_model import layer_model_choices, read_layer_model

_PREFIX = "diffusion_model."


class LayerDiffuseApply(io.ComfyNode):
    """Change a model by a published LayerDiffuse file, so that it makes layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayerDiffuseApply",
            display_name="LayerDiffuse Apply",
            category="layered diffusion/transparency",
            description=(
                "Let a model paint a transparent layer, or the foreground, background or blend that "
                "belongs to given pictures. Put files into models/layer_model under their published "
                "names. Decode foregrounds with Transparent Decode."
            ),
            search_aliases=["layerdiffuse", "layer diffusion", "layered diffusion apply", "transparent",
            "alpha", "rgba", "foreground", "background"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SDXL or the storybook model: the family that the "
                    "file was made for. A clone of it is patched."),
                io.DynamicCombo.Input(
                    "mode", options=[io.DynamicCombo.Option(m.name, _inputs(m)) for m in LAYER_DIFFUSE_MODES],
                    tooltip="What is made: 'a to b' makes b for a given picture a. A mode that makes "
                        "several pictures needs a batch of that many latents.",
                ),
                io.Float.Input("weight", default=1.0, min=0.0, max=2.0, step=0.05, tooltip="How far the file "
                "changes the model, 0 to 2. Neutral: 0. "
                "The default is 1, what the file was trained for."),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="Share of the sampling at which the file begins to act, 0 to 1. Neutral: 0.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="Share of the sampling at which the file stops acting and the base model "
                        "goes on alone, 0 to 1. Neutral: 1.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The changed model, for the sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, mode: Mapping[str, Any], weight: float, start_percent: float, end_percent: float
    ) -> io.NodeOutput:
        """Read the file, check that it fits the model, and patch a clone."""
        check_number("weight", weight, 0, 2)
        check_number("start_percent", start_percent, 0, 1)
        check_number("end_percent", end_percent, start_percent, 1)
        chosen = mode_of(mode["mode"])
        if weight == 0 or start_percent == end_percent:
            return io.NodeOutput(model)
        unet = model.model.diffusion_model
        unet = getattr(unet, "_orig_mod", unet)  # the model that torch.compile wrapped
        family = type(model.model.model_config).__name__
        if not isinstance(unet, UNetModel):
            raise invalid(
                "model: family", family, "Stable Diffusion 1.5 or XL, the family that the file was made for"
            )
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
    """Return the inputs that a mode needs."""
    choices = layer_model_choices(mode.task)
    inputs: list[io.Input] = [
        io.Combo.Input(
            "file", options=choices, default=choices[0],
            tooltip="A .safetensors file of models/layer_model. Published files that are missing are "
                "listed too: on running, the error says where to get them.",
        )
    ]  # fmt: skip
    for picture in mode.takes:
        alpha = " Its alpha counts: connect RGBA (Join Image with Alpha)." if picture == "foreground" else ""
        inputs.append(
            io.Image.Input(
                picture,
                tooltip=f"The given {picture}, of the size that is sampled; one, or one for each latent."
                f"{alpha}",
            )
        )
    if mode.takes:
        inputs.append(
            io.Vae.Input(
                "vae",
                optional=len(mode.makes) > 1,
                tooltip="Encodes the given pictures. SD1.5's files do not need it.",
            )
        )
    if len(mode.makes) > 1:
        for frame in mode.makes:
            inputs.append(
                io.Conditioning.Input(
                    f"{frame}_words",
                    optional=True,
                    tooltip=f"Words for the {frame} alone. Not connected: the sampler's positive is used.",
                )
            )
    return inputs


def _picture(name: str, mode: Mapping[str, Any]) -> Tensor:
    """Return a given picture over mid-grey, ``[B, 3, H, W]``."""
    image = mode.get(name)
    if image is None:
        raise LayeredError(
            f"{name}: nothing is connected. Connect a picture: the mode {mode['mode']!r} needs it"
        )
    return over_mid_grey(pictures(image, name).movedim(-1, 1).float())


def _hookable(model: Any) -> comfy.model_patcher.ModelPatcher:
    """Return a clone whose weights can change during a run: not one that ComfyUI loads piece by piece
    ("dynamic", on hosts that have it)."""
    dynamic = getattr(model, "is_dynamic", None)
    return model.get_non_dynamic_delegate() if dynamic is not None and dynamic() else model.clone()


def _fitting(
    unet: UNetModel,
    weights: Mapping[str, Tensor],
    chosen: LayerDiffuseMode,
    mode: Mapping[str, Any],
    family: str,
) -> Patches:
    """Return the file's patches, checked against the model and the mode."""
    shapes = {name: tuple(p.shape) for name, p in unet.named_parameters()}
    patches = fitting_patches(weights, chosen, shapes, unet.num_res_blocks[0], mode["file"], family)
    if chosen.takes and mode.get("vae") is None:
        raise LayeredError(
            f"vae: nothing is connected. Connect a VAE: the mode {chosen.name!r} encodes the given pictures "
            f"with it"
        )
    return patches


def _patch(
    clone: comfy.model_patcher.ModelPatcher, patches: Patches, weight: float, start: float, end: float
) -> comfy.hooks.WeightHook | None:
    """Put the patches of weights on the model. If they begin or end during a run, they become a hook, which
    is returned; otherwise they stay and None is returned."""
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
    """Return the pictures' latents, joined along the channels, in the model's scale."""
    batches = {len(p) for p in pictures.values()}
    if len(batches - {1}) > 1:
        raise invalid(
            "given pictures: batch sizes", sorted(batches), "one picture of each kind, or equally many"
        )
    latents = [clone.model.process_latent_in(vae.encode(p.movedim(1, -1))) for p in pictures.values()]
    return torch.cat([x.expand(max(batches), -1, -1, -1) for x in latents], 1)


def _share(
    clone: comfy.model_patcher.ModelPatcher, unet: UNetModel, weights: Mapping[str, Tensor],
    chosen: LayerDiffuseMode, mode: Mapping[str, Any], family: str,
    pictures: Mapping[str, Tensor],
) -> dict[str, Any]:  # fmt: skip
    """Load a file's attention-sharing units beside the model; return the fields of :class:`ModelChange` that
    describe them."""
    modules = [(m.to_q.in_features, m.to_k.in_features) for m in attentions_of(unet)]
    network = fitting_frames(weights, chosen, modules, mode["file"], family)
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
            f"{name}: number of conditionings",
            len(given),
            "1",
            "Connect CLIP Text Encode directly, without combining",
        )
    words: Tensor = given[0][0]
    return words[:1]
