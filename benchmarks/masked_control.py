"""Measure how much time control per layer takes: ``python -m benchmarks.masked_control [--json]``.

The figures are of one denoising step (cond and uncond) of an SD1.5-size UNet with a ControlNet, both with
random weights; the variants take turns.

* In diffusers, divided by the time of one plain ControlNet: ``ratio_4``, four layers on one net;
  ``chained_ratio_4``, four masked ControlNets in a row. The ratio is that of the least times;
  ``ratio_4_median`` is the median of the rounds' ratios. ``max_abs_diff`` is the greatest difference of the
  two predictions, which must be equal.
* In ComfyUI, if there is one at ``$COMFYUI_PATH`` or ``~/comfy/ComfyUI``, divided by the time of its own
  Apply
  ControlNet: ``comfyui_ratio_4``, four layers on Masked ControlNet Apply; ``core_chained_ratio_4``, ComfyUI's
  own node four times in a row; ``core_masked_ratio_4``, the same on four conditionings with
  ConditioningSetMask. All are medians of the rounds' ratios. ``core_max_abs_diff`` is the greatest difference
  to ComfyUI's own node, of a mask of ones and of four layers of full strength.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from benchmarks.hosts.find import find_host, run_script
from layered_core.control.control_map import ControlMap
from layered_core.document import Control
from layered_diffusers.methods.masked_control import MaskedControl
from layered_diffusers.sampling import Run, add_residuals

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280)}
LAYERS = 4
NAMES = {
    "ratio_4": "diffusers: 4 layers on one net",
    "chained_ratio_4": "diffusers: 4 masked nets in a row",
    "comfyui_ratio_4": "ComfyUI: 4 layers, Masked ControlNet Apply",
    "core_chained_ratio_4": "ComfyUI: core's Apply ControlNet 4 times in a row",
    "core_masked_ratio_4": "ComfyUI: the same on 4 conditionings with ConditioningSetMask",
}
GOALS = {"ratio_4": 1.05, "comfyui_ratio_4": 1.05}


def run_of(unet: UNet2DConditionModel, side: int) -> Run:
    """Return a run that is ready for one step."""
    latents = torch.randn(1, 4, side // 8, side // 8)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(2)
    return Run(
        unet=unet,
        scheduler=scheduler,
        timesteps=scheduler.timesteps,
        latents=latents,
        noise=latents,
        context=torch.randn(2, 77, 768),
        guidance=7.5,
    )


def step(run: Run, controls: list[MaskedControl]) -> Tensor:
    """Return the UNet's prediction with those controls."""
    both = torch.cat([run.latents] * 2)
    more = add_residuals([c.model_inputs(run, both, 0) for c in controls])
    return run.unet(both, run.timesteps[0], run.context, **more).sample


@torch.inference_mode()
def measure(side: int, rounds: int) -> dict[str, Any]:
    """Measure the figures of diffusers."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, **SD15).eval()
    net = ControlNetModel.from_unet(unet).eval()
    # An untrained net's residuals are zeros, with which nothing would be compared.
    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.03)
    run = run_of(unet, side)
    hint = torch.rand(3, side, side)
    quarters = torch.zeros(LAYERS, side, side)
    for i in range(LAYERS):
        quarters[i, :, i * side // LAYERS : (i + 1) * side // LAYERS] = 1
    strengths = tuple(Control(hint="canny", strength=0.4 + 0.2 * i) for i in range(LAYERS))
    plain = MaskedControl(net, hint, ControlMap(torch.ones(1, side, side), strengths[3:]))
    layered = MaskedControl(net, hint, ControlMap(quarters, strengths))
    chained = [
        MaskedControl(net, hint, ControlMap(quarters[i : i + 1], strengths[i : i + 1])) for i in range(LAYERS)
    ]
    for control in (plain, layered, *chained):
        control.start(run, None)
    variants: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: step(run, [plain]),
        "layered": lambda: step(run, [layered]),
        "chained": lambda: step(run, chained),
    }
    seconds: dict[str, list[float]] = {k: [] for k in variants}
    difference = float((variants["layered"]() - variants["chained"]()).abs().max())
    for _ in range(rounds):
        for name, variant in variants.items():
            begun = time.perf_counter()
            variant()
            seconds[name].append(time.perf_counter() - begun)
    figures: dict[str, Any] = {}
    for key, name in (("ratio_4", "layered"), ("chained_ratio_4", "chained")):
        ratios = [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        figures[key] = min(seconds[name]) / min(seconds["plain"])
        figures[f"{key}_median"] = statistics.median(ratios)
        figures[f"{key}_range"] = [min(ratios), max(ratios)]
    return figures | {"max_abs_diff": difference, "rounds": rounds, "side": side}


def measure_comfyui(side: int, rounds: int) -> dict[str, Any]:
    """Measure the figures of ComfyUI in a process of its own; none if there is no ComfyUI.

    Raises:
        SystemExit: ComfyUI could not run the script.
    """
    host = find_host()
    if isinstance(host, str):
        sys.stderr.write(f"not measured in ComfyUI: {host}\n")
        return {}
    return run_script("masked_control_host.py", rounds, side)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.masked_control", description=__doc__)
    parser.add_argument(
        "--side", type=int, default=512, help="side of the picture, pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="number of rounds of all variants (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        **measure(options.side, options.rounds),
        **measure_comfyui(options.side, options.rounds),
    }
    print(
        f"| a step at {options.side} x {options.side} | times one plain ControlNet's | least and greatest | "
        f"goal |\n| --- | --- | --- | --- |"
    )
    for key, name in NAMES.items():
        if key in figures:
            low, high = figures[f"{key}_range"]
            goal = f"≤ {GOALS[key]:.2f}" if key in GOALS else ""
            print(f"| {name} | {figures[key]:.3f} | {low:.3f} – {high:.3f} | {goal} |")
    differences = ", ".join(
        f"{k} {figures[k]:.2g}" for k in ("max_abs_diff", "core_max_abs_diff") if k in figures
    )
    print(f"\n{options.rounds} rounds, {torch.get_num_threads()} threads; {differences}.")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
