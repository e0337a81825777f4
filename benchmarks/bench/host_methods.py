"""Check the methods of the bench that run in ComfyUI. Their script is parsed, not imported."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from layered_core.errors import invalid

HOST = Path(__file__).parents[1] / "hosts" / "comfyui_host.py"


def check_method(where: str, name: object, parameters: Mapping[str, object]) -> None:
    """Raise :class:`LayeredError` unless ``comfyui_host.py`` has a method of that name that takes those
    parameters. Only ComfyUI's python can import that script, so it is parsed."""
    functions = {
        f.name: [a.arg for a in f.args.args][1:]
        for f in ast.parse(HOST.read_text(encoding="utf-8")).body
        if isinstance(f, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id == "method" for d in f.decorator_list)
    }
    if name not in functions:
        raise invalid(f"{where}: method on ComfyUI", name, ", ".join(sorted(functions)))
    for parameter in parameters:
        if parameter not in functions[str(name)]:
            raise invalid(
                f"{where}: parameter of {name}",
                parameter,
                ", ".join(functions[str(name)]) or "none: it takes no parameter",
            )
