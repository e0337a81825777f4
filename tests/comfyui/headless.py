"""Run scripts of this folder in one interpreter of the repository's environment, where importing diffusers takes
seconds. Standard input has a JSON list for each script, its path and arguments; the answer is a line of JSON: the
traceback, or null."""

import contextlib
import json
import runpy
import sys
import traceback

for line in sys.stdin:
    sys.argv = json.loads(line)
    problem = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except Exception:
        problem = traceback.format_exc()
    sys.stdout.write(json.dumps(problem) + "\n")
    sys.stdout.flush()
