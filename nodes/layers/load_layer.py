"""Put a layer on a stack: from a file, from a picture of the graph, or as a place for something still to be
generated."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.canvas.placement import canvas_extent, fitted, is_cut_off, is_off_canvas
from ...layered_core.document import (
    BLEND_MODES,
    DEFAULT_NOISE,
    HINTS,
    MAX_SIDE,
    Control,
    Layer,
    Recipe,
    short_name,
)
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.formats.limits import Budget, Limits
from ...layered_core.formats.pictures import read_picture
from .input_files import input_path
from .long_work import fingerprint
from .lora_inputs import CHOOSE, NONE, TEXT, WHERE, lora_input, loras_of
from .pictures import masks, pictures
from .remarks import tell
from .socket import LAYERS, append_layers, canvas_below, mask_to_presence, rgba, stack_canvas

CATEGORY = "layered diffusion/layers"
_DEFAULT = Recipe()
_FAR = 4 * MAX_SIDE


def _words() -> list[io.Input]:
    return [
        io.String.Input(
            "prompt",
            multiline=True,
            default="",
            dynamic_prompts=True,
            tooltip="What the layer shows. Neutral: empty.",
        ),
        io.String.Input(
            "negative",
            multiline=True,
            default="",
            dynamic_prompts=True,
            tooltip="What the layer must not show. Neutral: empty.",
        ),
        io.String.Input(
            "name",
            default="",
            tooltip="The layer's name. Empty: the file's name, or the beginning of the layer's words, or "
            "'layer'. Layers of the same name get a number.",
        ),
    ]


def _placement() -> list[io.Input]:
    return [
        io.Int.Input(
            "x",
            default=0,
            min=-_FAR,
            max=_FAR,
            tooltip="Left edge before rotation, canvas pixels; may be off the canvas. Neutral: 0.",
        ),
        io.Int.Input(
            "y",
            default=0,
            min=-_FAR,
            max=_FAR,
            tooltip="Top edge before rotation, canvas pixels; may be off the canvas. Neutral: 0.",
        ),
        io.Int.Input(
            "width",
            default=0,
            min=0,
            max=MAX_SIDE,
            tooltip="Width on the canvas, pixels. 0: the picture's own, unless it is larger than the canvas "
            "and is then scaled down to fit; without a picture or mask, the canvas's. Neutral: 0.",
        ),
        io.Int.Input(
            "height",
            default=0,
            min=0,
            max=MAX_SIDE,
            tooltip="Height on the canvas, pixels; 0 as for width. Neutral: 0.",
        ),
        io.Float.Input(
            "rotation",
            default=0.0,
            min=-360.0,
            max=360.0,
            step=1.0,
            tooltip="Turn about the centre, degrees clockwise. Neutral: 0.",
        ),
        io.Boolean.Input(
            "flip_h",
            default=False,
            advanced=True,
            tooltip="Mirror left to right, before rotation. Neutral: off.",
        ),
        io.Boolean.Input(
            "flip_v",
            default=False,
            advanced=True,
            tooltip="Mirror top to bottom, before rotation. Neutral: off.",
        ),
        io.Float.Input(
            "opacity",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Multiplies the alpha, 0 to 1. Neutral: 1.",
        ),
        io.Combo.Input(
            "blend_mode",
            options=list(BLEND_MODES),
            default="normal",
            tooltip="How the layer mixes with those below. Neutral: normal.",
        ),
        io.Boolean.Input(
            "visible", default=True, tooltip="A hidden layer takes no part in anything. Neutral: on."
        ),
    ]


def _recipe() -> list[io.Input]:
    return [
        io.Float.Input(
            "inside", default=_DEFAULT.inside, min=0.0, max=1.0, step=0.05,
            tooltip="How strongly the layer's words are attended to inside its visible part, 0 to 1. "
            "Neutral: 0. "
            "The default is 1, so that the layer's words act where it is.",
        ),
        io.Float.Input(
            "outside", default=_DEFAULT.outside, min=0.0, max=1.0, step=0.05,
            tooltip="How strongly the layer's words are kept out of the rest of the canvas, 0 to 1. Neutral: "
            "0. "
            "The default is 1, so that the layer's words stay where it is.",
        ),
        io.Float.Input(
            "noise", default=DEFAULT_NOISE, min=0.0, max=1.0, step=0.05,
            tooltip="How far the layer may change while sampling, 0 (frozen) to 1 (free). Neutral: 1. "
                "The default is 0.8, which draws a layer anew and roughly keeps its shape and "
                "place.",
        ),
        io.Float.Input(
            "control_strength", default=_DEFAULT.control.strength, min=0.0, max=2.0, step=0.05,
            tooltip="Weight of a ControlNet inside the layer, 0 to 2; acts only with a control hint. "
            "Neutral: 0. "
            "The default is 1, what the ControlNet was trained for.",
        ),
        io.Combo.Input(
            "control_hint", options=list(HINTS), default=_DEFAULT.control.hint, advanced=True,
            tooltip="How the ControlNet's hint is drawn from the layer's picture. Neutral: none.",
        ),
        io.Int.Input(
            "canvas_width", default=0, min=0, max=MAX_SIDE, advanced=True,
            tooltip="Canvas width, pixels. 0: that of the incoming stack; the stack's first picture sets it, "
                "and larger ones after it do not widen it. Neutral: 0.",
        ),
        io.Int.Input(
            "canvas_height", default=0, min=0, max=MAX_SIDE, advanced=True,
            tooltip="Canvas height, pixels; 0 as for the width. Neutral: 0.",
        ),
        LAYERS.Input("layers", optional=True, tooltip="The stack to lay this layer on. Not connected: a new "
        "stack."),
        io.Boolean.Input(
            "keep_backdrop", default=True, optional=True, advanced=True,
            tooltip="On: an opaque picture without words that fills the canvas "
                f"behind other layers keeps its pixels, as long as its noise is left at {DEFAULT_NOISE}; any "
                "other number counts. Off: the noise always counts. Neutral: off. "
                "The default is on, because nobody has said what the backdrop should become.",
        ),
        lora_input(
            NONE, CHOOSE, TEXT,
            tooltip=f"LoRAs of this layer alone. {WHERE} Neutral: none.",
        ),
    ]  # fmt: skip


_OUTPUT_TOOLTIP = (
    "The stack with this layer on top. Works with ComfyUI's Add Layer and Create Layered Image too."
)


class LoadLayer(io.ComfyNode):
    """Load a layer from a file in ComfyUI's input folder; its alpha is kept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LoadLayer",
            display_name="Load Layer",
            category=CATEGORY,
            description="Load a picture with its transparency as a layer with words, place and recipe, and "
            "lay it on a stack.",
            search_aliases=["layer", "load layer", "open layer", "collage", "rgba", "transparent png", "add "
            "layer"],
            inputs=[
                io.Combo.Input(
                    "image", options=_input_pictures(), upload=io.UploadType.image,
                    tooltip="A picture in ComfyUI's input folder. Its transparency is kept; a picture "
                        "without any is opaque.",
                ),
                *_words(), *_placement(), *_recipe(),
            ],
            outputs=[LAYERS.Output(display_name="layers", tooltip=_OUTPUT_TOOLTIP)],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, image: str | None = None, *, loras: object = None) -> bool | str:
        """Return True, or the text of an error that is certain before running; linked inputs are None.

        ComfyUI repeats the text at every input that is named here, so that it can be one only. The fields of ``loras``
        it hands over all the same; it does not count what can only be given by name.
        """
        try:
            if image is not None:
                _picture_path(image)
        except LayeredError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, image: str | None = None, **_: object) -> str | float:
        """Return a hash of the file, so that the node runs again when the content changes."""
        return fingerprint(_picture_path(image)) if image else ""

    @classmethod
    def execute(
        cls, image: str, name: str, layers: Mapping[str, Any] | None = None, **values: Any
    ) -> io.NodeOutput:
        """Read the file and append the layer."""
        path, warnings = _picture_path(image), list[str]()
        picture = read_picture(path, Budget(Limits(option="")), warnings)
        if warnings:
            logging.warning("Load Layer: %s", "; ".join(warnings))
        added = [_layer(name.strip() or path.stem, picture, None, values)]
        return io.NodeOutput(_with_layers(cls, "Load Layer", layers, added, values))


