"""Measure how much time a step takes with words per layer:
``python -m benchmarks.regional_attention [--json] [--rounds N] [--attention NAME]``.

An SD1.5-size UNet with random weights samples at 512 x 512, positive and negative, in one process of
ComfyUI's python. This needs a ComfyUI at ``$COMFYUI_PATH`` or ``~/comfy/ComfyUI``. The variants sample the
same few steps by turns; each ratio is the median over the rounds of a variant's time divided by the plain
prompt's in that round, by the clock. It includes planning and projecting the layers' words, once a run.

* ``ratio_4``, ``ratio_16``: Regional Prompt Attention with layers that fill the canvas without overlap;
  ``collage_ratio_4`` is its mode ``collage``.
* ``core_ratio_4``: four conditionings with ConditioningSetMask, combined.
* ``coupling_ratio_4``: every region's attention is computed everywhere and then masked (Attention Couple).
"""

from __future__ import annotations

import argparse
import json

from benchmarks.hosts.find import run_script

ATTENTION = ("pytorch", "sub-quadratic", "split")
GOALS = {"ratio_4": 1.05, "ratio_16": 1.10}
NAMES = {
    "ratio_4": "4 layers, Regional Prompt Attention",
    "ratio_16": "16 layers, Regional Prompt Attention",
    "collage_ratio_4": "4 layers, its mode collage",
    "coupling_ratio_4": "4 regions, attention of all everywhere (Attention Couple)",
    "core_ratio_4": "4 regions, ConditioningSetMask and Combine",
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
        "--attention",
        choices=ATTENTION,
        default="pytorch",
        help="ComfyUI's implementation of attention (default: %(default)s)",
    )
    parser.add_argument(
        "--side", type=int, default=512, help="side of the picture, pixels (default: %(default)s)"
    )
    options = parser.parse_args()
    figures = run_script(
        "regional_attention_host.py", options.rounds, options.steps, options.attention, options.side
    )
    print(
        f"| a step at {options.side} x {options.side} | times the plain prompt's | least and greatest | in "
        f"processor time | goal |"
    )
    print("| --- | --- | --- | --- | --- |")
    for key, name in NAMES.items():
        low, high = figures[f"{key}_range"]
        goal = f"≤ {GOALS[key]:.2f}" if key in GOALS else ""
        print(
            f"| {name} | {figures[key]:.3f} | {low:.3f} – {high:.3f} | {figures[f'{key}_processor']:.3f} | "
            f"{goal} |"
        )
    print(
        f"\n{options.rounds} rounds of {options.steps} steps, {options.attention} attention, "
        f"{figures['threads']:.0f} threads, {figures['device']}."
    )
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
