"""Standard output kept for a script's answer. Import this first: what ComfyUI prints afterwards goes to
standard error."""

import os
import sys

ANSWERS = os.fdopen(os.dup(1), "w")
"""Where a script under ComfyUI's python writes its lines of JSON."""
ARGUMENTS = sys.argv[1:]
"""The script's arguments; ComfyUI reads the command line too."""

os.dup2(2, 1)
