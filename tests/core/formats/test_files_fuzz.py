"""Untrusted files: whatever their bytes are, reading gives a valid document or one error that names the
fault, with limited memory and time.

``make test`` tries 200 mutated files, ``make fuzz`` 2,000 (LAYERED_FUZZ sets the number).
"""

import io
import json
import os
import resource
import time
import zipfile

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
    """Read a file and return whether that gave a document. Any error but a one-line LayeredError fails the
    test, and so does a long time."""
    start = time.process_time()
    complaint = None
    try:
        file = read_layers(path, LIMITS)
    except LayeredError as error:
        complaint = str(error)
    assert time.process_time() - start < 5
    if complaint is None:
        assert all(layer.image is None or layer.image.isfinite().all() for layer in file.document)
    else:
        assert complaint.strip()
        assert "\n" not in complaint.strip()
    return complaint is None


def test_mutated_files_give_a_document_or_a_named_error(seeds, tmp_path):
    tried = {True: 0, False: 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = LIMITS.max_alloc_bytes / 1024  # ru_maxrss is in KiB

    @settings(
        max_examples=COUNT, deadline=None, derandomize=COUNT <= 200, suppress_health_check=list(HealthCheck)
    )
    @given(st.integers(0, len(seeds) - 1), st.booleans(), st.integers(0, 99), mutations())
    def check(seed, deep, pick, changes):
        end, data = seeds[seed]
        if end == ".png":
            (tmp_path / "a.png").write_bytes(mutated(data, changes))
            plain = {"version": 1, "width": 9, "height": 9, "layers": [{"name": "a", "image": "a.png"}]}
            end, data = ".json", json.dumps(plain).encode()
        else:
            data = inside(data, pick, changes) if end == ".ora" and deep else mutated(data, changes)
        path = tmp_path / f"fuzz{end}"
        path.write_bytes(data)
        tried[attempt(path)] += 1

    check()
    assert sum(tried.values()) >= COUNT
    assert tried[False] >= COUNT // 10  # enough of the mutations make a file unreadable
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4 * whole


@pytest.mark.parametrize("index", range(6))
def test_a_file_cut_anywhere_is_named(seeds, tmp_path, index):
    end, data = seeds[index]
    path = tmp_path / f"cut{end}"
    for length in range(0, len(data) - 1, max(1, len(data) // 40)):
        path.write_bytes(data[:length])
        # The composite at the end of a PSD is not read, so a cut there may go unnoticed.
        if attempt(path):
            assert end in (".psd", ".psb")
            assert length > len(data) * 0.6


# PSD


# OpenRaster


# JSON
