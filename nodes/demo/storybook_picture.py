"""Draw a picture of the storybook world, to try layers without any file."""

from __future__ import annotations

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import io

from ...demo.world.drawing import draw_background, sprite
from ...demo.world.vocabulary import BACKGROUNDS, COLOURS, KINDS, MATERIALS, Thing


class StorybookPicture(io.ComfyNode):
    """Draw one landscape, or one object with its transparency."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_StorybookPicture",
            display_name="Storybook Picture",
            category="layered diffusion/demo",
            description="Draw a landscape or an object of the world that the demo model knows, with its "
            "transparency. Needs no file and no model.",
            search_aliases=["storybook", "demo", "example picture", "sprite", "test image"],
            inputs=[
                io.Combo.Input("what", options=[*BACKGROUNDS, *KINDS], default="meadow",
                tooltip="A landscape, or an object. Neutral: none."),
                io.Combo.Input("colour", options=list(COLOURS), default="red", tooltip="The object's colour; "
                "landscapes have their own."),
                io.Combo.Input(
                    "material", options=list(MATERIALS), default="solid",
                    tooltip="The object's material: solid has hard edges, glass is translucent, glowing "
                        "has a halo, soft has blurred edges. Neutral: solid.",
                ),
                io.Int.Input(
                    "size", default=128, min=16, max=1024, step=8,
                    tooltip="Side of the square picture, pixels; an object has an empty border of 15 % "
                    "around it for its halo. Neutral: none.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**32 - 1, control_after_generate=False,
                    tooltip="Decides where hills, sun and stars of a landscape are; objects do not "
                        "depend on it. Neutral: any value.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture, without alpha."),
                io.Mask.Output(display_name="mask", tooltip="1 is transparent, as Load Image gives it."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, what: str, colour: str, material: str, size: int, seed: int) -> io.NodeOutput:
        """Draw the picture."""
        if what in BACKGROUNDS:
            opaque = np.full((size, size, 1), 255, np.uint8)
            pixels = np.concatenate([draw_background(what, np.random.default_rng(seed), size), opaque], -1)
        else:
            pixels, _ = sprite(Thing(material, colour, what), size)
        image = (
            torch.from_numpy(pixels.copy()).to(comfy.model_management.intermediate_device()).float()[None]
            / 255
        )
        return io.NodeOutput(image[..., :3], 1 - image[..., 3])
