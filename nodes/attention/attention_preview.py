"""Show where words are attended to, and make masks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import latent_preview
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ...layered_core.attention.attention_maps import (
    AttentionMaps,
    heat_pictures,
    masks_from_attention,
    needs_mask,
)
from ...layered_core.attention.regional_plan import Settings, plan_watching
from ...layered_core.document import MAX_SIDE
from ...layered_core.errors import LayeredError, invalid
from ..layers.pictures import opaque
from ..layers.socket import LAYERS, read_stack, write_stack
from ..noise.cut_out import CutOut, text_of
from .attention_patch import check_model, patched
from .conditionings import KEY
from .embeddings import EMBEDDING, check_layer_words, check_words, tell_dynamic
from .regional_prompt_attention import Texts, conditioning

CATEGORY = "layered diffusion/attention"


class AttentionPreview(io.ComfyNode):
    """Turn the attention that was recorded in a run into heat maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_AttentionPreview",
            display_name="Attention Preview",
            category=CATEGORY,
            description=(
                "Show where each layer's words were attended to while sampling; the brighter, the more. "
                "Switch 'record' on in Regional Prompt Attention, and connect its positive and the "
                "finished picture here."
            ),
            search_aliases=["attention map", "heat map", "daam", "cross attention", "show attention"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The positive of Regional Prompt Attention "
                    "with 'record' on, the same that the sampler got."),
                io.Image.Input("image", tooltip="The picture that was sampled with it; it is shown dimmed "
                "under the maps."),
                io.Int.Input(
                    "size", default=512, min=64, max=4096, step=64, advanced=True,
                    tooltip="Longer side of a map, pixels. Neutral: none."
                ),
            ],
            outputs=[io.Image.Output(display_name="maps", tooltip="One picture for each layer with "
                "words, from back to front; the pictures of a batch follow one another.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, positive: Sequence[Sequence[Any]], image: Tensor, size: int) -> io.NodeOutput:
        """Draw the maps."""
        sampled = opaque(image).cpu()
        maps = next((rest[KEY].maps for _, rest in positive if KEY in rest), None)
        if not maps:
            raise LayeredError(
                "positive: it holds no recorded attention. Connect the positive of Regional Prompt "
                "Attention with 'record' on, and the picture that was sampled with it, so that this node "
                "runs after the sampler"
            )
        shown = heat_pictures(_as_in(sampled, maps), sampled, size).to(
            comfy.model_management.intermediate_device()
        )
        preview = ui.PreviewImage(shown, cls=cls).as_dict()
        # For Layer Board, which shows them where its layers are.
        named = [
            {"name": name, "picture": dict(it)}
            for name, it in zip(maps.names, preview["images"], strict=False)
        ]
        return io.NodeOutput(shown, ui={**preview, "layer_attention": named})


def _as_in(sampled: Tensor, maps: AttentionMaps) -> AttentionMaps:
    """Return maps that lie as pictures ``[B, H, W, 3]`` do: those of the whole picture, or of its part that
    Regenerate Layers cut out."""
    cut, size = maps.part, (sampled.shape[2], sampled.shape[1])
    if not isinstance(cut, CutOut) or (size == cut.part and not cut.shows_picture(sampled)):
        return maps
    if size == cut.picture:
        return maps.laid_out((cut.part[1], cut.part[0]), cut.onto_picture)
    raise invalid(
        "image: size",
        text_of(size),
        f"{text_of(cut.part)}, the cut-out's, or {text_of(cut.picture)}, the whole picture's",
        "The run sampled what Regenerate Layers cuts out: connect the picture that was decoded from it, or "
        "that Paste Back gives",
    )


class LayerMaskFromAttention(io.ComfyNode):
    """Give layers without a mask one that is made from attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayerMaskFromAttention",
            display_name="Layer Mask from Attention",
            category=CATEGORY,
            description=(
                "Give every layer that has words but neither picture nor mask its own mask: a quick run "
                "from the words alone shows where the model would put it. A layer is looked for inside "
                "its box only."
            ),
            search_aliases=["auto mask", "attention mask", "find region", "segment", "mask from prompt"],
            inputs=[
                io.Model.Input("model", tooltip="Any model on which Regional Prompt Attention works, such "
                    "as Stable Diffusion, Flux, Qwen-Image or Z-Image; it is not changed."),
                io.Clip.Input("clip", tooltip="Encodes the words."),
                LAYERS.Input("layers", tooltip="The stack. Layers with a picture, a mask or no prompt stay "
                "as they are."),
                io.String.Input(
                    "prompt", multiline=True, default="", dynamic_prompts=True,
                    tooltip="Words for the whole picture; words of layers that are missing in it are "
                        "appended. Empty: the stack's own prompt, or the layers' prompts joined.",
                ),
                io.String.Input(
                    "negative", multiline=True, default="", dynamic_prompts=True,
                    tooltip="What the picture must not show. Neutral: empty.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                    tooltip="Seed of the noise; the seed of the final run fits best. Neutral: any.",
                ),
                io.Int.Input("steps", default=8, min=1, max=100, tooltip="Sampling steps of the quick run. "
                "Neutral: none."),
                io.Float.Input("cfg", default=4.0, min=0.0, max=100.0, step=0.1,
                    tooltip="Classifier-free guidance of the quick run; 1 for models that are sampled so, "
                        "such as Flux and Z-Image Turbo. Neutral: 1, none. "
                        "The default is 4, with which most models follow words."),
                io.Float.Input(
                    "threshold", default=0.5, min=0.0, max=1.0, step=0.05,
                    tooltip="How much attention makes a place part of the layer, from the least (0) to "
                        "the greatest (1) in the layer's box. Neutral: none.",
                ),
                io.Boolean.Input("largest", default=True, tooltip="Keep only the largest connected patch. "
                "Neutral: off. "
                "The default is on, as a layer is mostly one thing."),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="The stack; those layers now have a mask, "
                    "and the whole canvas as their box."),
                io.Mask.Output(display_name="masks", tooltip="The new masks, from back to front: 1 where "
                    "the layer is."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, layers: Mapping[str, Any],
        prompt: str, negative: str, seed: int,
        steps: int, cfg: float, threshold: float, largest: bool,
    ) -> io.NodeOutput:  # fmt: skip
        """Sample while recording attention, and return the stack with masks made from it."""
        family = check_model(model)
        document = read_stack(layers)
        cell = model.get_model_object("latent_format").spacial_downscale_ratio
        size = document.height // cell, document.width // cell
        if min(size) < 1:
            raise invalid(
                "layers: canvas", f"{document.width}x{document.height}", f"{cell}..{MAX_SIDE} pixels a side"
            )
        unmasked = [layer for layer in document if needs_mask(layer)]
        if not unmasked:
            return io.NodeOutput(layers, torch.zeros(1, *size))
        tell_dynamic("Layer Mask from Attention", document, prompt, negative)
        check_layer_words(clip, unmasked)
        texts = Texts(clip, family)
        plan = plan_watching(document, unmasked, prompt, negative, texts.tokenise, EMBEDDING)
        check_words(clip, plan.prompt, "prompt: ")
        check_words(clip, plan.negative, "negative: ")
        maps = AttentionMaps([layer.name for layer in unmasked])
        settings = Settings(mode="collage", strength=0.0)
        words = (
            conditioning(texts, "positive", plan.prompt, plan.cond, settings, maps),
            conditioning(texts, "negative", plan.negative, (), settings),
        )
        empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, *size))
        noise = comfy.sample.prepare_noise(empty, seed)
        shown = latent_preview.prepare_callback(model, steps)
        comfy.sample.sample(
            patched(model), noise, steps, cfg, "euler", "normal", *words, empty, seed=seed, callback=shown
        )
        document, masks = masks_from_attention(document, maps, size, threshold, largest)
        return io.NodeOutput(write_stack(document), masks.to(comfy.model_management.intermediate_device()))
