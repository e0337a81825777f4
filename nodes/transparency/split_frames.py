"""Split a batch in which pictures of several kinds take turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ...layered_core.errors import LayeredError, check_whole
from ...layered_core.joint.frames import MOST_LAYERS
from ...layered_core.transparency.layer_diffuse_frames import check_rows
from ..layers.pictures import pictures

_MOST = 3

_FIX = "Set frames to the number of pictures of each scene, and layer count as in LayerDiffuse Apply"


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
                io.Int.Input(
                    "layer_count", default=1, min=1, max=MOST_LAYERS, optional=True, advanced=True,
                    tooltip="As in LayerDiffuse Apply: how many foregrounds each scene has, 1 to 4. They come "
                        "out together as the first. Neutral: 1.",
                ),
            ],
            outputs=outputs,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        frames: int,
        image: Tensor | None = None,
        latent: Mapping[str, Any] | None = None,
        layer_count: int = 1,
    ) -> io.NodeOutput:
        """Return the first pictures and latents of every scene, ``layer_count`` of each, the second and the third."""
        check_whole("layer_count", layer_count, 1, MOST_LAYERS)
        if image is None and latent is None:
            raise LayeredError(
                "image, latent: nothing is connected. Connect the batch that is to be taken apart"
            )
        nothing = ExecutionBlocker(None)
        images: list[Any] = [nothing] * _MOST
        latents: list[Any] = [nothing] * _MOST
        rows = frames + layer_count - 1
        if image is not None:
            check_rows(len(pictures(image)), rows, "image", _FIX)
        if latent is not None:
            check_rows(len(latent["samples"]), rows, "latent", _FIX)
        for i in range(frames):
            first, last = (0, layer_count) if i == 0 else (i + layer_count - 1, i + layer_count)
            if image is not None:
                images[i] = image[_chosen(len(image), first, last, rows)]
            if latent is not None:
                latents[i] = _part(latent, first, last, rows)
        return io.NodeOutput(*images, *latents)


def _chosen(rows: int, first: int, last: int, step: int) -> list[int]:
    """Return rows ``first`` to ``last`` of every scene of ``step`` rows."""
    return [row for row in range(rows) if first <= row % step < last]


def _part(latent: Mapping[str, Any], first: int, last: int, step: int) -> dict[str, Any]:
    """Return rows ``first`` to ``last`` of every scene of a LATENT, with their noise masks and batch indices."""
    rows = len(latent["samples"])
    chosen = _chosen(rows, first, last, step)
    out = dict(latent)
    for key in ("samples", "noise_mask", "batch_index"):
        if key in latent and len(latent[key]) == rows:
            values = latent[key]
            out[key] = values[chosen] if isinstance(values, Tensor) else [values[row] for row in chosen]
    return out
