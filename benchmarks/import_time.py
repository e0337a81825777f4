"""Measure how long ComfyUI takes to import the pack: ``python -m benchmarks.import_time [--json]``.

Each round starts ComfyUI without a server in a new process of its own python and times the import of the
pack; the figure is the median. This needs a ComfyUI at ``$COMFYUI_PATH`` or ``~/comfy/ComfyUI``.
"""

from __future__ import annotations

import argparse
import json
import statistics

from benchmarks.hosts.find import run_script


def main() -> None:
    """Print the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of processes to time (default: %(default)s)"
    )
    options = parser.parse_args()
    rounds = [run_script("import_time_host.py") for _ in range(options.rounds)]
    figures = {
        "pack_import_s": round(statistics.median(r["seconds"] for r in rounds), 3),
        "new_modules": rounds[0]["new"],
    }
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"importing the pack: {figures['pack_import_s']} s (median of {options.rounds}); modules it "
            f"brings in: {figures['new_modules'] or 'none'}"
        )


if __name__ == "__main__":
    main()
