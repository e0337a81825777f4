"""Make a layer ready for ComfyUI's Train LoRA."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.attention.words import layer_words
from ...layered_core.document import LayerDocument
from ...layered_core.learning.lesson import CONTEXTS, LearnSettings, find_subjects, plan_lesson
from ...layered_core.learning.placings import placed, seen_inside
from ...layered_core.learning.wording import join
from ...layered_core.progress import steps
from ..attention.embeddings import EMBEDDING, check_words
from ..layers.socket import LAYERS, read_stack
from ..noise.repaint_parts import vae_unit

CATEGORY = "layered diffusion/training"

KEY = "layered_diffusion_training"
"""The key of a training picture in a conditioning."""


@dataclass(frozen=True, eq=False)
class TrainingPicture:
    """The value under :data:`KEY` in a conditioning: the picture that belongs to its words."""

    latent: Tensor
    """In the VAE's scale, ``[1, C, ..., h, w]``."""
    mask: Tensor
    """Where the layer is seen, ``[1, h, w]`` in 0..1."""


class LayerTrainingData(io.ComfyNode):
    """Make pictures and words of a layer, as Train LoRA takes them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayerTrainingData",
            display_name="Training Data from Layer",
            category=CATEGORY,
            description=(
                "Make pictures and words of one layer, as ComfyUI's Train LoRA takes them: the layer in "
                "many places, mirrored and scaled, each with the layer's words. With the model of this "
                "node, only what lies inside the layer is learnt. Save LoRA for Layer then puts the LoRA "
                "into the layer's recipe."
            ),
            search_aliases=["train lora", "lora from layer", "dataset", "fine-tuning", "dreambooth",
            "training images"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA is for. It is not changed."),
                io.Clip.Input("clip", tooltip="Encodes the layer's words."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                LAYERS.Input("layers", tooltip="The stack with the layer."),
                io.String.Input("layer", default="", tooltip="Name of the layer to learn from. It needs a "
                "picture and words that say what it shows."),
                io.Int.Input("count", default=8, min=1, max=256, tooltip="Number of pictures, 1 to 256. The "
                    "first shows the layer as it is, the others show it elsewhere. Neutral: 1."
                    " The default is 8, so that not one place alone is learnt."),
                io.Combo.Input(
                    "context", options=list(CONTEXTS), default=CONTEXTS[0],
                    tooltip="composite: the layer on those behind it. grey: the layer alone on grey, which "
                        "suits cut-outs on a rough collage. Neutral: none.",
                ),
                io.Boolean.Input("flips", default=True, tooltip="Mirror the layer in half of the pictures; "
                    "switch it off for letters. Neutral: off."
                    " The default is on, so that both directions are learnt."),
                io.Boolean.Input("moves", default=True, tooltip="Scale the layer by 0.7 to 1 and move it. "
                    "Neutral: off."
                    " The default is on, so that the place is not learnt."),
                io.Boolean.Input("masked", default=True, tooltip="Learn only what lies inside the layer. "
                    "Train LoRA must get the model of this node. Neutral: off."
                    " The default is on, so that what is around the layer is not learnt."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                    tooltip="Seed of the places. Neutral: any."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For Train LoRA: a clone of the model whose "
                    "error counts inside the layer alone; the very same model if masked is off."),
                io.Latent.Output(display_name="latents", tooltip="The pictures, for Train LoRA."),
                io.Conditioning.Output(display_name="positive", tooltip="The words of each picture, for "
                    "Train LoRA. Its batch size must stay 1: it would mix the words of a batch."),
                io.Image.Output(display_name="images", tooltip="The pictures, to look at."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE,
        layers: Mapping[str, Any], layer: str, count: int, context: str, flips: bool, moves: bool, masked: bool,
        seed: int,
    ) -> io.NodeOutput:  # fmt: skip
        """Draw the pictures, encode them and their words."""
        document = read_stack(layers)
        check_words(clip, layer_words(document.layer(layer), EMBEDDING), f"layer {layer!r}: ")
        lessons = [
            _lesson(document, layer, context, number, vae_unit(vae), flips, moves, seed)
            for number in range(count)
        ]
        pictures, latents, positive, encoded = [], [], [], {}
        for picture, mask, text in steps(lessons):
            pictures.append(picture.permute(1, 2, 0))
            latents.append(vae.encode(pictures[-1][None]))
            if text not in encoded:
                encoded[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text), show_pbar=False)[0]
            words, options = encoded[text]
            own = {KEY: TrainingPicture(latents[-1], mask[None])} if masked else {}
            positive.append([words, {**options, **own}])
        shown = torch.stack(pictures).to(comfy.model_management.intermediate_device())
        return io.NodeOutput(
            masking(model) if masked else model, {"samples": torch.cat(latents)}, positive, shown
        )


def masking(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """Return a clone of a MODEL that predicts training pictures rightly wherever their layer is not seen."""
    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(_inside)
    return clone


def _inside(prediction: Mapping[str, Any]) -> Tensor:
    denoised = prediction["denoised"]
    own = [entry[KEY] for entry in prediction["cond"] or () if KEY in entry]
    if len(own) != len(denoised):
        return denoised
    latents = torch.cat([picture.latent for picture in own]).to(denoised)
    masks = torch.cat([picture.mask for picture in own]).to(denoised.device)
    return seen_inside(denoised, prediction["model"].process_latent_in(latents), masks)


def _lesson(
    document: LayerDocument,
    name: str,
    context: str,
    number: int,
    unit: int,
    flips: bool,
    moves: bool,
    seed: int,
) -> tuple[Tensor, Tensor, str]:
    """Return one training picture ``[3, H, W]``, the layer's mask ``[h, w]`` in it, and its words."""
    subject, before = find_subjects(document, [name])[0], document.layer(name)
    if number:
        chance = random.Random(f"{seed}/{number}")  # no secret
        after = placed(before, document, chance, flips=flips, moves=moves)
        document = replace(document, layers=tuple(after if x is before else x for x in document))
    height, width = (max(1, round(side / unit)) for side in (document.height, document.width))
    settings = LearnSettings(context=context)
    lesson = plan_lesson(document, [subject], settings, (height * unit, width * unit), (height, width))
    words: tuple[str | int, ...] = (layer_words(before, EMBEDDING),)
    if context == "composite" and number % 2:
        behind = ", ".join(x for x in lesson.behind[0] if x != subject.prompt)
        words = join(words, behind, more_first=False)
    return lesson.pictures[0], lesson.masks[0, 0], "".join(str(piece) for piece in words)
