"""What importing the pack costs inside ComfyUI: ``python -m benchmarks.import_time [--json]``.

Boots ComfyUI without a server in its own python, then times the import of the pack, in a fresh process a round; the median counts.
Needs a ComfyUI at ``$COMFYUI_PATH`` or ``~/comfy/ComfyUI``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_SCRIPT = """
import json, os, sys, time
sys.path.insert(0, os.getcwd())
import boot
boot.load_extras()
before = set(sys.modules)
start = time.perf_counter()
loaded = boot.load_pack()
seconds = time.perf_counter() - start
root = str(boot.PACK).replace(".", "_x_")
new = sorted(m for m in set(sys.modules) - before if not m.startswith(root))
print("RESULT" + json.dumps({"loaded": loaded, "seconds": seconds, "new": new}))
"""


def measure(comfyui: Path, python: Path) -> tuple[float, list[str]]:
    """Seconds that one import took, and the modules it brought in that are not the pack's own.

    Raises:
        SystemExit: ComfyUI could not load the pack.
    """
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, "-c", _SCRIPT], cwd=ROOT / "tests" / "comfyui" / "host", env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    result = json.loads(lines[0].removeprefix("RESULT")) if lines else {"loaded": False}
    if not result["loaded"]:
        raise SystemExit(f"ComfyUI could not load the pack:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return result["seconds"], result["new"]


def main() -> None:
    """Print the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=3, help="processes to time; default 3")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "comfyui"))
    from host_env import find_host  # type: ignore[import-not-found]  # lives with the tests, which need it too

    host = find_host()
    if isinstance(host, str):
        raise SystemExit(host)
    rounds = [measure(*host) for _ in range(options.rounds)]
    figures = {"pack_import_s": round(statistics.median(s for s, _ in rounds), 3), "new_modules": rounds[0][1]}
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"importing the pack: {figures['pack_import_s']} s (median of {options.rounds}); modules it brings in: {figures['new_modules'] or 'none'}"
        )


if __name__ == "__main__":
    main()
