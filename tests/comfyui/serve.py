"""Start ComfyUI's server as its own main.py does, but also if torch is a CPU build:
``python serve.py COMFYUI ARGUMENTS...``."""

import os
import runpy
import sys
from pathlib import Path

comfyui = sys.argv[1]
sys.path[0] = str(Path(__file__).resolve().parents[2] / "benchmarks" / "hosts")
from torch_build import name_torchvision_operators  # noqa: E402

name_torchvision_operators()
os.chdir(comfyui)
sys.argv = [os.path.join(comfyui, "main.py"), *sys.argv[2:]]
sys.path[0] = comfyui
runpy.run_path(sys.argv[0], run_name="__main__")
