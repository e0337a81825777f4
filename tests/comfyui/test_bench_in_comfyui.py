"""The suites of the bench that run inside a real ComfyUI: each of their rows makes a picture."""

from dataclasses import replace

from benchmarks.bench.running import run_suite
from benchmarks.bench.suite import Settings, read_suite, suite_names
from benchmarks.hosts.find import find_host
from layered_diffusers.models.loading import STORYBOOK


def test_every_row_of_the_suites_inside_comfyui_makes_a_picture(skip_suite, tmp_path):
    if isinstance(missing := find_host(), str):
        skip_suite("the bench inside ComfyUI", missing)
    suites = [s for s in map(read_suite, suite_names()) if s.host == "comfyui"]
    assert sorted(s.name for s in suites) == ["comfyui_control", "comfyui_layout", "comfyui_redo"]
    # One scene of the kind in which every method finds what it needs, for one start of ComfyUI.
    redo = next(s for s in suites if s.scenes == "redo")
    rows = tuple(replace(row, name=f"{s.name} {row.name}", baseline=None) for s in suites for row in s.rows)
    settings = Settings(count=1, model=STORYBOOK, out=tmp_path, steps=1, device="cpu", processes=1)
    records = run_suite(replace(redo, rows=rows, grid=()), settings)
    assert {r["name"] for r in records} == {row.name for row in rows}
    assert all(r["figures"]["outside_psnr"] > 5 for r in records)
