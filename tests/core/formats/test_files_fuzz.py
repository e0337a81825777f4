"""Untrusted files: whatever their bytes are, reading gives a valid document or one error that names the
fault, with limited memory and time.

``make test`` tries 200 mutated files, ``make fuzz`` 2,000 (LAYERED_FUZZ sets the number) and prints a table of them.
"""

import io
import json
import os
import resource
import sys
import time
import zipfile
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_core.formats.limits import Limits

COUNT = int(os.environ.get("LAYERED_FUZZ", "200"))
LIMITS = Limits(max_side=4096, max_alloc_bytes=2**26)
EXTREMES = [
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"<",
    b"&#0;",
    b'"',
    b"\xed\xa0\x80",
]


@st.composite
def mutations(draw):
    """Generate changes to bytes: (place as a share of the length, kind, value)."""
    kind = st.sampled_from(["flip", "set", "cut", "drop", "repeat", "insert", "end"])
    return draw(
        st.lists(
            st.tuples(st.floats(0, 1), kind, st.integers(0, 255), st.sampled_from(EXTREMES)),
            min_size=1,
            max_size=6,
        )
    )


def mutated(data, changes):
    data = bytearray(data)
    for share, kind, number, extreme in changes:
        at = int(share * max(len(data) - 1, 0))
        if kind == "flip" and data:
            data[at] ^= 1 << number % 8
        elif kind == "set":
            data[at : at + len(extreme)] = extreme
        elif kind == "cut":
            del data[at : at + number]
        elif kind == "drop":
            del data[at : at + 1 + number % 4]
        elif kind == "repeat":
            data[at:at] = data[at : at + number] * (1 + number % 5)
        elif kind == "insert":
            data[at:at] = extreme * (1 + number % 7)
        elif kind == "end":
            del data[at:]
    return bytes(data)


def inside(data, pick, changes):
    """Mutate one entry of a zip archive and pack it again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        for i, name in enumerate(names):
            content = old.read(name)
            new.writestr(name, mutated(content, changes) if i == pick % len(names) else content)
    return out.getvalue()


def attempt(path):
    """Read a file and return whether that gave a document, and the seconds of processor time it took. Any error but
    a one-line LayeredError fails the test, and so does a long time."""
    start = time.process_time()
    complaint = None
    try:
        file = read_layers(path, LIMITS)
    except LayeredError as error:
        complaint = str(error)
    seconds = time.process_time() - start
    assert seconds < 5
    if complaint is None:
        assert all(layer.image is None or layer.image.isfinite().all() for layer in file.document)
    else:
        assert complaint.strip()
        assert "\n" not in complaint.strip()
    return complaint is None, seconds


def table(tried, rise_bytes):
    """Return what became of the files as Markdown: ``tried`` is {ending: [(is a document, seconds), ...]}."""
    lines = [
        "| | files | read | refused with a named error | longest, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for end, all_of_it in sorted({**tried, "all": sum(tried.values(), [])}.items()):
        read, seconds = sum(done for done, _ in all_of_it), max(seconds for _, seconds in all_of_it)
        lines.append(f"| {end} | {len(all_of_it):,} | {read:,} | {len(all_of_it) - read:,} | {seconds:.2f} |")
    lines.append(f"\nNone did anything else. The process grew by {rise_bytes / 2**20:.0f} MiB at most.")
    return "\n".join(lines)


def test_mutated_files_give_a_document_or_a_named_error(seeds, tmp_path, capsys):
    tried = defaultdict(list)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = LIMITS.max_alloc_bytes / 1024  # ru_maxrss is in KiB

    @settings(
        max_examples=COUNT, deadline=None, derandomize=COUNT <= 200, suppress_health_check=list(HealthCheck)
    )
    @given(st.integers(0, len(seeds) - 1), st.booleans(), st.integers(0, 99), mutations())
    def check(seed, deep, pick, changes):
        end, data = seeds[seed]
        kind = end
        if end == ".png":
            (tmp_path / "a.png").write_bytes(mutated(data, changes))
            plain = {"version": 1, "width": 9, "height": 9, "layers": [{"name": "a", "image": "a.png"}]}
            end, data = ".json", json.dumps(plain).encode()
        else:
            data = inside(data, pick, changes) if end == ".ora" and deep else mutated(data, changes)
        path = tmp_path / f"fuzz{end}"
        path.write_bytes(data)
        tried[kind].append(attempt(path))

    check()
    outcomes = [done for of_kind in tried.values() for done, _ in of_kind]
    assert len(outcomes) >= COUNT
    assert outcomes.count(False) >= COUNT // 10  # enough of the mutations make a file unreadable
    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert rise < 4 * whole
    if "LAYERED_FUZZ" in os.environ:
        with capsys.disabled():
            sys.stdout.write(f"\n{table(tried, 1024 * rise)}\n")


@pytest.mark.parametrize("index", range(6))
def test_a_file_cut_anywhere_is_named(seeds, tmp_path, index):
    end, data = seeds[index]
    path = tmp_path / f"cut{end}"
    for length in range(0, len(data) - 1, max(1, len(data) // 40)):
        path.write_bytes(data[:length])
        # The composite at the end of a PSD is not read, so a cut there may go unnoticed.
        if attempt(path)[0]:
            assert end in (".psd", ".psb")
            assert length > len(data) * 0.6
