"""The field for a layer's LoRAs, in the nodes that make and change layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ...layered_core.document import Lora
from ...layered_core.errors import LayeredError
from ...layered_core.formats.lora_text import read_loras
from .lora_files import lora_choices

NONE, CHOOSE, ADD, TEXT = "none", "choose", "add", "as text"
"""What the field may be set to. A node offers some of them, and ``keep`` perhaps."""

_NEXT = ("second", "third", "fourth")
"""Fields that add one LoRA more, each within the one before. With text, and with more nodes, there may be any
number."""

WHERE = (
    "They act where the layer shows: in Regional Prompt Attention, and when the layer is painted in stages."
)


def lora_input(*choices: str, tooltip: str) -> io.Input:
    """Return the input ``loras`` with some choices, the first of which is the default."""
    fields = {CHOOSE: _chosen(_NEXT), ADD: _chosen(()), TEXT: [_text()]}
    options = [io.DynamicCombo.Option(choice, fields.get(choice, [])) for choice in choices]
    return io.DynamicCombo.Input("loras", options=options, optional=True, tooltip=tooltip)


def loras_of(layer: str, field: Mapping[str, Any] | None, before: tuple[Lora, ...] = ()) -> tuple[Lora, ...]:
    """Return a layer's LoRAs.

    Args:
        layer: the layer's name, for errors.
        field: the value of the input ``loras``; None, as prompts for older versions have it, changes nothing.
        before: the layer's LoRAs so far.

    Raises:
        LayeredError: the text is wrong; the error names the layer.
    """
    choice = field and field["loras"]
    try:
        if choice == NONE:
            return ()
        if choice == CHOOSE:
            return tuple(_read(field))
        if choice == ADD:
            added = _read(field)
            return (*(x for x in before if x.name not in [y.name for y in added]), *added)
        if choice == TEXT:
            return read_loras(field["text"])
    except LayeredError as error:
        raise LayeredError(f"layer {layer!r}: {error}") from None
    return before


def _chosen(following: tuple[str, ...]) -> list[io.Input]:
    """Return the inputs that choose one LoRA, and more in the fields ``following`` if the user wants them."""
    inputs: list[io.Input] = [
        io.Combo.Input("lora", options=lora_choices(), tooltip="A file of ComfyUI's models/loras folders."),
        io.Float.Input(
            "strength", default=1.0, min=-4.0, max=4.0, step=0.05,
            tooltip="Factor on the LoRA's weights, -4 to 4. Neutral: 0.",
        ),
    ]  # fmt: skip
    if following:
        further = [io.DynamicCombo.Option(NONE, []), io.DynamicCombo.Option(CHOOSE, _chosen(following[1:]))]
        tooltip = "One LoRA more for this layer; they add up. Neutral: none."
        inputs.append(io.DynamicCombo.Input(following[0], options=further, tooltip=tooltip))
    return inputs


def _text() -> io.Input:
    return io.String.Input(
        "text", default="", tooltip="Names with strengths, ink:0.5, people/anna:0.8; or <lora:ink:0.5>. Without a "
        "strength: 1. The ending .safetensors may be left out. Neutral: empty.",
    )  # fmt: skip


def _read(field: Mapping[str, Any], following: tuple[str, ...] = _NEXT) -> list[Lora]:
    """Return the LoRAs of what :func:`_chosen` asks for."""
    loras = [Lora(field["lora"].replace("\\", "/"), field["strength"])]
    if following and (further := field.get(following[0])) and further[following[0]] == CHOOSE:
        loras += _read(further, following[1:])
    return loras
