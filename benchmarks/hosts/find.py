"""Find ComfyUI: $COMFYUI_PATH or comfy-cli's default, with the python beside it or $COMFYUI_PYTHON."""

import os
from pathlib import Path


def find_host():
    """(folder, python) of a ComfyUI on this machine, or a line that says why there is none."""
    folder = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
    if not (folder / "main.py").is_file():
        return f"no ComfyUI at {folder}: set COMFYUI_PATH"
    beside = [folder / venv / place for venv in (".venv", "venv") for place in ("bin/python", "Scripts/python.exe")]
    pythons = [Path(os.environ["COMFYUI_PYTHON"])] if "COMFYUI_PYTHON" in os.environ else [p for p in beside if p.is_file()]
    if not pythons:
        return f"no .venv or venv in {folder}: set COMFYUI_PYTHON"
    return folder, pythons[0]