class LayerFromImage(io.ComfyNode):
    """Make a layer from a picture of the graph, or, without one, a place for something still to be
    generated."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayerFromImage",
            display_name="Layer from Image or Box",
            category=CATEGORY,
            description=(
                "Lay a picture of the graph on a stack as a layer with words, place and recipe. "
                "Without a picture the layer is a box, or a mask, to be generated later."
            ),
            search_aliases=["Layer From Image", "layer", "region", "box", "bounding box", "mask to layer",
            "image to layer", "add layer"],
            inputs=[
                io.Image.Input("image", optional=True, tooltip="The layer's picture; each picture of a "
                    "batch becomes a layer. Not connected: the layer is to be generated later."),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Where the layer is transparent: 1 is transparent, as Load Image gives it. "
                        "Without a picture, the layer is to be generated where the mask is 0.",
                ),
                *_words(), *_placement(), *_recipe(),
            ],
            outputs=[LAYERS.Output(display_name="layers", tooltip=_OUTPUT_TOOLTIP)],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, name: str, image: Tensor | None = None, mask: Tensor | None = None,
        layers: Mapping[str, Any] | None = None, **values: Any
    ) -> io.NodeOutput:  # fmt: skip
        """Append one layer for each picture of the batch; without a picture, one layer."""
        name = name.strip() or short_name(values["prompt"]) or "layer"
        image = None if image is None else pictures(image, f"layer {name!r}: image")
        mask = None if mask is None else masks(mask, f"layer {name!r}: mask")
        count = 1 if image is None else len(image)
        if mask is not None and len(mask) not in (1, count):
            raise invalid(f"layer {name!r}: number of masks", len(mask), f"1 or {count}, as many as pictures")
        added = []
        for i in range(count):
            presence = None if mask is None else mask_to_presence(mask[min(i, len(mask) - 1)].cpu())
            added.append(
                _layer(
                    name if count == 1 else f"{name} {i + 1}",
                    None if image is None else rgba(image[i]),
                    presence,
                    values,
                )
            )
        return io.NodeOutput(_with_layers(cls, "Layer from Image or Box", layers, added, values))


def _layer(name: str, image: Tensor | None, mask: Tensor | None, values: Mapping[str, Any]) -> Layer:
    """Return the layer that a node's inputs describe."""
    placement = (
        "prompt",
        "negative",
        "x",
        "y",
        "width",
        "height",
        "rotation",
        "flip_h",
        "flip_v",
        "opacity",
        "blend_mode",
        "visible",
    )
    loras = loras_of(name, values.get("loras"))
    try:
        control = Control(hint=values["control_hint"], strength=values["control_strength"])
        noise = (
            None
            if values.get("keep_backdrop", True) and values["noise"] == DEFAULT_NOISE
            else values["noise"]
        )
        recipe = Recipe(
            inside=values["inside"], outside=values["outside"], noise=noise, control=control, loras=loras
        )
    except LayeredError as error:
        raise LayeredError(f"layer {name!r}: {error}") from None
    return Layer(name, image, mask, recipe=recipe, **{k: values[k] for k in placement})


