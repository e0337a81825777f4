"""Progress and stopping: what a host is told, what stops, and that work in bands gives the same bits."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

from layered_core import progress
from layered_core.canvas import masks
from layered_core.canvas.compositing import composite
from layered_core.canvas.masks import document_masks, visible_masks
from layered_core.control import hints
from layered_core.document import Layer, LayerDocument
from layered_core.editing.stack_preview import outlined
from layered_core.files import content_hash, read_layers, write_layers
from layered_core.painting import mattes
from layered_core.progress import by_rows, part, pause, read_all, reporting, row_bands, step, steps, watched


class StopError(BaseException):
    pass


def stop(done, total):
    raise StopError


def random_document(side=120):
    torch.manual_seed(0)
    layers = [
        Layer("flat", torch.rand(side, side, 4)),
        Layer("turned", torch.rand(50, 70, 4), torch.rand(50, 70), x=20, y=10, rotation=10),
        Layer("scaled", torch.rand(30, 30, 4), x=5.5, y=30, width=60, height=40, opacity=0.7),
    ]
    return LayerDocument(side, side, tuple(layers))


def test_without_a_host_nothing_is_told():
    step(1, 2)
    pause()
    assert list(steps("ab")) == ["a", "b"]


def test_a_host_is_told_before_each_piece_and_after_the_last():
    told = []
    with reporting(lambda *x: told.append(x)):
        assert list(steps("ab")) == ["a", "b"]
        pause()
    step(7, 9)
    assert told == [(0, 2), (1, 2), (2, 2), (2, 2)]


def test_work_inside_a_piece_counts_as_a_part_of_it_and_the_bar_never_falls_back():
    told = []
    with reporting(lambda done, total: told.append(done / total)):
        for _ in steps("ab"):
            for _ in steps("abc"):
                step(1, 2)
        with suppress(ValueError), part(1, 2):
            raise ValueError
        step(1, 4)
    *nested, after = told
    assert nested == sorted(nested)
    assert nested[:5] == [0, 0, 1 / 12, 1 / 6, 3 / 12]
    assert nested[-1] == 1
    assert after == 1 / 4


def test_bands_cover_every_row_once():
    assert row_bands(10, 4, 3, values=48) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert row_bands(2, 100, values=10) == [slice(0, 1), slice(1, 2)]
    assert row_bands(0, 4) == []


def test_a_watched_file_tells_of_every_megabyte_and_stops(tmp_path):
    told, path = [], tmp_path / "file"
    with reporting(lambda *x: told.append(x)), watched(path.open("wb")) as file:
        file.write(bytes(3 * 2**20))
    assert [done for done, _ in told] == [2**20, 2**21, 3 * 2**20]
    told.clear()
    with reporting(lambda *x: told.append(x)), watched(path.open("rb"), 3 * 2**20) as file:
        assert len(read_all(file, 2**30)) == 3 * 2**20
    assert told
    with pytest.raises(StopError), reporting(stop), watched(path.open("rb")) as file:
        file.read()
    assert file.closed


def in_small_bands(monkeypatch):
    def small(height, width, channels=1, values=0):
        return row_bands(height, width, channels, 1000)

    for module in (masks, mattes, hints, progress):
        monkeypatch.setattr(module, "row_bands", small)


def test_work_in_bands_gives_the_same_bits(monkeypatch):
    document = random_document()
    before, after = torch.rand(2, 3, 120, 90)

    def results():
        shown, rest = document_masks(document)
        matte = mattes.difference_matte(before, after, close=3)
        again, _ = visible_masks(torch.stack([x.coverage for x in document][:1]).expand(3, -1, -1) * 0.5)
        edges = hints.canny(before)
        taken = mattes.uncovered(before, after, matte)
        return shown, rest, matte, again, edges, taken, by_rows(torch.sqrt, before[0])

    whole = results()
    in_small_bands(monkeypatch)
    for a, b in zip(whole, results(), strict=True):
        assert torch.equal(a, b)


def test_visible_masks_are_right():
    shown, rest = visible_masks(torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1))
    assert shown.flatten().tolist() == [0.375, 0.375, 0.25]
    assert rest.item() == 0


def test_a_composite_stops_before_its_first_band_is_finished():
    told = []

    def at_third(done, total):
        told.append(done)
        if total > 20 and done == 3:
            raise StopError

    document = random_document(2000)
    with pytest.raises(StopError), reporting(at_third):
        composite(document)
    assert told[-1] == 3


@pytest.mark.parametrize("threads", [1, 3])
def test_a_composite_in_threads_does_not_go_on_after_it_was_stopped(threads, monkeypatch):
    from layered_core.canvas import compositing

    bands, whole = [], compositing.Compositor._band
    monkeypatch.setattr(compositing.Compositor, "_band", lambda *x: (bands.append(x[1]), whole(*x))[1])
    monkeypatch.setattr(compositing, "_band_pixels", lambda device: 120)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(StopError), reporting(lambda done, total: stop(0, 0) if total == 120 else None):
            composite(random_document())
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(bands) < 60


@pytest.mark.parametrize("name", ["a.psd", "a.psb", "a.ora", "a"])
def test_writing_that_is_stopped_leaves_nothing(tmp_path, name):
    count = []
    with reporting(lambda *x: count.append(x)):
        path = write_layers(
            random_document(), tmp_path / "whole" if "." not in name else tmp_path / f"whole{name}"
        )
    assert read_layers(path).document.layer("turned").rotation == 10
    kept = sorted(os.listdir(tmp_path))
    for last in (1, len(count) // 3, len(count) // 2, len(count) - 1):
        seen = []

        def at_last(*x, seen=seen, last=last):
            seen.append(x)
            if len(seen) == last:
                raise StopError

        with pytest.raises(StopError), reporting(at_last):
            write_layers(random_document(), tmp_path / name)
        assert sorted(os.listdir(tmp_path)) == kept


@pytest.mark.parametrize("name", ["a.psd", "a.ora", "a"])
def test_reading_can_be_stopped(tmp_path, name):
    path = write_layers(random_document(), tmp_path / name)
    told = []
    with reporting(lambda *x: told.append(x)):
        read_layers(path)
    assert len(told) > 3
    with pytest.raises(StopError), reporting(stop):
        read_layers(path)


def test_a_preview_takes_little_more_memory_than_the_pixels(tmp_path):
    Image.new("RGB", (6000, 6000), "red").save(tmp_path / "big.png")
    program = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from layered_core.document import Layer, LayerDocument\n"
        "from layered_core.editing.stack_preview import outlined\n"
        "from layered_core.formats.pictures import read_picture\n"
        # Not ru_maxrss, which begins with the peak of the process that started this one.
        "status = Path('/proc/self/status')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+) kB', status.read_text())[1]) * 1024\n"
        "before = peak()\n"
        "layer = Layer('big', read_picture(Path(sys.argv[1])))\n"
        "outlined(LayerDocument(6000, 6000, (layer,)), 300, 'comfyui')\n"
        "print(peak() - before)\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells a process's peak in this way")
    run = [sys.executable, "-c", program, str(tmp_path / "big.png")]
    peak = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    pixels = 6000 * 6000 * 16
    assert pixels < peak < 1.7 * pixels


def test_a_preview_is_the_composite_over_a_checkerboard():
    document = LayerDocument(64, 64, (Layer("x", torch.tensor([1.0, 0, 0, 0.5]).expand(64, 64, 4)),))
    shown = outlined(document, 64)
    assert torch.allclose(shown[40, 8], torch.tensor([0.86, 0.36, 0.36]), atol=0.003)


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path):
    path, told = tmp_path / "a.png", []
    path.write_bytes(bytes(5 * 2**20))
    os.utime(path, (1, 1))
    first = content_hash(path)

    def hashed():
        told.clear()
        with reporting(lambda *x: told.append(x)):
            return content_hash(path), len(told)

    path.write_bytes(bytes(5 * 2**20 - 1) + b"x")  # the same size, at once
    assert hashed()[0] != first
    with pytest.raises(StopError), reporting(stop):
        content_hash(path)


def test_a_settled_file_is_not_read_again(tmp_path, monkeypatch):
    from layered_core import files

    path = tmp_path / "a.png"
    path.write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr(files, "_SETTLED", -1)
    first = content_hash(path)
    with reporting(stop):
        assert content_hash(path) == first
    path.write_bytes(bytes(2**20))
    assert content_hash(path) != first
