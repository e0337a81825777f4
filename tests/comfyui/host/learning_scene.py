"""A layer to learn from, and Learn Words from Layers with its widgets at small values."""

from graph import from_image, node
from sampling import LOADER


def one_ball(**layer):
    """A drawn ball of 48 pixels in the middle of the storybook's canvas, called "a"."""
    picture = node("LD_StorybookPicture", what="ball", colour="red", material="solid", size=48, seed=0)
    values = {"name": "ball", "prompt": "a red ball", "x": 40, "y": 40, "width": 48, "height": 48, **layer}
    placed = from_image(canvas_width=128, canvas_height=128, **values)
    placed["inputs"] |= {"image": ["picture", 0], "mask": ["picture", 1]}
    return {**LOADER, "picture": picture, "a": placed}


def learn(layers="a", model=("loader", 0), clip=("loader", 1), vae=("loader", 2), **values):
    inputs = {
        "which": "", "name": "krk", "form": "values", "steps": 2, "batch": 2, "rate": 0.1, "vectors": 1,
        "context": "composite", "seed": 0, "overwrite": False, **values,
    }  # fmt: skip
    return node(
        "LD_LearnWords", model=list(model), clip=list(clip), vae=list(vae), layers=[layers, 0], **inputs
    )
