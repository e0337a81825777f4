"""A stage as a graph of ordinary nodes: what Add Layer by Prompt expands to, and what its blueprint shows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import comfy.model_management
import torch
from comfy_execution.graph_utils import GraphBuilder

from ...layered_core.canvas.compositing import flat
from ...layered_core.painting.stages import DRAFT_STRENGTH, StagePlan, draft_reach, draft_steps
from ..attention.embeddings import EMBEDDING, check_words
from ..layers.lora_files import lora_file


class Sampler(NamedTuple):
    """Inputs of KSampler."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str


class StageGraph:
    """The nodes of one stage; ``graph`` holds them. Every method that paints returns the picture after, and
    what Paste Back knows of it."""

    def __init__(
        self, model: Any, clip: Any, vae: Any, plan: StagePlan, sampler: Sampler, context: float, blend: str
    ) -> None:
        """Lay the nodes that load the layer's LoRAs and encode its words.

        Raises:
            LayeredError: there is no file for a LoRA of the layer's recipe, or for an embedding.
        """
        self.graph = GraphBuilder()
        self.vae, self.plan, self.sampler, self.context, self.blend = vae, plan, sampler, context, blend
        self.sees_hole = "masked_image" in getattr(getattr(model, "model", None), "concat_keys", ())
        layer, embedding = plan.layer, plan.layer.recipe.embedding
        prompt = layer.prompt if embedding is None else f"{EMBEDDING}{embedding} {layer.prompt}"
        texts = prompt, layer.negative
        for text in texts:
            check_words(clip, text, f"layer {layer.name!r}: ")
        for lora in layer.recipe.loras:
            loaded = self.graph.node(
                "LoraLoader", model=model, clip=clip, lora_name=lora_file(layer.name, lora.name),
                strength_model=lora.strength, strength_clip=lora.strength,
            )  # fmt: skip
            model, clip = loaded.out(0), loaded.out(1)
        self.model = model
        self.words = [self.graph.node("CLIPTextEncode", clip=clip, text=text).out(0) for text in texts]
        before = flat(plan.behind).permute(1, 2, 0)[None]
        self.before = before.to(comfy.model_management.intermediate_device())

    def paint(
        self, region: Any, steps: int, denoise: float, control_net: Any = None, **plan: Any
    ) -> tuple[Any, Any]:
        """Paint into a region of the picture. ``plan``: further inputs of Regenerate Layers."""
        cut = self._cut_out(region, **plan)
        words = self._with_hole(cut)
        if control_net is not None:
            words = self._with_control(cut, words, control_net)
        _, decoded = self._sample(cut.out(0), cut.out(1), steps, denoise, words)
        pasted = self.graph.node(
            "LD_PasteBack", image=decoded, paste=cut.out(2), blend=self.blend, match_colours=True
        )
        return pasted.out(0), cut.out(2)

    def paint_first(self, denoise: float, size: int) -> tuple[Any, Any]:
        """Paint the whole canvas from words alone, where nothing is behind; opaque in the layer's place."""
        canvas = torch.ones_like(self.plan.region)[None]
        after, paste = self.paint(canvas, self.sampler.steps, denoise, feather=0, size=size)
        if self.plan.place is not None:
            paste = self._cut_out(self.plan.region[None]).out(2)
        return after, paste

    def paint_alone(self, region: Any, size: int, file: str, decoder: str) -> tuple[Any, Any]:
        """Paint the layer alone, transparent, to be brought into a region. ``size``: side of the square that
        is sampled, pixels; 0: of the canvas's area."""
        behind = self.plan.behind
        side = size or 8 * math.ceil(math.sqrt(behind.width * behind.height) / 8)
        changed = self.graph.node(
            "LD_LayerDiffuseApply", model=self.model, weight=1.0, start_percent=0.0, end_percent=1.0,
            **{"mode": "transparent layer", "mode.file": file},
        )  # fmt: skip
        empty = self.graph.node("EmptyLatentImage", width=side, height=side, batch_size=1)
        latent, decoded = self._sample(changed.out(0), empty.out(0), self.sampler.steps, 1.0, self.words)
        name = self.plan.layer.name
        made = self.graph.node("LD_TransparentDecode", image=decoded, latent=latent, file=decoder, name=name)
        return made.out(0), self._cut_out(region).out(2)

    def find_place(self) -> Any:
        """The mask of where a draft of the whole picture differs most from the picture before."""
        steps = draft_steps(self.sampler.steps)
        draft, _ = self.paint(self.plan.region[None], steps, DRAFT_STRENGTH)
        reach = draft_reach(self.plan.behind.width, self.plan.behind.height)
        return self.graph.node("LD_FindPlace", before=self.before, draft=draft, share=0.5, grow=reach).out(0)

    def _sample(
        self, model: Any, latent: Any, steps: int, denoise: float, words: list[Any]
    ) -> tuple[Any, Any]:
        """The latent, and the picture decoded from it."""
        made = self.graph.node(
            "KSampler", model=model, positive=words[0], negative=words[1], latent_image=latent,
            seed=self.plan.seed, denoise=denoise, **{**self.sampler._asdict(), "steps": steps},
        )  # fmt: skip
        return made.out(0), self.graph.node("VAEDecode", samples=made.out(0), vae=self.vae).out(0)

    def _cut_out(self, region: Any, **plan: Any) -> Any:
        return self.graph.node(
            "LD_RegenerateLayers", model=self.model, vae=self.vae, names="", noise=1.0, grow=0,
            image=self.before, mask=region, border="inside",
            **{"feather": 0, "size": 0, "context": self.context, **plan},
        )  # fmt: skip

    def _with_hole(self, cut: Any) -> list[Any]:
        """The words, and for an inpainting checkpoint the picture with a hole. Others have no channels for
        it."""
        if not self.sees_hole:
            return self.words
        shown = self.graph.node(
            "InpaintModelConditioning", positive=self.words[0], negative=self.words[1], vae=self.vae,
            pixels=cut.out(3), mask=cut.out(4), noise_mask=False,
        )  # fmt: skip
        return [shown.out(0), shown.out(1)]

    def _with_control(self, cut: Any, words: list[Any], control_net: Any) -> list[Any]:
        """The words with an inpainting ControlNet, which sees the picture with a hole."""
        given = {
            "positive": words[0], "negative": words[1], "control_net": control_net, "vae": self.vae,
            "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0,
        }  # fmt: skip
        if getattr(control_net, "concat_mask", False):
            kind, seen = "ControlNetInpaintingAliMamaApply", {"image": cut.out(3), "mask": cut.out(4)}
        else:
            kind, seen = "ControlNetApplyAdvanced", {"image": cut.out(5)}
        applied = self.graph.node(kind, **given, **seen)
        return [applied.out(0), applied.out(1)]
