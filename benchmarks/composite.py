"""Compare compositing with ComfyUI's own compositor:
``python -m benchmarks.composite [--json] [--rounds N]``.

Both composite eight full-size layers with masks at 1920 x 1080, in mode ``normal`` and in ``soft-light`` over
a ``normal`` bottom, by turns in one process of ComfyUI's python. This needs a ComfyUI at ``$COMFYUI_PATH`` or
``~/comfy/ComfyUI``. Figures:

* ``ratio_normal``, ``ratio_soft_light``: our fastest round divided by ComfyUI's fastest, by the clock;
  ``processor_…`` is the same in processor time, which other programs disturb less.
* ``peak_memory_ratio``: the size of the layers' tensors plus the process's greatest growth while it
  composites, divided by the size of the layers' tensors; ``…_core`` is ComfyUI's.
* ``greatest_difference`` between the two pictures, 0..1.
"""

from __future__ import annotations

import argparse
import json

from benchmarks.hosts.find import run_script


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument(
        "--rounds", type=int, default=5, help="number of rounds of both (default: %(default)s)"
    )
    options = parser.parse_args()
    figures = run_script("composite_host.py", options.rounds)
    print("| 8 layers, 1920 x 1080 | time, ours over ComfyUI's | processor time |\n| --- | --- | --- |")
    for name, key in (("normal", "normal"), ("soft-light", "soft_light")):
        print(f"| {name} | {figures[f'ratio_{key}']:.3f} | {figures[f'processor_ratio_{key}']:.3f} |")
    print(f"\nFastest of {options.rounds} rounds each, {figures['threads']:.0f} threads offered.")
    print(
        f"Peak memory: {figures['peak_memory_ratio']:.2f} times the layers; ComfyUI's "
        f"{figures['peak_memory_ratio_core']:.2f}."
    )
    print(f"Greatest difference of the pictures: {figures['greatest_difference']:.1g}.")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
