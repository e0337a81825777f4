"""Measure how much time a step takes with words per layer:
``python -m benchmarks.regional_attention [--family NAME] [--json] [--rounds N] [--attention NAME]``.

An SD1.5-size UNet with random weights samples at 512 x 512, positive and negative, in one process of
ComfyUI's python. This needs a ComfyUI at ``$COMFYUI_PATH`` or ``~/comfy/ComfyUI``. The variants sample the
same few steps by turns; each ratio is the median over the rounds of a variant's time divided by the plain
prompt's in that round, by the clock. It includes planning and projecting the layers' words, once a run.

* ``ratio_4``, ``ratio_16``: Regional Prompt Attention with layers that fill the canvas without overlap;
  ``collage_ratio_4`` is its mode ``collage``.
* ``core_ratio_4``: four conditionings with ConditioningSetMask, combined.
* ``coupling_ratio_4``: every region's attention is computed everywhere and then masked (Attention Couple).

``--family flux``: a Flux of one double and one single block with random weights samples at 1024 x 1024, which
is 4096 tokens of the picture, with 512 tokens of the main prompt and 48 of each layer, at cfg 1.
``ratio_4`` and ``ratio_16`` are at the node's defaults, ``hard_…`` with layers that keep nothing for the
main prompt. ``core_ratio_4`` has the main prompt too, as people use it. ``memory`` is what each way to
compute one attention makes at most beside queries, keys and values, MB, for Flux's 24 heads of 128 in
bfloat16 and 16 layers, without what PyTorch's kernels need inside.
"""

from __future__ import annotations

import argparse
import json

from benchmarks.hosts.find import run_script

ATTENTION = ("pytorch", "sub-quadratic", "split")
GOALS = {"ratio_4": 1.05, "ratio_16": 1.10}
FLUX_GOALS = {"ratio_4": 1.10, "ratio_16": 1.20}
FLUX_NAMES = {
    "ratio_4": "4 layers, Regional Prompt Attention",
    "ratio_16": "16 layers, Regional Prompt Attention",
    "hard_ratio_4": "4 layers, without shares of the main prompt and emphasis",
    "hard_ratio_16": "16 layers, without shares of the main prompt and emphasis",
    "core_ratio_4": "4 regions and the main prompt, ConditioningSetMask and Combine",
}
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
    parser.add_argument("--side", type=int, help="side of the picture, pixels (default: 512; of Flux: 1024)")
    parser.add_argument(
        "--family", choices=("sd15", "flux"), default="sd15", help="network (default: %(default)s)"
    )
    parser.add_argument(
        "--hidden", type=int, default=2048, help="width of Flux, a multiple of 128 (default: %(default)s)"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure the memory of Flux")
    options = parser.parse_args()
    of_flux = options.family == "flux"
    options.side = options.side or (1024 if of_flux else 512)
    goals, names = (FLUX_GOALS, FLUX_NAMES) if of_flux else (GOALS, NAMES)
    if of_flux:
        figures = run_script(
            "regional_flux_host.py", options.rounds, options.steps, options.hidden, options.side,
            int(not options.no_memory),
        )  # fmt: skip
    else:
        figures = run_script(
            "regional_attention_host.py", options.rounds, options.steps, options.attention, options.side
        )
    print(
        f"| a step at {options.side} x {options.side} | times the plain prompt's | least and greatest | in "
        f"processor time | goal |"
    )
    print("| --- | --- | --- | --- | --- |")
    for key, name in names.items():
        low, high = figures[f"{key}_range"]
        goal = f"≤ {goals[key]:.2f}" if key in goals else ""
        print(
            f"| {name} | {figures[key]:.3f} | {low:.3f} – {high:.3f} | {figures[f'{key}_processor']:.3f} | "
            f"{goal} |"
        )
    print(
        f"\n{options.rounds} rounds of {options.steps} steps, {options.attention} attention, "
        f"{figures['threads']:.0f} threads, {figures['device']}."
    )
    for side, ways in figures.get("memory", {}).items():
        print(f"\nMB at {side} x {side}: " + "; ".join(f"{way} {most:.0f}" for way, most in ways.items()))
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
