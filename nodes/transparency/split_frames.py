"""Split a batch in which pictures of several kinds take turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ...layered_core.errors import LayeredError
from ...layered_core.transparency.layer_diffuse_frames import check_rows
from ..layers.pictures import pictures

_MOST = 3

_FIX = "Set frames to the number of pictures of each scene"


class SplitFrames(io.ComfyNode):
    """Split what LayerDiffuse makes together into batches of their own: foregrounds, backgrounds, blends."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        numbers = ("first", "second", "third")
        outputs: list[io.Output] = [
            io.Image.Output(
                display_name=f"{n} image",
                tooltip=f"The {n} picture of every scene; empty if there is none.",
            )
            for n in numbers
        ]
        outputs += [
            io.Latent.Output(
                display_name=f"{n} latent",
                tooltip=f"The {n} latent of every scene; empty if there is none.",
            )
            for n in numbers
        ]
        return io.Schema(
            node_id="LD_SplitFrames",
            display_name="Split Frames",
            category="layered diffusion/transparency",
            description=(
                "Take apart a batch that holds the pictures of each scene one after the other, as "
                "LayerDiffuse Apply makes them: foreground, background, blend. Takes pictures, latents or "
                "both."
            ),
            search_aliases=["layerdiffuse", "split batch", "joint", "every nth image", "foreground "
            "background blend"],
            inputs=[
                io.Int.Input(
                    "frames", default=3, min=2, max=_MOST,
                    tooltip="Pictures of each scene, 2 to 3: as many as the mode of LayerDiffuse Apply "
                    "makes. Neutral: none.",
                ),
                io.Image.Input("image", optional=True, tooltip="Decoded pictures. Not connected: the images "
                "come out empty."),
                io.Latent.Input("latent", optional=True, tooltip="The latents of the pictures, for "
                    "Transparent Decode. Not connected: the latents come out empty."),
            ],
            outputs=outputs,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, frames: int, image: Tensor | None = None, latent: Mapping[str, Any] | None = None
    ) -> io.NodeOutput:
        """Return every ``frames``-th picture and latent, from the first, the second and the third on."""
        if image is None and latent is None:
            raise LayeredError(
                "image, latent: nothing is connected. Connect the batch that is to be taken apart"
            )
        nothing = ExecutionBlocker(None)
        images: list[Any] = [nothing] * _MOST
        latents: list[Any] = [nothing] * _MOST
        if image is not None:
            check_rows(len(pictures(image)), frames, "image", _FIX)
        if latent is not None:
            check_rows(len(latent["samples"]), frames, "latent", _FIX)
        for i in range(frames):
            images[i] = nothing if image is None else image[i::frames]
            latents[i] = nothing if latent is None else _every_nth(latent, i, frames)
        return io.NodeOutput(*images, *latents)


def _every_nth(latent: Mapping[str, Any], first: int, step: int) -> dict[str, Any]:
    """Return rows ``first``, ``first + step``, ... of a LATENT, with their noise masks and batch indices."""
    rows = len(latent["samples"])
    out = dict(latent)
    for key in ("samples", "noise_mask", "batch_index"):
        if key in latent and len(latent[key]) == rows:
            out[key] = latent[key][first::step]
    return out
