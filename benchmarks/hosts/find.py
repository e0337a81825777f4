"""Find ComfyUI on this machine, and run scripts of this folder under its python."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from layered_core.errors import LayeredError

HERE = Path(__file__).resolve().parent


def find_host() -> tuple[Path, Path] | str:
    """Return (folder, python) of a ComfyUI on this machine, or a line that says why none was found.

    The folder is ``$COMFYUI_PATH`` or comfy-cli's default, ``~/comfy/ComfyUI``; the python is
    ``$COMFYUI_PYTHON`` or that of a ``.venv`` or ``venv`` inside the folder.
    """
    folder = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
    if not (folder / "main.py").is_file():
        return f"no ComfyUI at {folder}: set COMFYUI_PATH"
    beside = [
        folder / venv / place for venv in (".venv", "venv") for place in ("bin/python", "Scripts/python.exe")
    ]
    pythons = (
        [Path(os.environ["COMFYUI_PYTHON"])]
        if "COMFYUI_PYTHON" in os.environ
        else [p for p in beside if p.is_file()]
    )
    if not pythons:
        return f"no .venv or venv in {folder}: set COMFYUI_PYTHON"
    return folder, pythons[0]


def require_host() -> tuple[Path, Path]:
    """Return (folder, python) of a ComfyUI on this machine.

    Raises:
        LayeredError: there is no ComfyUI; the text says where :func:`find_host` looked for it.
    """
    found = find_host()
    if isinstance(found, str):
        raise LayeredError(found)
    return found


def host_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that imports the ComfyUI in ``folder``: nothing is downloaded, and
    this project is not on its path."""
    environment = {**os.environ, "COMFYUI_PATH": str(folder), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    return environment


def run_script(name: str, *arguments: object) -> dict[str, Any]:
    """Run a script of this folder under ComfyUI's python and return the JSON object on its last line; its
    errors go to the terminal.

    Raises:
        LayeredError: there is no ComfyUI.
        SystemExit: the script failed.
    """
    folder, python = require_host()
    command = [str(python), str(HERE / name), *map(str, arguments)]
    done = subprocess.run(command, env=host_environment(folder), stdout=subprocess.PIPE, text=True)
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"ComfyUI could not run {name}. The text above says why")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
