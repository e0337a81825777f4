"""Show what layered rendering plants where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ...layered_core.errors import LayeredError
from ...layered_core.rendering.vision_guidance import vision_guidance
from ..noise.repaint_parts import vae_unit
from .parts import KEY, Entry, Led


class VisionGuidancePreview(io.ComfyNode):
    """Turn the colours that were planted in a run into pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_VisionGuidancePreview",
            display_name="Vision Guidance Preview",
            category="layered diffusion/attention",
            description=(
                "Show what Layered Rendering planted in the place of each layer, decoded at full strength on grey: "
                "the layer's colour inside, its opposite around it. Connect the positive of Layered Rendering and "
                "the latent that was sampled with it."
            ),
            search_aliases=["layered rendering", "show vision guidance", "planted colours", "lrdiff"],
            inputs=[
                io.Model.Input("model", tooltip="The model that was sampled with; it says how its latents are "
                "scaled."),
                io.Vae.Input("vae", tooltip="Decodes the colours; the VAE that belongs to the model."),
                io.Conditioning.Input("positive", tooltip="The positive of Layered Rendering, the same that the "
                "sampler got."),
                io.Latent.Input("samples", tooltip="The latent that was sampled with it, so that this node runs "
                "after the sampler."),
            ],
            outputs=[io.Image.Output(display_name="planted", tooltip="One picture for each layer that was led, "
                "from back to front; the pictures of a batch follow one another.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, vae: Any, positive: Sequence[Entry], samples: Mapping[str, Any]
    ) -> io.NodeOutput:
        """Decode what was planted."""
        job = next((options[KEY].job for _, options in positive if KEY in options), None)
        if job is None:
            raise LayeredError(
                "positive: it has no layers that are rendered. Connect the positive of Layered Rendering, with share "
                "above 0"
            )
        if not job.led:
            raise LayeredError(
                "positive: nothing was planted in a run with it. Connect the latent that was sampled with it, so that "
                "this node runs after the sampler, and set Layered Rendering's strength above 0"
            )
        unit = vae_unit(vae)
        height, width = (side * unit for side in samples["samples"].shape[-2:])
        grey = model.model.process_latent_in(vae.encode(torch.full((1, height, width, 3), 0.5)))
        pictures = [
            vae.decode(model.model.process_latent_out(grey + planted[None].view_as(grey)))
            for led in job.led.values()
            for planted in _planted(led).to(grey)
        ]
        shown = torch.cat([p.flatten(0, -4)[:, :height, :width, :3] for p in pictures])
        shown = shown.clamp(0, 1).to(comfy.model_management.intermediate_device())
        return io.NodeOutput(shown, ui=ui.PreviewImage(shown, cls=cls))


def _planted(led: Led) -> Tensor:
    """Return what was planted in a part, at strength 1, ``[B, C, h, w]``."""
    count = len(led.colours)
    return vision_guidance(led.colours, led.mask.expand(count, -1, -1), torch.ones(count))