def _with_layers(
    node: type[io.ComfyNode],
    title: str,
    stack: Mapping[str, Any] | None,
    added: list[Layer],
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the stack with the layers on top. Pictures of no given size that are larger than the canvas are
    scaled down; the node tells it, and which layers are cut off at the canvas's edge.

    Raises:
        LayeredError: a layer lies wholly off the canvas.
    """
    given = values["canvas_width"], values["canvas_height"]
    below = canvas_below(stack, given)
    remarks = []
    if all(below) and not values["width"] and not values["height"]:
        whole, added = added, [x if x.image is None else fitted(x, *below) for x in added]
        remarks += [
            f"layer {x.name!r}: its picture of {x.width}x{x.height} pixels is larger than the canvas of "
            f"{below[0]}x{below[1]}, and is scaled down to {y.width}x{y.height}. Give width and height to "
            "choose another size"
            for x, y in zip(whole, added, strict=True)
            if x is not y
        ]
    document = append_layers(stack, added, given)
    width, height = stack_canvas(document) or canvas_extent(added)
    for layer in added:
        if not layer.width or not layer.height:  # it gets the canvas's
            continue
        if is_off_canvas(layer, width, height):
            where = f"x {layer.x}, y {layer.y}, {layer.width}x{layer.height}"
            raise invalid(
                f"layer {layer.name!r}: place",
                where,
                f"at least one pixel on the canvas of {width}x{height}",
                "Move it or enlarge the canvas",
            )
        if is_cut_off(layer, width, height):
            remarks.append(f"layer {layer.name!r}: what lies off the canvas of {width}x{height} is cut off")
    tell(node, title, remarks)
    return document


def _input_pictures() -> list[str]:
    """Return the names of the pictures in ComfyUI's input folder."""
    folder = folder_paths.get_input_directory()
    files = [f for f in os.listdir(folder) if os.path.isfile(os.path.join(folder, f))]
    return sorted(folder_paths.filter_files_content_types(files, ["image"]))


def _picture_path(name: str) -> Path:
    """Return the file that ``name`` means. Raises :class:`LayeredError` unless it lies in ComfyUI's input
    folder, or, as ComfyUI writes it, in its ``[output]`` or ``[temp]`` folder."""
    allowed = "the name of a picture in ComfyUI's input folder"
    path = input_path("image", name, allowed)
    if not os.path.isfile(path):
        raise invalid("image", name, allowed, "There is no such file: upload it with the button on the node")
    return path
