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

from ...layered_core.errors import LayeredError, check_number, check_whole, invalid
from ...layered_core.joint.frames import MOST_LAYERS, SceneFrames
from ...layered_core.joint.joint_files import fitting_joint, is_joint, untrained
from ...layered_core.joint.network import LayersAtOnce
from ...layered_core.transparency.layer_diffuse_files import LAYER_DIFFUSE_MODES, LayerDiffuseMode, mode_of
from ...layered_core.transparency.layer_diffuse_frames import (
    AttentionSharing,
    fitting_frames,
    is_attention_sharing,
)
from ...layered_core.transparency.layer_diffuse_weights import Patches, fitting_patches
from ...layered_core.transparency.transparent_networks import over_mid_grey
from ..layers.pictures import pictures
from ..layers.remarks import warn
from .layer_diffuse_run import KEY, ModelChange, attentions_of, sample_with_change
from .layer_model import layer_model_choices, read_joint_file, read_layer_model

NAME = "LayerDiffuse Apply"

_PREFIX = "diffusion_model."


class LayerDiffuseApply(io.ComfyNode):
    """Change a model by a published LayerDiffuse file, so that it makes layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayerDiffuseApply",
            display_name=NAME,
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
                io.Int.Input(
                    "layer_count", default=1, min=1, max=MOST_LAYERS, optional=True, advanced=True,
                    tooltip="With foreground, background and blend: how many foregrounds are made at once, 1 to "
                        "4. The batch then has 2 latents more for each scene. Neutral: 1.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The changed model, for the sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, mode: Mapping[str, Any], weight: float, start_percent: float, end_percent: float,
        layer_count: int = 1,
    ) -> io.NodeOutput:  # fmt: skip
        """Read the file, check that it fits the model, and patch a clone."""
        check_number("weight", weight, 0, 2)
        check_number("start_percent", start_percent, 0, 1)
        check_number("end_percent", end_percent, start_percent, 1)
        check_whole("layer_count", layer_count, 1, MOST_LAYERS)
        chosen = mode_of(mode["mode"])
        chosen.makes(layer_count)
        if weight == 0 or start_percent == end_percent:
            return io.NodeOutput(model)
        unet, family = checked_unet(model), family_of(model)
        joint = chosen.task == "joint"
        weights = (
            read_joint_file(mode["file"], layer_count)
            if joint
            else read_layer_model(mode["file"], chosen.task)
        )
        sharing = is_attention_sharing(weights) or is_joint(weights)
        always = (start_percent, end_percent) == (0, 1)
        clone = model.clone() if sharing or always else _hookable(model)
        pictures = {p: _picture(p, mode) for p in chosen.takes}
        sizes = {p: (image.shape[-2], image.shape[-1]) for p, image in pictures.items()}
        change = partial(ModelChange, chosen, weight, start_percent, end_percent, sizes)
        if sharing:
            if joint and (layer_count > 1 or is_joint(weights)):
                scene = SceneFrames(layer_count)
                units: AttentionSharing | LayersAtOnce = layers_at_once(
                    model, weights, scene, mode["file"], NAME
                )
            else:
                units = fitting_frames(weights, chosen, _modules(unet), mode["file"], family)
            words = _all_words(chosen, mode, layer_count)
            acting = change(sharing=units, words=words, signals=_share(clone, units, chosen, pictures))
        else:
            patches = _fitting(unet, weights, chosen, mode, family)
            latents = _encoded(clone, mode["vae"], pictures) if pictures else None
            acting = change(
                hook=_patch(clone, patches, weight, start_percent, end_percent),
                concat=patches.concat,
                latents=latents,
            )
        act(clone, acting)
        return io.NodeOutput(clone)


def checked_unet(model: comfy.model_patcher.ModelPatcher) -> UNetModel:
    """Return the UNet of a MODEL.

    Raises:
        LayeredError: it has none, or a LayerDiffuse file changes it already.
    """
    unet = model.model.diffusion_model
    unet = getattr(unet, "_orig_mod", unet)  # the model that torch.compile wrapped
    if not isinstance(unet, UNetModel):
        raise invalid(
            "model: family", family_of(model),
            "Stable Diffusion 1.5 or XL, the family that the file was made for",
        )  # fmt: skip
    if model.get_wrappers(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY):
        raise LayeredError(
            "model: it comes from LayerDiffuse Apply already, and two files do not act together. Connect "
            "the base model"
        )
    return unet


def family_of(model: comfy.model_patcher.ModelPatcher) -> str:
    """Return the name of ComfyUI's class for the kind of model."""
    return type(model.model.model_config).__name__


