"""Take a picture apart into layers by the masks of a segmenter."""

from __future__ import annotations

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.errors import invalid
from ...layered_core.painting.layers_from_masks import MAX_BAND, layers_from_masks
from .long_work import check_main_memory
from .pictures import masks as checked_masks
from .pictures import one_picture
from .remarks import tell
from .socket import LAYERS, clamped, write_stack

_COLOURED = 0.02
"""Greatest difference of the channels of a grey picture."""

_FIX = "Take one out with Get Image from Batch: one picture is taken apart at a time"


class LayersFromMasks(io.ComfyNode):
    """Make LAYERS of a picture and the masks of the things in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayersFromMasks",
            display_name="Layers from Masks",
            category="layered diffusion/layers",
            description=(
                "Take any picture apart: a layer for each mask of a segmenter (SAM3 Detect, RT-DETR, Impact, "
                "SAM2), and the background. Edges are matted without a halo, and the layers together are the "
                "picture, to the bit. Fill Behind Layers then paints what the layers hide."
            ),
            search_aliases=["decompose", "picture to layers", "segment", "sam", "cut out", "extract layers",
            "mask to layer", "split image", "matting"],
            inputs=[
                io.Image.Input("image", tooltip="The picture to take apart. Where it has alpha, the layers "
                    "keep it."),
                io.Mask.Input(
                    "masks",
                    tooltip="A mask for each thing, 1 where it is: individual masks of SAM3 Detect, or "
                        "those of any other segmenter. Their shape must be the picture's; another size is "
                        "scaled.",
                ),
                io.String.Input(
                    "layer_prompts", multiline=True, default="", dynamic_prompts=True,
                    tooltip="What the masks show, a line each, in their order: it becomes the layer's "
                        "prompt, and its beginning the layer's name. One line serves all masks. Neutral: "
                        "empty, the layers are numbered.",
                ),
                io.Int.Input(
                    "band", default=3, min=0, max=MAX_BAND,
                    tooltip="Pixels on each side of an edge that may be matted. Neutral: 0, every pixel "
                        "belongs to one layer. The default is 3, as edges in photographs are soft.",
                ),
                io.Image.Input(
                    "depth", optional=True,
                    tooltip="A depth picture, lighter is nearer, as Render Depth Anything 3 gives it: "
                        "nearer things lie on top. Neutral: not connected, smaller things lie on top.",
                ),
                io.Image.Input(
                    "background", optional=True,
                    tooltip="What lies behind everything, for example from LaMa or another inpainting "
                        "tool. Neutral: not connected, the background has holes.",
                ),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="The background and a layer for each mask, "
                    "back to front, with noise 0. Layer Composite with rules photoshop gives the picture, "
                    "to the bit."),
                io.Mask.Output(display_name="holes", tooltip="How far the background is not known because "
                    "a layer covers it: 1 is wholly covered. Inpaint there."),
                io.String.Output(display_name="report", tooltip="What was left out or changed, and why, "
                    "one line each; also shown on the node."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        image: Tensor,
        masks: Tensor,
        layer_prompts: str,
        band: int,
        depth: Tensor | None = None,
        background: Tensor | None = None,
    ) -> io.NodeOutput:
        """Check the pictures, and take the one apart."""
        picture = clamped(one_picture(image, "image", _FIX))
        found = clamped(checked_masks(masks, "masks", least=0)) if len(masks) else masks.float()
        near = None if depth is None else _grey(one_picture(depth, "depth", _FIX))
        behind = None if background is None else clamped(one_picture(background, "background", _FIX))[..., :3]
        height, width = picture.shape[:2]
        # The picture, its parts and sums of them; the masks; the layers.
        check_main_memory(
            height * width * (400 + 8 * len(found)),
            f"Layers from Masks of {len(found)} masks and {width}x{height} pixels",
            "Scale the picture down, or take fewer masks",
        )
        words = layer_prompts.split("\n") if layer_prompts.strip() else []
        while words and not words[-1].strip():
            words.pop()
        layers = layers_from_masks(
            picture, found, (), [x.strip() for x in words], depth=near, background=behind, band=band
        )
        holes = layers.holes[None].to(comfy.model_management.intermediate_device())
        return io.NodeOutput(write_stack(layers.document), holes, tell(cls, "Layers from Masks", layers.told))


def _grey(picture: Tensor) -> Tensor:
    """Return a depth picture ``[H, W, 3 or 4]`` as ``[H, W]``.

    Raises:
        LayeredError: it is coloured, so that lighter is not nearer.
    """
    colours = clamped(picture)[..., :3]
    if bool(((colours.amax(-1) - colours.amin(-1)) > _COLOURED).any()):
        raise invalid(
            "depth",
            "a coloured picture",
            "a grey one, lighter where it is nearer",
            "Choose output depth in Render Depth Anything 3",
        )
    return colours.mean(-1)
