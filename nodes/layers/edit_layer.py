"""Change one layer of a stack. Every field says whether it is kept, so the node shows what it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ...layered_core.document import BLEND_MODES, HINTS, MAX_SIDE, Layer
from ...layered_core.errors import LayeredError
from .lora_inputs import ADD, CHOOSE, NONE, TEXT, WHERE, lora_input, loras_of
from .socket import LAYERS, read_stack, write_stack

KEEP = "keep"
"""The choice of a field that is not changed."""

_FAR = 4 * MAX_SIDE
_MAX_SEED = 2**63 - 1


def _value(
    name: str,
    to: io.Input,
    tooltip: str,
    *others: str,
    advanced: bool | None = None,
) -> io.Input:
    """Return a field that is kept, set to the value that then appears below it, or set to one of
    ``others``."""
    options = [
        io.DynamicCombo.Option(KEEP, []),
        io.DynamicCombo.Option("set", [to]),
        *(io.DynamicCombo.Option(o, []) for o in others),
    ]
    return io.DynamicCombo.Input(
        name,
        options=options,
        tooltip=f"{tooltip} Neutral: keep.",
        extra_dict={"advanced": advanced},
    )


def _choice(name: str, options: tuple[str, ...], tooltip: str, advanced: bool | None = None) -> io.Input:
    return io.Combo.Input(
        name, options=[KEEP, *options], default=KEEP, tooltip=f"{tooltip} Neutral: keep.", advanced=advanced
    )


def _whole(default: int, low: int, high: int, unit: str) -> io.Input:
    return io.Int.Input("to", default=default, min=low, max=high, tooltip=f"The new value: {unit}.")


def _number(default: float, low: float, high: float, step: float, unit: str) -> io.Input:
    return io.Float.Input(
        "to", default=default, min=low, max=high, step=step, tooltip=f"The new value: {unit}."
    )


def _words(is_prompt: bool) -> io.Input:
    return io.String.Input(
        "to",
        default="",
        multiline=is_prompt,
        dynamic_prompts=is_prompt,
        tooltip="The new words; empty is allowed where the layer may have none.",
    )


FIELDS = [
    _value("prompt", _words(True), "What the layer shows."),
    _value("negative", _words(True), "What the layer must not show."),
    _value("x", _whole(0, -_FAR, _FAR, "canvas pixels"), "Left edge before rotation, canvas pixels."),
    _value("y", _whole(0, -_FAR, _FAR, "canvas pixels"), "Top edge before rotation, canvas pixels."),
    _value("width", _whole(512, 1, MAX_SIDE, "canvas pixels"), "Width on the canvas, pixels."),
    _value("height", _whole(512, 1, MAX_SIDE, "canvas pixels"), "Height on the canvas, pixels."),
    _value("rotation", _number(0, -360, 360, 1, "degrees clockwise"), "Turn about the centre, degrees "
    "clockwise."),
    _value("opacity", _number(1, 0, 1, 0.01, "0 to 1"), "Multiplies the alpha, 0 to 1."),
    _choice("blend_mode", BLEND_MODES, "How the layer mixes with those below."),
    _choice("visible", ("on", "off"), "A hidden layer takes no part in anything."),
    _value(
        "inside", _number(1, 0, 1, 0.05, "0 to 1"),
        "How strongly the words are attended to inside the layer's visible part, 0 to 1.",
    ),
    _value(
        "outside", _number(1, 0, 1, 0.05, "0 to 1"),
        "How strongly the words are kept out of the rest of the canvas, 0 to 1.",
    ),
    _value("noise", _number(0.8, 0, 1, 0.05, "0 to 1"), "How far the layer may change while sampling, 0 "
    "(frozen) to 1 (free)."),
    _value("name", _words(False), "The layer's name; no other layer may have the same.",
    advanced=True),
    _choice("flip_h", ("on", "off"), "Mirror left to right, before rotation.", advanced=True),
    _choice("flip_v", ("on", "off"), "Mirror top to bottom, before rotation.", advanced=True),
    _choice("control_hint", HINTS, "How a ControlNet's hint is drawn from the layer's picture.",
    advanced=True),
    _value("control_strength", _number(1, 0, 2, 0.05, "0 to 2"), "Weight of a ControlNet inside the layer, 0 "
    "to 2.", advanced=True),
    _value("control_start", _number(0, 0, 1, 0.01, "0 to 1"), "Share of the sampling at which control "
    "begins, 0 to 1.", advanced=True),
    _value("control_end", _number(1, 0, 1, 0.01, "0 to 1"), "Share of the sampling at which control ends, 0 "
    "to 1.", advanced=True),
    _value("embedding", _words(False), "Name of a textual inversion that is put before the layer's words.",
    "none", advanced=True),
    _value("seed", _whole(0, 0, _MAX_SEED, "a seed"), "Seed of the layer's own noise.", "the picture's",
    advanced=True),
]  # fmt: skip
"""Every field that can be changed."""


class EditLayer(io.ComfyNode):
    """Change fields of one layer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_EditLayer",
            display_name="Edit Layer",
            category="layered diffusion/layers",
            description="Change some fields of one layer of a stack: words, place, look, recipe. Fields "
                "set to keep stay as they are.",
            search_aliases=["edit layer", "change layer", "layer properties", "rename layer", "move layer",
            "layer opacity", "blend mode"],
            inputs=[
                LAYERS.Input("layers", tooltip="The stack."),
                io.String.Input("layer", default="", tooltip="The name of the layer to change, as Layer "
                "Preview shows it."),
                *FIELDS,
                lora_input(
                    KEEP, CHOOSE, ADD, TEXT, NONE,
                    tooltip=f"LoRAs of this layer alone. {WHERE} choose and as text replace those that it has; "
                    "add leaves them and adds one, or gives one another strength. Neutral: keep.",
                ),
            ],
            outputs=[LAYERS.Output(display_name="layers", tooltip="The stack with the layer changed; the "
                "very same stack if every field is kept.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, layers: Mapping[str, Any], layer: str, loras: Mapping[str, Any] | None = None, **fields: Any
    ) -> io.NodeOutput:
        """Change the fields that are not kept."""
        for field in FIELDS:
            if field.id not in fields:  # ComfyUI drops an input whose choice it does not know
                raise LayeredError(
                    f"layer {layer!r}: {field.id}: its choice is not in the list. Take {KEEP!r}, "
                    f"or another choice of the list"
                )
        document = read_stack(layers)
        before = document.layer(layer)
        changes = {name: value for name, field in fields.items() if (value := _new(field)) is not KEEP}
        if (owned := loras_of(layer, loras, before.recipe.loras)) != before.recipe.loras:
            changes["loras"] = owned
        if not changes:
            return io.NodeOutput(layers)
        after = _changed(before, changes)
        return io.NodeOutput(
            write_stack(replace(document, layers=tuple(after if x is before else x for x in document)))
        )


def _new(field: Any) -> Any:
    """Return the value that a field's widgets ask for, or ``KEEP``."""
    if isinstance(field, str):
        return {KEEP: KEEP, "on": True, "off": False}.get(field, field)
    (how,) = (value for key, value in field.items() if key != "to")
    return {KEEP: KEEP, "set": field.get("to")}.get(how)


def _changed(layer: Layer, changes: Mapping[str, Any]) -> Layer:
    """Return the layer with the changes to itself, its recipe and its recipe's control."""
    control = {
        key.removeprefix("control_"): value for key, value in changes.items() if key.startswith("control_")
    }
    recipe = {
        key: value
        for key, value in changes.items()
        if key in ("inside", "outside", "noise", "embedding", "loras", "seed")
    }
    own = {
        key: value for key, value in changes.items() if key not in recipe and not key.startswith("control_")
    }
    try:
        recipe["control"] = replace(layer.recipe.control, **control)
        own["recipe"] = replace(layer.recipe, **recipe)
    except LayeredError as error:
        raise LayeredError(f"layer {layer.name!r}: {error}") from None
    return replace(layer, **own)
