"""Make ComfyUI at $COMFYUI_PATH importable in this process, on a throw-away base folder. Import this before anything of ComfyUI's."""

import asyncio
import contextlib
import importlib
import os
import sys
import tempfile
from pathlib import Path

COMFY = Path(os.environ["COMFYUI_PATH"])
PACK = Path(__file__).resolve().parents[3]

sys.path.insert(0, str(COMFY))
sys.argv = sys.argv[:1]

import torch  # noqa: E402

with contextlib.suppress(RuntimeError):
    # torchvision built for CUDA cannot register its operators on a CPU torch, and without their names it cannot be imported.
    if not torch.cuda.is_available():
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from comfy.cli_args import args  # noqa: E402

BASE = Path(tempfile.mkdtemp(prefix="comfyui_base_"))
args.cpu = not torch.cuda.is_available()
args.database_url = "sqlite:///:memory:"
args.base_directory = str(BASE)
args.disable_api_nodes = True

# Before nodes, which puts comfy/ on the path, where utils.py shadows utils/.
importlib.import_module("utils.extra_config")

import server  # noqa: E402

import nodes  # noqa: E402

for kind in ("input", "output", "temp", "user"):
    (BASE / kind).mkdir(exist_ok=True)

LOOP = asyncio.new_event_loop()
asyncio.set_event_loop(LOOP)


def load_extras():
    """ComfyUI's own extra nodes; needed once, before the pack."""
    server.PromptServer(LOOP)
    LOOP.run_until_complete(nodes.init_builtin_extra_nodes())


def load_pack():
    """Load the pack as ComfyUI does at its start; False where it could not."""
    return LOOP.run_until_complete(nodes.load_custom_node(str(PACK), module_parent="custom_nodes"))
