"""Reserve standard output for a script's answers. Import this module first: everything that ComfyUI prints
afterwards goes to standard error."""

import os
import sys

ANSWERS = os.fdopen(os.dup(1), "w")
"""The file to which a script under ComfyUI's python writes its lines of JSON."""
ARGUMENTS = sys.argv[1:]
"""The script's arguments, kept here because ComfyUI parses the command line too."""

os.dup2(2, 1)
