"""Importing the pack brings next to nothing else into ComfyUI."""

import subprocess
import sys

from benchmarks.hosts.find import find_host, run_script

MAY_ADD = {"defusedxml"}
"""Packages that the pack may import when ComfyUI starts; Pillow brings this one nearly always. psd-tools and its
fifty modules wait until a PSD is read or written."""


def test_importing_the_pack_adds_no_module_but_those_named_here(skip_suite, could_not_start):
    host = find_host()
    if isinstance(host, str):
        skip_suite("modules that the pack brings in", host)
    try:
        new = run_script("import_time_host.py")["new"]
    except SystemExit as error:
        could_not_start("ComfyUI in process", str(error))
    assert [name for name in new if name.split(".")[0] not in MAY_ADD] == []


def test_the_core_reads_no_psd_until_it_is_asked_to():
    """As the one above, where there is no ComfyUI."""
    code = "import sys, layered_core.files; print([m for m in sys.modules if m.startswith('psd_tools')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
