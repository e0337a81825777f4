"""Inputs whose value is made by hand, in an editor that the page puts into the node."""

from __future__ import annotations

from comfy_api.latest import io


class EditorInput(io.WidgetInput):
    """An optional input without a socket; its value is JSON, and an empty object if nothing was done."""

    def __init__(self, id: str, tooltip: str) -> None:
        super().__init__(id, optional=True, tooltip=tooltip, default={}, socketless=True)
