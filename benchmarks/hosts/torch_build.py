"""Make torchvision importable if torch is a CPU build. Everything that starts ComfyUI calls this before
torchvision is imported."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch

_KEPT: list[torch.library.Library] = []
"""Keeps the library alive: its declarations vanish when it is garbage-collected."""


def name_torchvision_operators() -> bool:
    """Declare torchvision's operators if torchvision itself cannot, and return whether that was needed.

    A torchvision built for CUDA cannot load its library on a CPU build of torch, and ``import torchvision``
    fails because it looks for the names of two operators. On any other pair of builds, with a graphics card
    or without, torchvision declares them itself, and a second declaration aborts the process. So the builds
    decide, never ``torch.cuda.is_available()``.
    """
    if torch.version.cuda is not None or torch.version.hip is not None or not _torchvision_wants_cuda():
        return False
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)
    return True


def _torchvision_wants_cuda() -> bool:
    """Whether the installed torchvision is built for CUDA, read from its version file without importing
    it."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    return (
        version.is_file()
        and re.search(r"__version__ = .*\+cu\d", version.read_text(encoding="utf-8")) is not None
    )
