"""Import the pack once in a ComfyUI and print one line of JSON. ``import_time.py`` starts this script under
ComfyUI's python; it is never imported."""

from __future__ import annotations

from answers import ANSWERS  # isort: skip  # first: reserves standard output for answers
import boot  # isort: skip  # second: it makes ComfyUI importable
import json
import sys
import time

boot.load_extras()
before = set(sys.modules)
start = time.perf_counter()
if not boot.load_pack():
    raise SystemExit("ComfyUI could not load the pack. The text above says why")
seconds = time.perf_counter() - start
new = sorted(name for name in set(sys.modules) - before if not name.startswith(boot.NAME))
ANSWERS.write(json.dumps({"seconds": seconds, "new": new}) + "\n")
ANSWERS.flush()
