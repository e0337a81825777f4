"""Functions that build API prompts, with every widget of our nodes at its default."""

DEFAULTS = {
    "prompt": "", "negative": "", "name": "", "x": 0, "y": 0, "width": 0, "height": 0, "rotation": 0.0,
    "flip_h": False, "flip_v": False,
    "opacity": 1.0, "blend_mode": "normal", "visible": True, "inside": 1.0, "outside": 1.0, "noise": 0.8,
    "control_strength": 1.0,
    "control_hint": "none", "canvas_width": 0, "canvas_height": 0,
}  # fmt: skip

KEPT = {
    "prompt": "keep", "negative": "keep", "x": "keep", "y": "keep", "width": "keep", "height": "keep",
    "rotation": "keep", "opacity": "keep",
    "blend_mode": "keep", "visible": "keep", "inside": "keep", "outside": "keep", "noise": "keep",
    "name": "keep", "flip_h": "keep",
    "flip_v": "keep", "control_hint": "keep", "control_strength": "keep", "control_start": "keep",
    "control_end": "keep",
    "embedding": "keep", "seed": "keep",
}  # fmt: skip
"""Every field of Edit Layer, set so that it changes nothing."""


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {}}


def load(image, **inputs):
    return node("LD_LoadLayer", image=image, **{**DEFAULTS, **inputs})


def from_image(**inputs):
    return node("LD_LayerFromImage", **{**DEFAULTS, **inputs})


def from_layout(text="", **inputs):
    values = {"boxes": "auto", "order": "as listed", "width": 128, "height": 64}
    return node("LD_LayersFromLayout", text=text, **{**values, **inputs})


def from_boxes(boxes, slot=0, **inputs):
    values = {"width": 128, "height": 64, "prompt": ""}
    return node("LD_LayersFromBoxes", boxes=[boxes, slot], **{**values, **inputs})


def per_layer_sdedit(layers, **inputs):
    values = {
        "background": 1.0,
        "blur": 0.0,
        "threshold": "absolute",
        "noise": "fixed",
        "dilation": 0.0,
        "softness": 0.0,
    }
    return node(
        "LD_PerLayerSDEdit",
        model=["loader", 0],
        vae=["loader", 2],
        layers=[layers, 0],
        **{**values, **inputs},
    )


def regional(layers, **inputs):
    values = {
        "prompt": "a red ball and a blue star in a meadow", "negative": "", "mode": "regions",
        "schedule": "auto", "strength": 1.0, "start": 0.0,
        "end": 1.0, "global_weight": 0.2, "emphasis": 0.5, "guidance": 1.0, "growth": 0.0,
        "auto_negative": False, "append": False, "record": False,
    }  # fmt: skip
    return node(
        "LD_RegionalPromptAttention",
        model=["loader", 0],
        clip=["loader", 1],
        layers=[layers, 0],
        **{**values, **inputs},
    )


def rendering(layers, **inputs):
    values = {
        "prompt": "a red ball and a blue star in a meadow", "negative": "", "share": 0.5, "strength": 0.2,
        "colour": "words", "constant": "#ffffff", "preset": "faithful", "then": "regions", "form": "denoised",
    }  # fmt: skip
    return node(
        "LD_LayeredRendering",
        model=["loader", 0],
        clip=["loader", 1],
        layers=[layers, 0],
        **{**values, **inputs},
    )


def regenerate(layers, names, **inputs):
    values = {"noise": 1.0, "grow": 2, "feather": 6, "size": 0, "context": 0.5, "border": "outside"}
    return node(
        "LD_RegenerateLayers",
        model=["loader", 0],
        vae=["loader", 2],
        names=names,
        **{**values, "layers": [layers, 0], **inputs},
    )


def add_layer(prompt, **inputs):
    values = {
        "negative": "", "name": "", "x": 0, "y": 0, "width": 0, "height": 0, "seed": 5, "steps": 3,
        "cfg": 3.0, "sampler_name": "euler",
        "scheduler": "normal", "alpha": "difference", "denoise": 1.0, "feather": 8, "size": 0, "context": 0.5,
        "blend": "gradient",
    }  # fmt: skip
    return node(
        "LD_AddLayerByPrompt",
        model=["loader", 0],
        clip=["loader", 1],
        vae=["loader", 2],
        prompt=prompt,
        **{**values, **inputs},
    )


def from_masks(image, masks, **inputs):
    values = {"layer_prompts": "", "band": 3}
    return node("LD_LayersFromMasks", image=image, masks=masks, **{**values, **inputs})


def fill_behind(layers, **inputs):
    values = {
        "prompt": "", "negative": "", "hidden_parts": False, "seed": 5, "steps": 2, "cfg": 3.0,
        "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "size": 0, "context": 0.5,
        "blend": "gradient",
    }  # fmt: skip
    return node("LD_FillBehindLayers", layers=layers, **{**values, **inputs})


MODELS = {"model": ["loader", 0], "clip": ["loader", 1], "vae": ["loader", 2]}
"""The inputs of a node that paints with the models of the node "loader"."""


def masked_patch(**inputs):
    """Return Masked Model Patch on the patched model of a node "patched"."""
    values = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    return node("LD_MaskedModelPatch", model=["patched", 0], base=["loader", 0], **{**values, **inputs})


def layer_diffuse(file, **inputs):
    values = {
        "mode": "transparent layer",
        "mode.file": file,
        "weight": 1.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
    }
    return node("LD_LayerDiffuseApply", model=["loader", 0], **{**values, **inputs})


def transparent_decode(image, **inputs):
    values = {
        "file": "storybook (shipped)", "name": "layer", "augmentations": "8", "combine": "median",
        "tile_size": 2048, "precision": "auto",
    }  # fmt: skip
    return node("LD_TransparentDecode", image=image, **{**values, **inputs})


def transparent_encode(image, **inputs):
    values = {"file": "storybook (shipped)", "offset_scale": 0.0}
    return node("LD_TransparentEncode", image=image, vae=["loader", 2], **{**values, **inputs})


def generate_layers(prompt, layer_prompts="", **inputs):
    values = {
        "background": "", "negative": "", "width": 128, "height": 128, "batch_size": 1, "seed": 7, "steps": 2,
        "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "file": "storybook (shipped)",
        "decoder": "storybook (shipped)", "enhancer": 1.0, "self_mask": 0.0, "augmentations": "1",
    }  # fmt: skip
    return node(
        "LD_GenerateLayers",
        model=["loader", 0],
        clip=["loader", 1],
        vae=["loader", 2],
        prompt=prompt,
        layer_prompts=layer_prompts,
        **{**values, **inputs},
    )
