"""What control per layer costs: ``python -m benchmarks.masked_control [--json]``.

One denoising step (cond and uncond) of an SD1.5-size UNet with a ControlNet, random weights: plain, with four layers on that one net, and with
four ControlNets in a row, as four chained apply nodes run them. The variants take turns; the ratio is of the least times, and the median of the
rounds' own ratios is given beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from layered_core.control import ControlMap
from layered_core.document import Control
from layered_diffusers.control import MaskedControl
from layered_diffusers.sampling import Run, add_residuals

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280)}
LAYERS = 4


def run_of(unet: UNet2DConditionModel, side: int) -> Run:
    """A run about to make one step."""
    latents = torch.randn(1, 4, side // 8, side // 8)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(2)
    return Run(unet, scheduler, scheduler.timesteps, latents, latents, torch.randn(2, 77, 768), guidance=7.5)


def step(run: Run, controls: list[MaskedControl]) -> Tensor:
    """The UNet's prediction with those controls."""
    both = torch.cat([run.latents] * 2)
    more = add_residuals([c.model_inputs(run, both, 0) for c in controls])
    return run.unet(both, run.timesteps[0], run.context, **more).sample


@torch.inference_mode()
def measure(side: int, rounds: int) -> dict[str, float]:
    """Seconds as ratios to one plain ControlNet."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, **SD15).eval()
    net = ControlNetModel.from_unet(unet).eval()
    # Untrained, its residuals are zeros: nothing would be compared.
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
    chained = [MaskedControl(net, hint, ControlMap(quarters[i : i + 1], strengths[i : i + 1])) for i in range(LAYERS)]
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
    least = {k: min(v) for k, v in seconds.items()}
    return {
        "ratio_4": least["layered"] / least["plain"],
        "ratio_4_median": statistics.median(a / b for a, b in zip(seconds["layered"], seconds["plain"], strict=True)),
        "chained_ratio_4": least["chained"] / least["plain"],
        "max_abs_diff": difference,
        "rounds": rounds,
        "side": side,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.masked_control", description=__doc__)
    parser.add_argument("--side", type=int, default=512, help="picture side, pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    figures = measure(options.side, options.rounds)
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{k:16} {v:.4g}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
