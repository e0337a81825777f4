"""Composite stacks with ComfyUI's compositor and with ours. ``composite.py`` starts this script under
ComfyUI's python; it is never imported.

It prints one line of JSON. The process reaches the project's code only through the pack: the repository must
not be on its path.
"""

from __future__ import annotations

from answers import ANSWERS, ARGUMENTS  # isort: skip  # first: reserves standard output for answers
import boot  # isort: skip  # second: it makes ComfyUI importable

import gc
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

ROUNDS = int(ARGUMENTS[0])
WIDTH, HEIGHT, LAYERS = 1920, 1080, 8


def draw(mode: str) -> dict[str, Any]:
    """Return LAYERS of full-size opaque pictures with soft masks in 8-bit levels; all but the bottom one have
    blend mode ``mode``."""
    random = torch.Generator().manual_seed(0)
    rows, columns = torch.linspace(0, 1, HEIGHT)[:, None], torch.linspace(0, 1, WIDTH)
    items = []
    for index in range(LAYERS):
        image = torch.empty(1, HEIGHT, WIDTH, 4)
        image.random_(0, 256, generator=random).div_(255)[..., 3] = 1
        mask = (127 + 115 * torch.sin(6 * (index + 1) * columns + 3 * rows)).round_().div_(255)[None]
        items.append(
            {
                "type": "raster",
                "z_index": index,
                "image": image,
                "mask": mask,
                "blend_mode": mode if index else "normal",
            }
        )
    return {"version": 1, "canvas": (WIDTH, HEIGHT), "layers": items}


def cores(stack: dict[str, Any]) -> torch.Tensor:
    """Composite a stack as *Create Layered Image* does between reading its input and saving previews."""
    from comfy_extras import nodes_compositor as core

    frames = core.expand_item_frames(core.document_items(stack))
    alphas = [core.frame_alpha(frame["tensor"], frame["mask"]) for frame in frames]
    state = core.state_from_items(frames, core.document_canvas(stack))
    return core.composite_from_state([frame["tensor"] for frame in frames], state, alphas)[0]


def peak(work: Callable[[], object], size: int) -> float:
    """Return the process's greatest growth while ``work`` runs on tensors of ``size`` bytes, plus ``size``,
    divided by ``size``."""
    process, most, done = psutil.Process(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, process.memory_info().rss)

    gc.collect()
    held = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return 1 + max(most - held, 0) / size


def clocks(work: Callable[[], object]) -> tuple[float, float]:
    """Return how long ``work`` takes by the clock and in processor time, seconds."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


@torch.inference_mode()
def main() -> None:
    """Measure memory first, then the times of both compositors by turns."""
    boot.load_extras()
    if not boot.load_pack():
        raise SystemExit("ComfyUI could not load the pack. The log above says why")
    composite = boot.pack_module("layered_core.canvas.compositing").composite
    read_stack = boot.pack_module("nodes.layers.socket").read_stack
    figures = {"threads": torch.get_num_threads(), "rounds": ROUNDS, "greatest_difference": 0.0}
    for mode in ("normal", "soft-light"):
        stack = draw(mode)
        document = read_stack(stack)
        ours, theirs = lambda d=document: composite(d, "comfyui"), lambda s=stack: cores(s)
        if "peak_memory_ratio" not in figures:
            size = sum(x[k].nbytes for x in stack["layers"] for k in ("image", "mask"))
            figures |= {"peak_memory_ratio": peak(ours, size), "peak_memory_ratio_core": peak(theirs, size)}
        figures["greatest_difference"] = max(
            figures["greatest_difference"], float((ours() - theirs()).abs().max())
        )
        times = [(*clocks(ours), *clocks(theirs)) for _ in range(ROUNDS)]
        wall, busy, cores_wall, cores_busy = (min(column) for column in zip(*times, strict=True))
        name = mode.replace("-", "_")
        figures |= {f"ratio_{name}": wall / cores_wall, f"processor_ratio_{name}": busy / cores_busy}
    ANSWERS.write(json.dumps({k: round(v, 4) for k, v in figures.items()}) + "\n")
    ANSWERS.flush()


if __name__ == "__main__":
    main()
