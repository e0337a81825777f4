"""Sample from a composite, and harmonise or preserve each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management
from comfy_api.latest import io

from ...layered_core.canvas.backdrop import find_backdrop
from ...layered_core.canvas.compositing import flat
from ...layered_core.errors import invalid
from ...layered_core.noise.change_map import NOISES, THRESHOLDS
from ...layered_core.painting.repaint import plan_document
from ..layers.remarks import tell
from ..layers.socket import LAYERS, read_stack
from .change_map_patch import with_change_map
from .cut_out import CutOut
from .repaint_parts import PASTE, encode, vae_unit


class PerLayerSDEdit(io.ComfyNode):
    """Encode the composite of LAYERS, and patch a model so that each layer may change as far as its noise
    says."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_PerLayerSDEdit",
            display_name="Per-Layer Freedom (SDEdit)",
            category="layered diffusion/noise",
            description=(
                "Start sampling from the composite of a stack; each layer may change as far as its "
                "freedom (noise) says: 0 keeps it, 1 redraws it. Connect model and latent to any sampler at denoise 1."
            ),
            search_aliases=["Per-Layer SDEdit", "per layer noise", "denoise per layer", "harmonise",
            "harmonize", "img2img layers", "collage", "differential diffusion"],
            inputs=[
                io.Model.Input("model", tooltip="A clone of it is patched; the model itself is not changed."),
                io.Vae.Input("vae", tooltip="Encodes the composite."),
                LAYERS.Input("layers", tooltip="The stack; the freedom (noise) in each layer's recipe "
                    "counts. A layer without a picture may change freely; a backdrop, an opaque picture "
                    "without words that fills the canvas behind other layers, is kept unless its freedom was "
                    "set."),
                io.Float.Input(
                    "background", default=1.0, min=0.0, max=1.0, step=0.05,
                    tooltip="How far places that no layer covers may change, 0 (frozen) to 1 (free). "
                        "Neutral: 1.",
                ),
                io.Float.Input(
                    "blur", default=0.0, min=0.0, max=1024.0, step=0.5,
                    tooltip="Blur of the noise map, pixels (standard deviation): it makes soft "
                        "transitions between layers. Neutral: 0.",
                ),
                io.Combo.Input(
                    "threshold", options=list(THRESHOLDS), default=THRESHOLDS[0], advanced=True,
                    tooltip="absolute: noise 0.6 means the same as denoise 0.6 (schedulers normal and "
                        "simple), at any denoise of the sampler. normalised: relative to the steps that "
                        "are run, as in Differential Diffusion. Both are the same at denoise 1, except "
                        "for models with a shifted schedule (SD3, Flux). Neutral: absolute.",
                ),
                io.Combo.Input(
                    "noise", options=list(NOISES), default=NOISES[0], advanced=True,
                    tooltip="The noise that a layer gets until it is free. fixed: the sampler's own "
                        "noise. fresh: new noise at every step. Neutral: fixed.",
                ),
                io.Float.Input(
                    "dilation", default=0.0, min=0.0, max=64.0, step=0.5, advanced=True,
                    tooltip="How far kept layers reach into free ones at full noise, in latent cells; "
                        "the reach falls with the noise. Neutral: 0.",
                ),
                io.Float.Input(
                    "softness", default=0.0, min=0.0, max=1.0, step=0.05, advanced=True,
                    tooltip="How gradually a layer becomes free, in units of noise, 0 (at once) to 1. "
                        "Neutral: 0.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model for the sampler. It samples "
                    "latents without a noise mask as usual."),
                io.Latent.Output(display_name="latent", tooltip="For the sampler: the encoded composite, "
                    "with the noise map as its noise mask."),
                io.Image.Output(display_name="noise map", tooltip="The noise map as a picture: white may "
                    "change, black stays."),
                PASTE.Output(display_name="paste", tooltip="For Paste Back, after decoding: layers of "
                "freedom 0 get their own pixels back."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, vae: Any, layers: Mapping[str, Any], background: float, blur: float, threshold: str,
        noise: str, dilation: float,
        softness: float,
    ) -> io.NodeOutput:  # fmt: skip
        """Composite the stack, make its noise map, encode it, and patch the model."""
        document = read_stack(layers)
        if not len(document):
            raise invalid(
                "layers: number of layers", 0, "at least one", "Lay a picture on the stack with Load Layer"
            )
        backdrop = find_backdrop(document)
        if backdrop is not None and backdrop.recipe.noise is None:
            tell(
                cls,
                "Per-Layer SDEdit",
                [
                    f"layer {backdrop.name!r} has no words and fills the canvas behind the others: it is a backdrop "
                    "and keeps its pixels. To let it change, give it words, or set a noise for it in Edit Layer"
                ],
            )
        plan = plan_document(flat(document), document, background=background, blur=blur, unit=vae_unit(vae))
        shown = (
            plan.change[None, ..., None]
            .expand(-1, -1, -1, 3)
            .to(comfy.model_management.intermediate_device())
        )
        latent = encode(vae, plan)
        cut = CutOut(plan, latent["samples"])
        patched = with_change_map(model, threshold, noise, dilation, softness, cut)
        return io.NodeOutput(patched, latent, shown, plan)
