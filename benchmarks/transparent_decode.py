"""Compare the transparent decoder with the same network built from diffusers' blocks:
``python -m benchmarks.transparent_decode [--json] [--side N]``.

Both have the same random weights in the published widths, in single precision, and decode a picture and a
latent of noise at 512 and 1024 pixels a side (or at ``--side``), with 1 and with 8 augmentations. Each runs
in a process of its own; the two take turns. Figures, for each side S:

* ``time_ratio_S_1``, ``time_ratio_S_8``: our least time divided by the reference's, by the clock;
  ``time_ratio_S`` is the greater of the two.
* ``processor_ratio_S_1``, ...: the same in processor time, which other programs disturb less.
* ``memory_ratio_S_1``, ...: the greatest growth of the process's resident memory in the first timed run,
  divided by the reference's. Weights, libraries, the input and the memory kept from a small first run are not
  part of the growth. Linux only.
* ``memory_of_estimate_S_1``, ...: our growth divided by the estimate of the core's ``bytes_needed``, from
  which nodes choose how many pictures they decode at once.
* ``max_abs_diff``: the greatest difference of the two results, 0..1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.transparent_reference import median_of_eight, one_pass, random_pair
from layered_core.transparency.transparent_decode import bytes_needed, decode
from layered_core.transparency.transparent_networks import (
    CELL,
    DECODER_WIDTHS,
    TransparentDecoder,
    from_file_order,
)

GOALS = {"time_ratio": 0.8, "memory_ratio": 0.6, "max_abs_diff": 1e-4}

VARIANTS = ("ours", "reference")


class Answer(NamedTuple):
    """A process's measurements of one decode."""

    seconds: float
    """Time by the clock, seconds."""
    processor: float
    """Processor time, seconds."""
    grown: int
    """Growth of the resident memory, bytes; 0 where it cannot be measured."""
    rgba: np.ndarray | None
    """The result of the first decode; None for the others."""


def resident(what: str) -> int:
    """Return this process's resident memory in bytes: ``VmRSS`` is the present one, ``VmHWM`` the greatest
    since :func:`forget_peak`. 0 on other systems than Linux."""
    try:
        found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def forget_peak() -> None:
    """Reset ``VmHWM`` to the present memory."""
    if resident("VmHWM"):
        Path("/proc/self/clear_refs").write_text("5")


def decoding(variant: str, widths: Sequence[int], augmentations: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that decodes pixels and a latent to RGBA."""
    ours, reference = random_pair(widths)
    if variant == "ours":
        return partial(decode, ours, augmentations=augmentations)
    passes = median_of_eight if augmentations == 8 else one_pass
    return lambda pixels, latent: from_file_order(passes(reference, pixels, latent), latent.shape[1])


@torch.no_grad()
def serve(
    variant: str, widths: Sequence[int], side: int, augmentations: int, threads: int, asked: Connection
) -> None:
    """Decode in this process whenever the connection asks for it, and send the measurements."""
    torch.set_num_threads(threads)
    run = decoding(variant, widths, augmentations)
    torch.manual_seed(1)
    pixels, latent = torch.rand(1, 3, side, side), torch.randn(1, 4, side // CELL, side // CELL)
    run(pixels[..., :64, :64], latent[..., :8, :8])
    first = True
    while asked.recv():
        before = resident("VmRSS")
        forget_peak()
        begun, worked = time.perf_counter(), time.process_time()
        rgba = run(pixels, latent)
        seconds, processor = time.perf_counter() - begun, time.process_time() - worked
        asked.send(Answer(seconds, processor, resident("VmHWM") - before, rgba.numpy() if first else None))
        first = False


def measure(
    sides: Sequence[int], rounds: int, widths: Sequence[int] = DECODER_WIDTHS, threads: int | None = None
) -> dict[str, float]:
    """Measure the figures that the module's docstring describes."""
    figures: dict[str, float] = {"max_abs_diff": 0.0}
    for side in sides:
        for augmentations in (1, 8):
            ours, reference = compared(
                side, augmentations, rounds, widths, threads or torch.get_num_threads()
            )
            of = f"{side}_{augmentations}"
            figures[f"time_ratio_{of}"] = min(a.seconds for a in ours) / min(a.seconds for a in reference)
            figures[f"processor_ratio_{of}"] = min(a.processor for a in ours) / min(
                a.processor for a in reference
            )
            if reference[0].grown:
                figures[f"memory_ratio_{of}"] = ours[0].grown / reference[0].grown
                with torch.device("meta"):
                    estimate = sum(
                        bytes_needed(
                            TransparentDecoder(widths), side, side, tile=side, augmentations=augmentations
                        )
                    )
                figures[f"memory_of_estimate_{of}"] = ours[0].grown / estimate
            assert ours[0].rgba is not None
            assert reference[0].rgba is not None
            figures["max_abs_diff"] = max(
                figures["max_abs_diff"], float(np.abs(ours[0].rgba - reference[0].rgba).max())
            )
        for name in ("time_ratio", "processor_ratio", "memory_ratio"):
            both = [figures[k] for n in (1, 8) if (k := f"{name}_{side}_{n}") in figures]
            if both:
                figures[f"{name}_{side}"] = max(both)
    return figures


def compared(
    side: int, augmentations: int, rounds: int, widths: Sequence[int], threads: int
) -> list[list[Answer]]:
    """Return the measurements of ours and of the reference, one for each round."""
    context = multiprocessing.get_context("spawn")
    lines, processes = [], []
    for variant in VARIANTS:
        here, there = context.Pipe()
        process = context.Process(
            target=serve, args=(variant, widths, side, augmentations, threads, there), daemon=True
        )
        process.start()
        there.close()
        lines.append(here)
        processes.append(process)
    answers: list[list[Answer]] = [[] for _ in VARIANTS]
    for _ in range(rounds):
        for line, mine in zip(lines, answers, strict=True):
            line.send(True)
            mine.append(line.recv())
    for line, process in zip(lines, processes, strict=True):
        line.send(False)
        process.join()
    return answers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--side", type=int, metavar="N", help="side in pixels, a multiple of 64 (default: 512 and 1024)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of decodes of each variant (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    if options.side is not None and (options.side < 64 or options.side % 64):
        parser.error("--side must be a multiple of 64")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    figures = measure([options.side] if options.side else [512, 1024], options.rounds)
    if options.json:
        print(json.dumps(figures))
        return
    print("| figure | value | goal |\n| --- | --- | --- |")
    for name, value in figures.items():
        goal = next((f"≤ {g:g}" for k, g in GOALS.items() if name.startswith(k)), "")
        print(f"| {name} | {value:.3g} | {goal} |")


if __name__ == "__main__":
    main()
