"""Measure how much time a step takes with LoRAs of layers:
``python -m benchmarks.layer_lora [--json] [--rounds N] [--rank N] [--no-core]``.

An SD1.5-size UNet with random weights samples at 512 x 512, positive and negative, in one process of
ComfyUI's python. This needs a ComfyUI at ``$COMFYUI_PATH`` or ``~/comfy/ComfyUI``. Four layers fill the canvas without
overlap, each with words of its own; the LoRAs change all projections of all attentions. The variants sample the
same few steps by turns; each ratio is the median over the rounds of a variant's time divided by the plain
prompt's in that round, by the clock. It includes planning the layers' words and LoRAs and projecting the words, once
a run.

* ``regions_4``: Regional Prompt Attention without LoRAs; ``ratio_1``, ``ratio_4``: one of the layers, or each, has a
  LoRA.
* ``core_regions_4``: four masked conditionings, combined; ``core_ratio_1``, ``core_ratio_4``: one of them, or each, has
  a LoRA by Create Hook LoRA. Each LoRA has a pass of its own.
"""

from __future__ import annotations

import argparse
import json

from benchmarks.hosts.find import run_script

GOALS = {"ratio_4": 1.15}
NAMES = {
    "regions_4": "4 layers, Regional Prompt Attention, no LoRA",
    "ratio_1": "the same, one layer with a LoRA",
    "ratio_4": "the same, a LoRA on each",
    "core_regions_4": "4 masked conditionings, no LoRA",
    "core_ratio_1": "the same, one with Create Hook LoRA",
    "core_ratio_4": "the same, Create Hook LoRA on each",
}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument(
        "--rounds", type=int, default=5, help="number of rounds of all variants (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=2, help="number of steps of a run (default: %(default)s)"
    )
    parser.add_argument(
        "--side", type=int, default=512, help="side of the picture, pixels (default: %(default)s)"
    )
    parser.add_argument("--rank", type=int, default=32, help="rank of the LoRAs (default: %(default)s)")
    parser.add_argument(
        "--no-core", action="store_true", help="leave out core's conditionings, which take most of the time"
    )
    options = parser.parse_args()
    figures = run_script(
        "layer_lora_host.py",
        options.rounds,
        options.steps,
        options.side,
        options.rank,
        int(not options.no_core),
    )
    print(
        f"| a step at {options.side} x {options.side} | times the plain prompt's | least and greatest | in "
        f"processor time | goal |"
    )
    print("| --- | --- | --- | --- | --- |")
    for key, name in ((k, name) for k, name in NAMES.items() if k in figures):
        low, high = figures[f"{key}_range"]
        goal = f"≤ {GOALS[key]:.2f}" if key in GOALS else ""
        print(
            f"| {name} | {figures[key]:.3f} | {low:.3f} – {high:.3f} | {figures[f'{key}_processor']:.3f} | "
            f"{goal} |"
        )
    print(
        f"\nRank {options.rank}, {options.rounds} rounds of {options.steps} steps, {figures['threads']:.0f} threads, "
        f"{figures['device']}."
    )
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
