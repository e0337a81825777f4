"""Nodes of an API prompt, with every widget of ours at its default."""

DEFAULTS = {
    "prompt": "", "negative": "", "name": "", "x": 0, "y": 0, "width": 0, "height": 0, "rotation": 0.0, "flip_h": False, "flip_v": False,
    "opacity": 1.0, "blend_mode": "normal", "visible": True, "inside": 1.0, "outside": 1.0, "noise": 0.8, "control_strength": 1.0,
    "control_hint": "none", "canvas_width": 0, "canvas_height": 0,
}  # fmt: skip

KEPT = {
    "prompt": "keep", "negative": "keep", "x": "keep", "y": "keep", "width": "keep", "height": "keep", "rotation": "keep", "opacity": "keep",
    "blend_mode": "keep", "visible": "keep", "inside": "keep", "outside": "keep", "noise": "keep", "name": "keep", "flip_h": "keep",
    "flip_v": "keep", "control_hint": "keep", "control_strength": "keep", "control_start": "keep", "control_end": "keep",
    "embedding": "keep", "seed": "keep",
}  # fmt: skip
"""Every field of Edit Layer."""


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {}}


def load(image, **inputs):
    return node("LD_LoadLayer", image=image, **{**DEFAULTS, **inputs})


def from_image(**inputs):
    return node("LD_LayerFromImage", **{**DEFAULTS, **inputs})