def layers_at_once(
    model: comfy.model_patcher.ModelPatcher, weights: Mapping[str, Tensor], scene: SceneFrames, file: str,
    node: str, enhance: float = 1.0,
) -> LayersAtOnce:  # fmt: skip
    """Return a file's units for several layers; warn if the file was trained for fewer.

    Args:
        model: has a UNet.
        weights: of the file.
        scene: the pictures that are made together.
        file, node: names of the file and of the node that runs, for errors and the warning.
        enhance: how far the layers' words are completed from the scene's, 0..1. Neutral: 0.

    Raises:
        LayeredError: the file is broken, for another model, or does not make layers at once.
    """
    network = fitting_joint(weights, _modules(checked_unet(model)), file, family_of(model))
    if told := untrained(network, scene, file):
        warn(node, told)
    return LayersAtOnce(network, scene, enhance)


def act(clone: comfy.model_patcher.ModelPatcher, change: ModelChange) -> None:
    """Let a change act in every run of a clone."""
    clone.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY, partial(sample_with_change, change)
    )


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
                optional=len(mode.kinds) > 1,
                tooltip="Encodes the given pictures. SD1.5's files do not need it.",
            )
        )
    if len(mode.kinds) > 1:
        several = " For several layers join one each, back to front (Conditioning Combine)."
        several *= mode.task == "joint"
        for frame in mode.kinds:
            inputs.append(
                io.Conditioning.Input(
                    f"{frame}_words",
                    optional=True,
                    tooltip=f"Words for the {frame} alone. Not connected: the sampler's positive is used."
                    + (several if frame == mode.kinds[0] else ""),
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


def _modules(unet: UNetModel) -> list[tuple[int, int]]:
    return [(m.to_q.in_features, m.to_k.in_features) for m in attentions_of(unet)]


def join_network(
    clone: comfy.model_patcher.ModelPatcher, units: AttentionSharing | LayersAtOnce
) -> comfy.model_patcher.ModelPatcher:
    """Let ComfyUI load a file's units beside a clone; return what manages them."""
    network = units.network if isinstance(units, LayersAtOnce) else units
    patcher = comfy.model_patcher.ModelPatcher(
        network.to(clone.model.get_dtype_inference()), load_device=clone.load_device,
        offload_device=comfy.model_management.unet_offload_device(),
    )  # fmt: skip
    clone.set_additional_models(KEY, [patcher])
    return patcher


def _share(
    clone: comfy.model_patcher.ModelPatcher, units: AttentionSharing | LayersAtOnce,
    chosen: LayerDiffuseMode, pictures: Mapping[str, Tensor],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Load a file's units beside the model; return the signals of the given picture."""
    patcher = join_network(clone, units)
    if units.encoder is None:
        return ()
    (picture,) = pictures.values()
    if len(picture) != 1:
        raise invalid(
            f"{chosen.takes[0]}: number of pictures",
            len(picture),
            "1",
            "The file takes one picture for the whole batch",
        )
    manage = comfy.model_management
    manage.load_models_gpu([patcher])
    given = picture.to(patcher.load_device, next(patcher.model.parameters()).dtype)
    return tuple(s.to(manage.intermediate_device()) for s in units.encoder(given))


def _all_words(chosen: LayerDiffuseMode, mode: Mapping[str, Any], layers: int) -> tuple[Tensor | None, ...]:
    """Return the encoded words of every picture of a scene; None: it has none of its own."""
    first, *others = chosen.kinds
    own = _words(f"{first}_words", mode, layers)
    return (*own, *(_words(f"{kind}_words", mode)[0] for kind in others))


def _words(name: str, mode: Mapping[str, Any], layers: int = 1) -> list[Tensor | None]:
    """Return an input's encoded words for each of ``layers`` pictures; a single one is for all of them."""
    given = mode.get(name)
    if given is None:
        return [None] * layers
    if len(given) not in (1, layers):
        raise invalid(
            f"{name}: number of conditionings", len(given), "1" if layers == 1 else f"1 or {layers}",
            "Connect CLIP Text Encode directly, without combining" if layers == 1
            else "Combine one for each layer, back to front",
        )  # fmt: skip
    found = [words[0][:1] for words in given]
    return found * (layers // len(found))
