"""Imports the pack once in a ComfyUI: started by ``import_time.py`` under ComfyUI's python, never imported.
Prints one line of JSON."""

from __future__ import annotations

from answers import ANSWERS  # isort: skip  # first: standard output is kept for answers
import boot  # isort: skip  # second: it makes ComfyUI importable
import json
import sys
import time

boot.load_extras()
before = set(sys.modules)
start = time.perf_counter()
if not boot.load_pack():
    raise SystemExit("ComfyUI could not load the pack: see above")
seconds = time.perf_counter() - start
new = sorted(name for name in set(sys.modules) - before if not name.startswith(boot.NAME))
ANSWERS.write(json.dumps({"seconds": seconds, "new": new}) + "\n")
ANSWERS.flush()
