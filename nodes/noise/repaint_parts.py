"""Functions that the nodes that redo a part of a picture share: for the picture so far, the plan, and the
latent that is sampled."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...layered_core.canvas.compositing import GREY, flat, over_colour
from ...layered_core.canvas.soft_masks import grow
from ...layered_core.document import LayerDocument
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.painting.repaint import Repaint, plan_repaint, tighten
from ..layers.pictures import one_picture
from ..layers.socket import rgba

PASTE = io.Custom("LD_PASTE")
"""The socket type of what Paste Back needs: a :class:`~layered_core.painting.repaint.Repaint`."""


def vae_unit(vae: Any) -> int:
    """Return the number of pixels that a picture's side must be a multiple of for the VAE."""
    return max(1, int(vae.spacial_compression_encode()))


def encode(vae: Any, plan: Repaint) -> dict[str, Tensor]:
    """Return the LATENT of the picture that a plan cuts out. Its noise mask is the change map, of exactly the
    latent's size."""
    samples = vae.encode(plan.cut().permute(1, 2, 0)[None])
    return {"samples": samples, "noise_mask": plan.cells(samples.shape[-2], samples.shape[-1])[None, None]}


def plan_part(
    picture: Tensor, region: Tensor, noise: float, widen: int, feather: int, size: int, context: float,
    border: str, unit: int
) -> Repaint:  # fmt: skip
    """Return a plan whose soft border lies outside or inside the widened region."""
    if border == "inside":
        region = grow(region, widen)
        widen, feather = tighten(region, feather)
    return plan_repaint(
        picture, region, noise=noise, widen=widen, soften=feather, context=context, side=size, unit=unit
    )


def picture_so_far(document: LayerDocument | None, image: Tensor | None) -> Tensor:
    """Return the picture that is to change, ``[3, H, W]``: the image, or else the composite."""
    if image is None:
        if document is None or not len(document):
            raise LayeredError("image: no picture is connected, and no layers to composite. Connect either")
        return flat(document)
    fix = "Take one picture with Get Image from Batch; repeat the latent for more results"
    picture = one_picture(image, "image", fix, batch="image batch")
    size, canvas = (
        (picture.shape[1], picture.shape[0]),
        None if document is None else (document.width, document.height),
    )
    if canvas not in (None, size):
        raise invalid(
            "image size",
            f"{size[0]}x{size[1]}",
            f"the canvas's, {canvas[0]}x{canvas[1]}",
            "Scale the picture or set the canvas",
        )
    return over_colour(rgba(picture), GREY).permute(2, 0, 1)
