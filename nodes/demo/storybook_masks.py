"""Find the things in a picture of the storybook world, as a segmenter does in photographs."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ...demo.world.judge import Judge
from ...demo.world.vocabulary import BACKGROUNDS, Thing
from ...layered_core.canvas.resizing import resized
from ...layered_core.canvas.soft_masks import grow as widened
from ..layers.pictures import one_picture, opaque
from ..layers.socket import clamped

_FIX = "Take one out with Get Image from Batch: things are found in one picture at a time"


class StorybookMasks(io.ComfyNode):
    """Give a mask and words for each thing that the storybook's judge finds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_StorybookMasks",
            display_name="Storybook Masks",
            category="layered diffusion/demo",
            description="Find the things in a picture of the demo model: a mask and words for each, and the "
            "words of the landscape. In pictures of other models use a real segmenter, such as SAM3 Detect.",
            search_aliases=["storybook", "demo", "judge", "segment", "detect objects", "segmenter"],
            inputs=[
                io.Image.Input("image", tooltip="A picture of the demo model, or of Storybook Pictures. The "
                    "judge was made for square ones, and looks at 128x128 pixels."),
                io.Int.Input(
                    "grow", default=1, min=0, max=1024, optional=True, advanced=True,
                    tooltip="Widen each mask on every side, pixels. Neutral: 0. The default is 1, because the "
                        "judge's masks are half as fine as its pictures, and leave out parts of outlines.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="masks", tooltip="A mask of the picture's size for each thing, the "
                    "largest first; 1 is the thing. None if nothing is found."),
                io.String.Output(display_name="words", tooltip="The things' words, a line each, in the order of "
                    "the masks: for the layer prompts of Layers from Masks."),
                io.String.Output(display_name="background", tooltip="Words of the landscape: for the prompt of "
                    "Fill Behind Layers."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, image: Tensor, grow: int = 1) -> io.NodeOutput:
        """Look at the picture."""
        picture = clamped(opaque(one_picture(image, "image", _FIX)[None])[0])
        height, width = picture.shape[:2]
        (verdict,) = Judge.load().look(picture.movedim(-1, 0)[None])
        found = verdict.objects
        masks = torch.zeros(0, height, width)
        if found:
            # Hard edges: soft ones would be taken for the things' alpha.
            hard = resized(torch.stack([x.mask for x in found]).float(), height, width) >= 0.5
            masks = torch.stack([widened(mask.float(), grow) for mask in hard])
        return io.NodeOutput(
            masks.to(comfy.model_management.intermediate_device()),
            "\n".join(Thing("solid", x.colour, x.kind).words for x in found),
            BACKGROUNDS[verdict.background][1],
        )
