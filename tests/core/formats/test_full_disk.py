"""On a disk that is full, nothing is left of what did not fit, and what was there stays."""

import json
import re
import shutil
import subprocess
import sys

import pytest

ENDS = [".psd", ".psb", ".ora", ".png", ""]
PAGE = 4096

WRITE = f"""
import json, sys
from pathlib import Path
import torch
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.files import write_layers
from layered_core.formats.pictures import write_picture

def free_pages(disk, count):
    fill = disk / "fill"
    fill.write_bytes(b"")
    with fill.open("r+b", buffering=0) as file:
        try:
            while file.write(bytes({PAGE})):
                pass
        except OSError:
            pass
        file.truncate(max(file.tell() - count * {PAGE}, 0))

disk = Path(sys.argv[1])
pixels = torch.rand(96, 96, 4, generator=torch.Generator().manual_seed(3))
told = {{}}
for end in {ENDS!r}:
    path = disk / f"scene{{end}}"
    if end:
        path.write_bytes(b"before")
    for pages in range(9):
        free_pages(disk, pages)
        try:
            if end == ".png":
                write_picture(pixels, path)
            else:
                write_layers(LayerDocument(96, 96, (Layer("a", pixels),)), path)
            error = None
        except LayeredError as caught:
            error = str(caught)
        left = sorted(p.name for p in disk.iterdir() if p.name != "fill")
        told[f"{{end}} {{pages}}"] = [error, left, path.read_bytes().decode() if end else None]
    (disk / "fill").unlink()
    if end:
        path.unlink()
print(json.dumps(told))
"""
"""Writes over a file, with 0 to 8 pages of the disk free, a file of every kind that takes more; prints for each the
error, the files that are there then, and the content of the old one."""


@pytest.fixture(scope="module")
def told(skip_suite, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    # The mount is seen by these processes only and ends with them.
    mount = f'mount -t tmpfs -o size=256k tmpfs "{disk}"'
    within = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*within, mount], capture_output=True).returncode:
        skip_suite("writing on a full disk", "this user may not mount a tmpfs: unshare --user --mount fails")
    run = subprocess.run(
        [*within, f'{mount} && exec "$0" -c "$1" "{disk}"', sys.executable, WRITE],
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return json.loads(run.stdout)


@pytest.mark.parametrize("pages", range(9))
@pytest.mark.parametrize("end", ENDS)
def test_a_full_disk_is_named_and_what_was_there_stays(told, end, pages):
    error, left, content = told[f"{end} {pages}"]
    assert re.fullmatch(
        rf"(file|folder) '/.*/scene{end}.*' cannot be written: No space left on device\. "
        rf"Free some space, or write to another disk",
        error,
    )
    assert ".part" not in error
    assert left == ([f"scene{end}"] if end else [])
    assert content == ("before" if end else None)
