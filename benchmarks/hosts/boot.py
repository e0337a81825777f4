"""Make the ComfyUI at $COMFYUI_PATH importable in this process, with a temporary base folder. Import this
module before any module of ComfyUI.

It runs under ComfyUI's own python. Such a process reaches the project's code only through the pack: the
repository must not be on its path.
"""

import asyncio
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

COMFY = Path(os.environ["COMFYUI_PATH"])
PACK = Path(__file__).resolve().parents[2]

sys.path.insert(0, str(COMFY))
sys.argv = sys.argv[:1]

import torch  # noqa: E402
from torch_build import name_torchvision_operators  # noqa: E402

name_torchvision_operators()

from comfy.cli_args import args  # noqa: E402

BASE = Path(tempfile.mkdtemp(prefix="comfyui_base_"))
args.cpu = not torch.cuda.is_available()
args.database_url = "sqlite:///:memory:"
args.base_directory = str(BASE)
args.disable_api_nodes = True

# This must come before nodes, which puts comfy/ on the path, where utils.py hides the package utils.
importlib.import_module("utils.extra_config")

import server  # noqa: E402

import nodes  # noqa: E402

for kind in ("input", "output", "temp", "user"):
    (BASE / kind).mkdir(exist_ok=True)

LOOP = asyncio.new_event_loop()
asyncio.set_event_loop(LOOP)

NAME = str(PACK).replace(".", "_x_")
"""The name under which ComfyUI imports the pack."""


def load_extras() -> None:
    """Load ComfyUI's own extra nodes. Call it once, before :func:`load_pack`."""
    server.PromptServer(LOOP)
    LOOP.run_until_complete(nodes.init_builtin_extra_nodes())


def load_pack() -> bool:
    """Load the pack as ComfyUI does when it starts, and return whether that worked."""
    return bool(LOOP.run_until_complete(nodes.load_custom_node(str(PACK), module_parent="custom_nodes")))


def pack_module(path: str) -> Any:
    """Return the module of the loaded pack at ``path``, e.g. ``nodes.layers.socket``, with the same objects
    that the nodes use."""
    return importlib.import_module(f"{NAME}.{path}")
