"""What importing the pack costs inside ComfyUI: ``python -m benchmarks.import_time [--json]``.

Boots ComfyUI without a server in its own python, then times the import of the pack, in a fresh process a
round; the median counts. Needs a ComfyUI at ``$COMFYUI_PATH`` or ``~/comfy/ComfyUI``.
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
    parser.add_argument("--rounds", type=int, default=3, help="processes to time; default 3")
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
