"""The training loop that all scripts share: processes, gradients, schedule, checkpoints, log."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

# Returning memory to the system at every step stalls CPU training. glibc reads these when a process starts.
_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4294967296", "OMP_NUM_THREADS": "1"}


def launch(worker: Callable[[int, int, Any], None], processes: int, options: Any) -> None:
    """Run ``worker(rank, processes, options)`` in ``processes`` processes of one thread each, joined by gloo.

    On a small CPU two processes of one thread are faster than one process of two threads: oneDNN's barriers
    wait for a thread that another program delays.
    """
    os.environ.update(_MEMORY)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(29500 + os.getpid() % 2000))
    # SIGTERM becomes an ordinary exit, which ends the workers too, because they are daemons.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    start_processes(_entry, (processes, worker, options), processes, daemon=True, start_method="spawn")


def _entry(rank: int, processes: int, worker: Callable[[int, int, Any], None], options: Any) -> None:
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    else:
        torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group("gloo", rank=rank, world_size=processes)
    try:
        worker(rank, processes, options)
    finally:
        if processes > 1:
            dist.destroy_process_group()


def start_from(model: nn.Module, file: Path, fresh: bool) -> None:
    """Load those weights of ``file`` that fit ``model``; do nothing if there is no such file or with
    ``fresh``."""
    if fresh or not file.exists():
        return
    own = model.state_dict()
    shipped = {
        k: v.to(own[k].dtype) for k, v in load_file(file).items() if k in own and own[k].shape == v.shape
    }
    model.load_state_dict(shipped, strict=False)


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision() -> torch.autocast:
    """Return a context in which networks compute in bfloat16, unless the processor only emulates it, which takes many
    times as long as float32."""
    where = device().type
    able = where != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(where, torch.bfloat16, enabled=bool(able))


class Trainer:
    """Train one model with AdamW (and Muon), gradients averaged over processes, a cosine schedule over
    wall-clock time, EMA and checkpoints.

    Args:
        model: its parameters that require gradients are trained.
        folder: for ``state.safetensors`` (weights, EMA, optimiser) and ``log.jsonl``; training resumes from
            the state in it.
        minutes: length of the run, over which the learning rate falls from ``rate`` to ``rate / 20``.
        rate: greatest learning rate, reached after ``warmup`` steps.
        average: EMA decay per step.
        matrices: parameters [m, n] of the model that Muon trains (Jordan et al. 2024); AdamW trains the
            others. The updates of both have the same root mean square.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: Path,
        rank: int,
        processes: int,
        *,
        minutes: float,
        rate: float,
        average: float,
        warmup: int = 100,
        matrices: Sequence[nn.Parameter] = (),
    ) -> None:
        self.model, self.folder, self.rank, self.processes = model, folder, rank, processes
        self.rate, self.warmup, self.decay, self.seconds = rate, warmup, average, minutes * 60
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.parameters if id(p) not in chosen]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        ]
        if matrices:
            muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            self.optimisers.append(muon)
        self.ema = [p.detach().clone() for p in self.parameters]
        self.step = self.samples = 0
        self.spent = 0.0
        self.sums: dict[str, float] = {}
        self.counted = 0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.safetensors").exists():
            self._load()
        self._share()
        self.begun = self.logged = self.saved = time.monotonic()

    @property
    def progress(self) -> float:
        """Share of the run that is over, 0..1. Processes may read slightly different values."""
        return min((self.spent + time.monotonic() - self.begun) / self.seconds, 1.0)

    def update(self, loss: Tensor, samples: int, **figures: float | Tensor) -> bool:
        """Do the backward pass and a step. Return False once the time is over, in all processes at the same
        step."""
        loss.backward()
        progress = self._reduce(self.progress)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        factor = min(1.0, (self.step + 1) / self.warmup) * (
            0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
        )
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate * factor
            if torch.isfinite(norm):
                optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        self.step += 1
        self.samples += samples * self.processes
        self._log(progress, loss=loss.detach(), grad=norm, **figures)
        return progress < 1.0

    def averaged(self) -> dict[str, Tensor]:
        """Return the model's state dict with the EMA weights."""
        state = dict(self.model.state_dict())
        names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        state.update(zip(names, self.ema, strict=True))
        return state

    def record(self, **figures: Any) -> None:
        """Append a line to the log."""
        if self.rank == 0:
            minutes = (self.spent + time.monotonic() - self.begun) / 60
            with (self.folder / "log.jsonl").open("a") as log:
                log.write(
                    json.dumps(
                        {"minutes": round(minutes, 2), "step": self.step, "samples": self.samples, **figures}
                    )
                    + "\n"
                )

    def due(self, minutes: float) -> bool:
        """Whether it is time to measure and save: True every ``minutes``, in all processes at once."""
        late = time.monotonic() - self.saved > minutes * 60
        late = bool(self._reduce(float(late)) > 0)
        if late:
            self.saved = time.monotonic()
        return late

    def save(self) -> None:
        """Write everything that resuming needs, through a temporary file."""
        if self.rank:
            return
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"ema.{i}": v for i, v in enumerate(self.ema)}
        kept = {p: entry for optimiser in self.optimisers for p, entry in optimiser.state.items()}
        for i, parameter in enumerate(self.parameters):
            for key, value in kept.get(parameter, {}).items():
                state[f"optimiser.{i}.{key}"] = value
        spent = self.spent + time.monotonic() - self.begun
        state["clock"] = torch.tensor([self.step, self.samples, spent], dtype=torch.float64)
        part = self.folder / "state.part"
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, part)
        part.replace(self.folder / "state.safetensors")

    def _load(self) -> None:
        state = load_file(self.folder / "state.safetensors", device=str(self.parameters[0].device))
        self.model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
        self.ema = [state[f"ema.{i}"] for i in range(len(self.parameters))]
        owner = {p: o for o in self.optimisers for group in o.param_groups for p in group["params"]}
        for i, parameter in enumerate(self.parameters):
            prefix = f"optimiser.{i}."
            entry = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
            if entry:
                owner[parameter].state[parameter] = entry
        step, samples, self.spent = state["clock"].tolist()
        self.step, self.samples = int(step), int(samples)

    def _share(self) -> None:
        if self.processes > 1:
            for parameter in self.model.state_dict().values():
                dist.broadcast(parameter, 0)
            self.ema = [p.detach().clone() for p in self.parameters] if self.step == 0 else self.ema

    def _reduce(self, number: float) -> float:
        """Average the gradients, if there are any, and one number over the processes; return the number."""
        if self.processes == 1:
            return number
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients] + [torch.tensor([number])])
        dist.all_reduce(flat)
        flat /= self.processes
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()
        return float(flat[-1])

    def _log(self, progress: float, **figures: float | Tensor) -> None:
        for key, value in figures.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(value)
        self.counted += 1
        if time.monotonic() - self.logged > 20 or progress >= 1:
            self.record(
                rate=f"{self.optimisers[0].param_groups[0]['lr']:.1e}",
                **{k: round(v / self.counted, 5) for k, v in self.sums.items()},
            )
            self.sums, self.counted, self.logged = {}, 0, time.monotonic()
