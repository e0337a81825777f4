"""Make a stack of pictures with alpha that a model took from one picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...layered_core.painting.layers_from_pictures import PictureLayers, given_names, layers_from_pictures
from .long_work import check_main_memory
from .pictures import one_picture, pictures
from .remarks import tell
from .socket import KEY, LAYERS, write_stack

FIRST = ("a layer", "the whole picture")
"""What the first picture of the batch is; the second of these is Qwen-Image-Layered's own order."""

_MAX_SEED = 2**64 - 1


class LayersFromPictures(io.ComfyNode):
    """Make LAYERS of a batch of pictures with alpha; put together, they are the original."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayersFromPictures",
            display_name="Layers from Pictures",
            category="layered diffusion/layers",
            description=(
                "Make a layer of each picture with alpha: of Qwen-Image-Layered, of a model that paints RGBA, "
                "or of any other node. With the original connected, the layers put together are the "
                "original, to the pixel."
            ),
            search_aliases=["images to layers", "RGBA batch", "Qwen-Image-Layered", "decompose", "layer separation",
            "recompose", "PSD from images"],
            inputs=[
                io.Image.Input("image", tooltip="Pictures with alpha, four channels, back to front."),
                io.String.Input(
                    "names", default="", multiline=True,
                    tooltip="The layers' names, which are their words too: one line for each picture, in its "
                        "order. Empty: layer 1, layer 2 and so on, without words. Neutral: empty.",
                ),
                io.Combo.Input(
                    "first", options=list(FIRST), default=FIRST[0],
                    tooltip="What the first picture is. the whole picture: all layers together, as "
                        "Qwen-Image-Layered gives it unless it is cut off; it becomes no layer. Neutral: a "
                        "layer.",
                ),
                io.Image.Input(
                    "original", optional=True,
                    tooltip="The picture that was taken apart. It sets the canvas, and the layers get its own "
                        "pixels where they are seen. Neutral: not connected, the pictures stay as they are.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, optional=True, dynamic_prompts=True,
                    tooltip="What the whole picture shows; kept with the stack. Neutral: empty.",
                ),
                io.String.Input(
                    "made_by", default="", optional=True, advanced=True,
                    tooltip="The model that painted the pictures; kept with each layer. Neutral: empty.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=_MAX_SEED, control_after_generate=False, optional=True,
                    advanced=True,
                    tooltip="The seed of the pictures; kept with each layer. Neutral: any.",
                ),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="A layer for each picture, cropped to what is seen "
                    "of it. Its noise is 0: it stays as it is until a node makes it anew."),
                io.String.Output(display_name="report", tooltip="What was left out, added or put right, and how "
                    "far the pictures were from the original, one line each."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        image: Tensor,
        names: str,
        first: str,
        original: Tensor | None = None,
        prompt: str = "",
        made_by: str = "",
        seed: int = 0,
    ) -> io.NodeOutput:
        """Read the pictures and lay them on one another."""
        image = pictures(image)
        if original is not None:
            fix = "Take one out of the batch with Get Image from Batch"
            original = one_picture(original, "original", fix, batch="original: number of pictures")
        height, width = image.shape[1:3] if original is None else original.shape[:2]
        # The layers as they come, as they are on the canvas, and two more while colours are solved for.
        check_main_memory(
            16 * 4 * (len(image) + 1) * height * width,
            f"Layers from Pictures of {len(image)} pictures of {width}x{height} pixels",
            "Scale the original down, or take fewer pictures",
        )
        found = layers_from_pictures(image, given_names(names), original=original, whole=first == FIRST[1])
        origin = {"model": made_by.strip(), "prompt": prompt, "seed": seed}
        return io.NodeOutput(
            _with_origin(found, prompt, origin), tell(cls, "Layers from Pictures", _remarks(found))
        )


def _with_origin(found: PictureLayers, prompt: str, origin: dict[str, Any]) -> dict[str, Any]:
    """Return LAYERS in which each item's private key says where it comes from: model, prompt, seed, and the number of
    its picture, from 0, or -1 for a background that was added."""
    stack = write_stack(replace(found.document, prompt=prompt))
    for item, slot in zip(stack["layers"], found.slots, strict=True):
        item[KEY]["origin"] = {**origin, "slot": slot}
    return stack


def _remarks(found: PictureLayers) -> list[str]:
    if found.error is None:
        return list(found.told)
    levels = 255 * found.error
    return [
        *found.told,
        "The pictures as they came, put together, differ from the original by "
        f"{levels:.1f} of 255 levels on average.",
    ]
