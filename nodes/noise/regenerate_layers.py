"""Redo a part of a picture, and put it back so that nothing else has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.control.control_map import inpaint_hint
from ...layered_core.document import MAX_SIDE, LayerDocument
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.painting.pasting import BLENDS
from ...layered_core.painting.repaint import Repaint, region_of
from ..layers.pictures import one_mask, opaque, pictures
from ..layers.socket import LAYERS, read_stack
from .change_map_patch import with_change_map
from .cut_out import CutOut
from .repaint_parts import PASTE, encode, picture_so_far, plan_part, vae_unit

BORDERS = ("outside", "inside")
"""Where the soft border of a region lies."""


class RegenerateLayers(io.ComfyNode):
    """Make latents of a picture in which only some layers, or a mask, may change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_RegenerateLayers",
            display_name="Regenerate Layers",
            category="layered diffusion/noise",
            description=(
                "Redo some layers of a picture and nothing else: sample the latent with the model, "
                "decode it, and connect the decoded picture and paste to Paste Back. Small regions can be "
                "cut out with their surroundings and sampled at the model's own size."
            ),
            search_aliases=["redo layer", "inpaint layer", "change only this", "crop and stitch", "inpaint",
            "regenerate", "replace object"],
            inputs=[
                io.Model.Input("model", tooltip="A clone of it is patched; the model itself is not changed."),
                io.Vae.Input("vae", tooltip="Encodes the part that is sampled."),
                io.String.Input(
                    "names", default="", multiline=True,
                    tooltip="Names of the layers to redo, one a line or separated by commas; empty if a "
                        "mask is connected. Neutral: none.",
                ),
                io.Float.Input(
                    "noise", default=1.0, min=0.0, max=1.0, step=0.05,
                    tooltip="How far those layers may change, 0 (not at all) to 1 (made anew). Neutral: "
                        "0, the picture stays as it is. "
                        "The default is 1, as one redoes a layer to get another.",
                ),
                io.Int.Input(
                    "grow", default=4, min=-1024, max=1024,
                    tooltip="Widen the region on every side, pixels; negative values narrow it. Neutral: 0. "
                        "The default is 4, so that no rim of the old layer is left.",
                ),
                io.Int.Input(
                    "feather", default=8, min=0, max=1024,
                    tooltip="Width of the soft border, pixels. Beyond it no pixel changes. Neutral: 0. "
                        "The default is 8, so that no edge is seen.",
                ),
                io.Int.Input(
                    "size", default=0, min=0, max=MAX_SIDE, step=8,
                    tooltip="Side at which a small region is sampled, pixels, e.g. 512 or 1024: it is cut "
                    "out and scaled up. Neutral: 0, the "
                    "whole picture is sampled.",
                ),
                io.Float.Input(
                    "context", default=0.5, min=0.0, max=16.0, step=0.1,
                    tooltip="With a size: how much of the surroundings is cut out too, as a share of the "
                        "region's longer side. Neutral: any, without a size.",
                ),
                io.Combo.Input(
                    "border", options=list(BORDERS), default=BORDERS[0], advanced=True,
                    tooltip="Where the soft border lies: outside the region, or inside it, so that "
                        "nothing outside the region changes. Neutral: outside.",
                ),
                LAYERS.Input("layers", optional=True, tooltip="The stack that the picture was made from. "
                    "Not needed if image and mask are connected."),
                io.Image.Input(
                    "image", optional=True,
                    tooltip="The picture so far; it must have the canvas's size. Not connected: the layers, as "
                        "Layer Composite shows them with rules photoshop and backdrop grey."
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="The region to redo, instead of layers: 1 is where the picture may change. "
                        "It must have the picture's size."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model for the sampler. It samples "
                    "latents without a noise mask as usual."),
                io.Latent.Output(display_name="latent", tooltip="For the sampler: the part that is "
                    "sampled, with its noise mask."),
                PASTE.Output(display_name="paste", tooltip="For Paste Back, together with the decoded "
                "picture."),
                io.Image.Output(display_name="cut out", tooltip="The picture that is sampled, for "
                    "Inpaint Model Conditioning or a ControlNet."),
                io.Mask.Output(display_name="cut out mask", tooltip="1 is where the cut out picture may "
                "change, for Inpaint Model Conditioning."),
                io.Image.Output(
                    display_name="inpaint hint",
                    tooltip="The cut out picture with -1 where it may change: for Apply ControlNet with "
                    "SD1.5's inpainting ControlNet.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, vae: Any, names: str, noise: float, grow: int, feather: int, size: int,
        context: float, border: str,
        layers: Mapping[str, Any] | None = None, image: Tensor | None = None, mask: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        """Plan the change, cut the part out, encode it, and patch the model."""
        document = None if layers is None else read_stack(layers)
        picture = picture_so_far(document, image)
        region = _region(document, names, mask)
        plan = plan_part(picture, region, noise, grow, feather, size, context, border, vae_unit(vae))
        device = comfy.model_management.intermediate_device()
        cut, cut_mask = plan.cut().permute(1, 2, 0)[None].to(device), plan.cut_mask()[None].to(device)
        hint = inpaint_hint(plan.cut(), plan.cut_mask()).permute(1, 2, 0)[None].to(device)
        latent = encode(vae, plan)
        patched = with_change_map(model, cut=CutOut(plan, latent["samples"]))
        return io.NodeOutput(patched, latent, plan, cut, cut_mask, hint)


class PasteBack(io.ComfyNode):
    """Put the sampled part back into the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_PasteBack",
            display_name="Paste Back",
            category="layered diffusion/noise",
            description=(
                "Put the sampled part back into the picture that it was cut from, without a seam. "
                "Outside the soft mask every pixel stays as it was. The result has the size of the "
                "picture before."
            ),
            search_aliases=["stitch", "paste", "uncrop", "blend", "poisson", "seamless clone", "inpaint "
            "composite"],
            inputs=[
                io.Image.Input("image", tooltip="The decoded picture of the sampled part; a batch gives "
                    "a batch."),
                PASTE.Input("paste", tooltip="From the node that gave the latent: Regenerate Layers or "
                "Per-Layer Freedom (SDEdit)."),
                io.Combo.Input(
                    "blend", options=list(BLENDS), default=BLENDS[0],
                    tooltip="gradient: shifts the new part's colours so that they match the surroundings "
                        "at the border. multi-band: mixes broad forms over a wide border and details over "
                        "a narrow one. feather: mixes by the mask only. Neutral: feather. "
                        "The default is gradient, which hides the seam best.",
                ),
                io.Boolean.Input(
                    "match_colours", default=True,
                    tooltip="First undo the shift of colours by the VAE or by few steps, as measured "
                        "outside the mask. Neutral: off. "
                        "The default is on, because every VAE shifts colours a little.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The whole picture."),
                io.Mask.Output(display_name="mask", tooltip="1 is where the picture is new, 0 where it "
                    "is the picture before; values between at the soft border."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, image: Tensor, paste: Repaint, blend: str, match_colours: bool) -> io.NodeOutput:
        """Paste the part into the picture."""
        if not isinstance(paste, Repaint):
            raise invalid(
                "paste", paste, "the paste output of Regenerate Layers or Per-Layer Freedom (SDEdit)"
            )
        sampled = pictures(image)
        if sampled.shape[-1] == 4:
            # A VAE with alpha gives what is to be laid over the picture before.
            before = paste.cut().movedim(0, -1).to(sampled)
            if sampled.shape[1:3] == before.shape[:2]:
                sampled = opaque(sampled, backdrop=before)
        out = paste.paste(sampled[..., :3].movedim(-1, 1).float(), blend, match_colours)
        return io.NodeOutput(out.movedim(1, -1), paste.mask[None].to(out.device))


def _region(document: LayerDocument | None, names: str, mask: Tensor | None) -> Tensor:
    """Return the region to redo: the mask, or where the named layers are seen."""
    if mask is not None:
        return one_mask(mask)
    if document is None:
        raise LayeredError(
            "mask: neither a mask nor layers are connected. Connect a mask, or connect layers and name "
            "those to redo"
        )
    known = [x.name for x in document]
    lines = [line.strip() for line in names.splitlines() if line.strip()]
    # A name may contain a comma itself.
    wanted = [
        n
        for line in lines
        for n in ([line] if line in known else [part.strip() for part in line.split(",") if part.strip()])
    ]
    return region_of(document, wanted)
