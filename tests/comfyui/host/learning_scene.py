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


def training_data(**values):
    inputs = {"count": 3, "context": "grey", "flips": True, "moves": True, "masked": True, "seed": 0}
    return node(
        "LD_LayerTrainingData", model=["loader", 0], clip=["loader", 1], vae=["loader", 2], layers=["a", 0],
        **{"layer": "ball", **inputs, **values},
    )  # fmt: skip


def train_lora(data="d", **values):
    """ComfyUI's own Train LoRA, of the outputs of Training Data from Layer."""
    inputs = {
        "batch_size": 1, "grad_accumulation_steps": 1, "steps": 2, "learning_rate": 0.001, "rank": 2,
        "optimizer": "AdamW", "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32",
        "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": False, "checkpoint_depth": 1,
        "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False, **values,
    }  # fmt: skip
    return node("TrainLoraNode", model=[data, 0], latents=[data, 1], positive=[data, 2], **inputs)
