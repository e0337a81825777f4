"""Which family of transformers a MODEL is of, and what to do with those on which words per layer do not act."""

from __future__ import annotations

from typing import Any

import comfy.ldm.anima.model
import comfy.ldm.chroma.model
import comfy.ldm.flux.model
import comfy.ldm.krea2.model
import comfy.ldm.lumina.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.qwen_image.model
import comfy.model_base
import comfy.model_patcher
from torch import nn

from ...layered_core.attention.families import FAMILIES, Family

WORKING = "Stable Diffusion 1.x, 2.x and XL, and " + ", ".join(f.name for f in FAMILIES.values())
"""The families on which words per layer act, for messages."""

_KINDS: dict[type, tuple[str, type]] = {
    comfy.model_base.Flux: ("flux", comfy.ldm.flux.model.Flux),
    comfy.model_base.Flux2: ("flux2", comfy.ldm.flux.model.Flux),
    comfy.model_base.Chroma: ("chroma", comfy.ldm.chroma.model.Chroma),
    comfy.model_base.QwenImage: ("qwen", comfy.ldm.qwen_image.model.QwenImageTransformer2DModel),
    comfy.model_base.Lumina2: ("lumina2", comfy.ldm.lumina.model.NextDiT),
    comfy.model_base.SD3: ("sd3", comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper),
    comfy.model_base.Krea2: ("krea2", comfy.ldm.krea2.model.SingleStreamDiT),
    comfy.model_base.Anima: ("anima", comfy.ldm.anima.model.Anima),
}
"""By ComfyUI's class of the whole model: the family's key, and the class of its network. A network of another
class, such as Nunchaku's, computes its attention elsewhere."""

_BOXES = ("Ideogram", "Fibo", "MOSS")
"""Beginnings of the names of models that were trained on boxes in the prompt."""


def network_of(model: Any) -> nn.Module:
    """Return the network of ComfyUI's model, as it was before torch.compile."""
    network: nn.Module = model.diffusion_model
    return getattr(network, "_orig_mod", network)


def family_of(patcher: comfy.model_patcher.ModelPatcher) -> Family | None:
    """Return the family of a transformer on which words per layer act, or None."""
    key, kind = _KINDS.get(type(patcher.model), (None, None))
    network = network_of(patcher.model)
    if key is None or kind is None or type(network) is not kind:
        return None
    if key == "lumina2" and getattr(network, "pad_tokens_multiple", None):
        return FAMILIES["zimage"]
    return FAMILIES[key]


def way_out(patcher: comfy.model_patcher.ModelPatcher) -> str:
    """Return what works with a model on which words per layer do not act, for an error."""
    if type(patcher.model).__name__.startswith(_BOXES):
        return "This model was trained on boxes in its prompt: connect Layout from Layers to its prompt node"
    if type(patcher.model) in _KINDS:
        return (
            f"Its network is a {type(network_of(patcher.model)).__name__}, whose attention cannot be reached: "
            "load the model with ComfyUI's own loader, or use Conditioning (Set Mask)"
        )
    return "Use ComfyUI's Conditioning (Set Mask) with this model"
