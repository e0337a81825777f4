"""The labels of inputs, one spelling for all nodes: the input's id in plain words, or a plainer label."""

from __future__ import annotations

from collections.abc import Iterable

from comfy_api.latest import io

LABELS = {
    "control_net": "ControlNet",
    "end_percent": "end",
    "flip_h": "flip horizontal",
    "flip_v": "flip vertical",
    "global_weight": "main prompt's share",
    "noise": "freedom (noise)",
    "start_percent": "start",
}
"""Labels that are not the id with spaces. A label that a node gives itself stays as it is."""


def labelled(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Return the node class with a schema whose inputs all have a label."""
    define = node.define_schema.__func__  # type: ignore[attr-defined]  # a class method has it

    def define_schema(cls: type[io.ComfyNode]) -> io.Schema:
        schema: io.Schema = define(cls)
        _label(schema.inputs)
        return schema

    setattr(node, "define_schema", classmethod(define_schema))  # noqa: B010  # a type checker allows no other way
    return node


def _label(inputs: Iterable[io.Input]) -> None:
    for item in inputs:
        for nested in item.get_all():
            nested.display_name = nested.display_name or LABELS.get(nested.id, nested.id.replace("_", " "))
