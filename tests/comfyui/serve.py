"""Start ComfyUI's server: ``python serve.py COMFYUI ARGUMENTS...``. As ComfyUI's own main.py, but it also starts where torch is a CPU build."""

import contextlib
import os
import runpy
import sys

import torch

comfyui = sys.argv[1]
with contextlib.suppress(RuntimeError):
    if not torch.cuda.is_available():
        # torchvision built for CUDA cannot register its operators on a CPU torch, and without their names it cannot be imported.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
os.chdir(comfyui)
sys.argv = [os.path.join(comfyui, "main.py"), *sys.argv[2:]]
sys.path[0] = comfyui
runpy.run_path(sys.argv[0], run_name="__main__")
