"""Run suites in a real ComfyUI: ComfyUI's own nodes and the pack's make the same scenes in one process, with
the same weights, steps, sampler and seeds."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.bench.host_methods import HOST
from benchmarks.bench.scenes import Case
from benchmarks.hosts.find import host_environment, require_host
from layered_core.errors import LayeredError, invalid
from layered_diffusers.models.loading import STORYBOOK, find_model

if TYPE_CHECKING:
    from benchmarks.bench.suite import Row
    from benchmarks.bench.worker import Worker


def measured(worker: Worker, batches: Sequence[tuple[Row, Sequence[int]]]) -> Iterator[dict[str, Any]]:
    """Make the pictures of all batches in one ComfyUI process and yield their records, judged in this one."""
    if find_model(worker.settings.model) != STORYBOOK:
        raise invalid(
            "--model",
            str(worker.settings.model),
            "the shipped model",
            "Suites in ComfyUI use the node Load Demo Model: leave --model out",
        )
    folder, python = require_host()
    with tempfile.TemporaryDirectory(prefix="layered_bench_") as scratch:
        log = Path(scratch) / "comfyui.log"
        environment = {**host_environment(folder), "OMP_NUM_THREADS": "1"}
        with log.open("w") as errors:
            host = subprocess.Popen(
                [python, HOST],
                cwd=scratch,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            for row, scenes in batches:
                pictures, seconds = _ask(host, worker, row, scenes, Path(scratch), log)
                yield from worker.judged(row, scenes, pictures, seconds)
        finally:
            host.terminate()
            host.wait()


def _ask(
    host: subprocess.Popen[str], worker: Worker, row: Row, scenes: Sequence[int], scratch: Path, log: Path
) -> tuple[Tensor, float]:
    """Send one job to ComfyUI and return its pictures and the seconds a picture took."""
    cases = [worker.cases[i] for i in scenes]
    job = {
        "method": row.method, "parameters": row.parameters, "seeds": list(scenes),
        "steps": worker.settings.steps,
        "guidance": worker.settings.guidance, "sampler": worker.suite.sampler or "euler",
        "scenes": [_entry(c) for c in cases],
        "tensors": str(scratch / "in.safetensors"), "out": str(scratch / "out.safetensors"),
    }  # fmt: skip
    save_file(
        {
            f"{i}.{name}": tensor.contiguous()
            for i, c in enumerate(cases)
            for name, tensor in _tensors(c).items()
        },
        job["tensors"],
    )
    assert host.stdin is not None
    assert host.stdout is not None
    try:
        host.stdin.write(json.dumps(job) + "\n")
        host.stdin.flush()
        line = host.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        time.sleep(0.2)
        raise LayeredError(f"ComfyUI stopped. The end of its log: {log.read_text()[-600:]}")
    answer = json.loads(line)
    if "error" in answer:
        raise LayeredError(f"ComfyUI: {answer['error']}")
    return load_file(job["out"])["pictures"], float(answer["seconds"])


def _entry(case: Case) -> dict[str, Any]:
    return {
        "words": case.words,
        "background": case.background_words,
        "objects": [t.words for t in case.things],
        "changed": case.changed,
    }


def _tensors(case: Case) -> dict[str, Tensor]:
    tensors = {"masks": case.masks, "start": case.start, "edges": case.edges.float()}
    if case.changed is not None:
        tensors |= {"mask": case.change_mask, "before": case.picture_before}
    return tensors
