"""The bench itself: suites are checked before anything is sampled, finished scenes are never lost."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import page
from benchmarks.bench import running as bench
from benchmarks.bench.host_methods import HOST
from benchmarks.bench.host_methods import check_method as check_host_method
from benchmarks.bench.judging import reference_features
from benchmarks.bench.methods import METHODS
from benchmarks.bench.multidiffusion import RegionFusion, region_rows
from benchmarks.bench.records import Records, measured_at, weights_checksum
from benchmarks.bench.report import Summary, write_report
from benchmarks.bench.running import run_suite
from benchmarks.bench.scenes import Case, layer_cases, layout_cases, learn_cases, redo_cases
from benchmarks.bench.suite import Settings, read_suite, suite_names
from layered_cli.command import main
from layered_core.errors import LayeredError
from layered_diffusers.models.loading import STORYBOOK
from layered_diffusers.pipeline import LayeredDiffusionPipeline

ROOT = Path(__file__).resolve().parents[2]

TINY = """
title: Tiny
about: For the test.
scenes: layout
batch: 2
show: [iou, both, ap50, ap, native, frechet, time]
plots: [iou]
curve: {x: fidelity, y: native}
grid: [drawn, words]
methods:
  - {name: drawn, method: native}
  - {name: words, method: plain_prompt, baseline: drawn}
  - {name: redrawn, method: global_sdedit, parameters: {strength: 0.5}, baseline: words, family: a}
"""


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    return read_suite("tiny", tmp_path)


def settings(out, **changes):
    return Settings(
        **{"count": 3, "model": STORYBOOK, "out": out, "steps": 2, "device": "cpu", "processes": 1, **changes}
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Measure the tiny suite; return it with its settings and records."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tiny.yaml").write_text(TINY)
    suite = read_suite("tiny", folder)
    chosen = settings(folder / "out")
    return suite, chosen, run_suite(suite, chosen)


@pytest.fixture(scope="module")
def summary(measured):
    """The figures of the tiny suite."""
    return Summary(*measured)


@pytest.fixture(scope="module", autouse=True)
def few_drawn_scenes():
    """Compare with features of 8 drawn scenes instead of 192, which nobody looks at here."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(reference_features, "__defaults__", (8,))
        yield


# --- suites


def test_every_suite_that_is_shipped_is_one():
    assert "layout" in suite_names()
    for name in suite_names():
        suite = read_suite(name)
        assert len(suite.about) > 40, name
        assert any(r.baseline for r in suite.rows), name


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("plain_prompt", "mind_reading", "suite tiny: 'words': method is 'mind_reading'; allowed: blended"),
        ("{strength: 0.5}", "{strenght: 0.5}", "parameter of global_sdedit is 'strenght'; allowed: strength"),
        (
            "method: native}",
            "method: native, parameters: {a: 1}}",
            "parameter of native is 'a'; allowed: none",
        ),
        (
            "baseline: words",
            "baseline: sentences",
            "baseline or grid is 'sentences'; allowed: drawn, words, redrawn",
        ),
        ("scenes: layout", "scenes: outdoors", "scenes is 'outdoors'; allowed: layout"),
        ("show: [iou,", "show: [beauty,", "figure is 'beauty'"),
        ("title: Tiny", "tilte: Tiny", "suite tiny: key is 'tilte'"),
        ("method: plain_prompt, ", "", "suite tiny: entry 2: method is missing"),
        ("name: words", "name: drawn", "name is 'drawn'; allowed: names that occur once"),
        ("title: Tiny", "title: [", "is not YAML"),
        (
            "title: Tiny",
            "sampler: magic",
            "suite tiny: sampler is 'magic'; allowed: ddim, euler, euler_ancestral, dpmpp_2m",
        ),
    ],
)
def test_a_wrong_suite_is_refused_before_anything_is_sampled(tmp_path, old, new, says):
    assert old in TINY
    (tmp_path / "tiny.yaml").write_text(TINY.replace(old, new, 1))
    with pytest.raises(LayeredError) as caught:
        read_suite("tiny", tmp_path)
    assert says.replace("blended", sorted(METHODS)[0]) in str(caught.value)


def test_an_unknown_suite_is_named_with_those_there_are(capsys):
    assert main(["bench", "beauty"]) == 2
    assert "suite is 'beauty'; allowed: " in capsys.readouterr().err


def test_no_scene_at_all_is_refused(tmp_path, capsys):
    assert main(["bench", "layout", "-n", "0", "--out", str(tmp_path / "out")]) == 2
    assert "n is 0; allowed: a whole number 1..100000" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_weights_are_named(tmp_path, capsys):
    shutil.copytree(STORYBOOK, tmp_path / "model")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    code = main(
        [
            "bench",
            "speed",
            "-n",
            "1",
            "--model",
            str(tmp_path / "model"),
            "--out",
            str(tmp_path / "out"),
            "--device",
            "cpu",
        ]
    )
    assert code == 2
    assert "model/unet/*.safetensors' is missing" in capsys.readouterr().err


def test_a_results_folder_that_cannot_be_written_is_named(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        LayeredError, match=r"results folder '.*file/out' cannot be written: .*Give another folder with --out"
    ):
        run_suite(tiny, settings(tmp_path / "file" / "out"))


def test_host_methods_are_checked_without_importing_comfyui():
    check_host_method("x", "set_mask_combine", {"strength": 2})
    with pytest.raises(LayeredError, match="x: method on ComfyUI is 'magic'; allowed: .*plain_prompt"):
        check_host_method("x", "magic", {})
    with pytest.raises(
        LayeredError, match="parameter of set_mask_combine is 'power'; allowed: strength, base"
    ):
        check_host_method("x", "set_mask_combine", {"power": 2})
    assert HOST.is_file()


# --- records


def test_every_method_has_a_record_of_every_scene(measured):
    suite, _, records = measured
    assert [(r["name"], r["scene"]) for r in records] == [
        (row.name, i) for row in suite.rows for i in range(3)
    ]
    drawn = [r["figures"]["iou"] for r in records if r["name"] == "drawn"]
    assert min(drawn) > 0.7


def test_a_second_run_measures_nothing(measured, monkeypatch):
    suite, chosen, records = measured
    monkeypatch.setattr(bench, "Worker", None)
    assert run_suite(suite, chosen) == records
    assert len(run_suite(suite, settings(chosen.out, count=2))) == 6


def test_an_interrupted_run_goes_on_where_it_was(tiny, tmp_path, monkeypatch, capsys):
    asked = []
    real = METHODS["plain_prompt"]

    def once(*arguments, **options):
        asked.append(list(options["seeds"]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setitem(METHODS, "plain_prompt", once)
    with pytest.raises(KeyboardInterrupt):
        run_suite(tiny, settings(tmp_path / "out"))
    path = tmp_path / "out" / "tiny.jsonl"
    whole = path.read_text()
    path.write_text(
        whole + whole.splitlines()[1][:70]
    )  # as if the power had failed while the last line was written
    records = run_suite(tiny, settings(tmp_path / "out"))
    assert "cut short; that scene is measured again" in capsys.readouterr().err
    assert asked == [[0, 1], [2], [2]]
    assert len(records) == 9
    assert path.read_text().startswith(whole)


def test_a_broken_line_or_other_settings_are_named(measured, tmp_path):
    suite, chosen, _ = measured
    copy = tmp_path / "out"
    shutil.copytree(chosen.out, copy)
    with pytest.raises(LayeredError, match=r"was made with steps 2 \(now 5\).*--fresh"):
        run_suite(suite, settings(copy, steps=5))
    lines = (copy / "tiny.jsonl").read_text().splitlines()
    lines[2] = lines[2][:50]
    (copy / "tiny.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(LayeredError, match=r"tiny.jsonl', line 3, is broken. Delete that line"):
        run_suite(suite, settings(copy))


def test_fresh_puts_old_results_aside(measured, tmp_path):
    suite, chosen, _ = measured
    copy = tmp_path / "out"
    shutil.copytree(chosen.out, copy)
    Records(suite, settings(copy, fresh=True)).close()
    assert (copy / "tiny.old1.jsonl").read_text() == (chosen.out / "tiny.jsonl").read_text()
    assert len((copy / "tiny.jsonl").read_text().splitlines()) == 1


def test_changed_parameters_are_measured_anew(measured, tmp_path):
    suite, chosen, _ = measured
    copy = tmp_path / "out"
    shutil.copytree(chosen.out, copy)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("strength: 0.5", "strength: 0.4"))
    records = Records(read_suite("tiny", tmp_path), settings(copy))
    assert records.has(suite.rows[1], 0)
    assert not records.has(read_suite("tiny", tmp_path).rows[2], 0)
    records.close()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(measured, tmp_path):
    suite, _, records = measured
    both = run_suite(suite, settings(tmp_path / "out", processes=2))
    assert [(r["name"], r["scene"]) for r in both] == [(r["name"], r["scene"]) for r in records]
    for a, b in zip(records, both, strict=True):
        assert a["figures"]["iou"] == pytest.approx(b["figures"]["iou"], abs=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at Linux's /proc")
def test_no_process_outlives_a_command_that_is_killed(tmp_path):
    command = [
        sys.executable,
        "-m",
        "layered_cli",
        "bench",
        "layout",
        "-n",
        "16",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def children():
        return [int(p) for p in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]

    def wait(done):
        for _ in range(1200):
            if done():
                return True
            time.sleep(0.1)
        return False

    assert wait(
        lambda: (
            (tmp_path / "out" / "layout.jsonl").is_file()
            and len((tmp_path / "out" / "layout.jsonl").read_text().splitlines()) > 1
        )
    )
    workers = children()
    assert len(workers) >= 2
    run.kill()
    run.wait()
    assert wait(lambda: not any(Path(f"/proc/{p}").exists() for p in workers))


# --- reports


def test_the_command_prints_a_table_and_ends_in_one_json_object(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr(read_suite, "__defaults__", (tmp_path,))
    assert (
        main(
            [
                "bench",
                "tiny",
                "-n",
                "2",
                "--steps",
                "1",
                "--json",
                "--device",
                "cpu",
                "--processes",
                "1",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    out = capsys.readouterr().out.strip().splitlines()
    assert any(line.startswith("| words |") for line in out)
    figures = json.loads(out[-1])
    assert set(figures) == {"drawn", "words", "redrawn"}
    assert set(figures["words"]["iou"]) == {"mean", "low", "high", "n"}
    assert figures["words"]["iou"]["n"] == 2
    assert figures["drawn"]["time"]["mean"] == 1


def test_the_report_has_table_plots_grid_and_provenance(measured, summary):
    pytest.importorskip("matplotlib")
    suite, chosen, _ = measured
    files = write_report(summary)
    assert {f.name for f in files} == {
        "tiny.json",
        "tiny.md",
        "tiny.png",
        "tiny.svg",
        "tiny_curve.png",
        "tiny_curve.svg",
        "tiny_grid.jpg",
    }
    assert all(f.stat().st_size > 500 for f in files)
    details = json.loads((chosen.out / "tiny.json").read_text())
    text = (chosen.out / "tiny.md").read_text()
    for word in (
        "`layered bench tiny -n 3`",
        measured_at(suite, chosen),
        weights_checksum(STORYBOOK),
        "2 steps",
    ):
        assert word in details["provenance"]
        assert word in text
    assert "words − drawn" in text
    difference = details["differences"]["words"]["iou"]
    assert difference["mean"] == pytest.approx(
        details["figures"]["words"]["iou"]["mean"] - details["figures"]["drawn"]["iou"]["mean"], abs=1e-4
    )


def test_the_page_gets_new_blocks_and_keeps_the_rest(summary, tmp_path):
    chosen = summary.settings
    write_report(summary)
    target = tmp_path / "evaluation.md"
    target.write_text(
        "before\n\n<!-- suite: other -->\nkept\n<!-- /suite -->\n\n<!-- more suites -->\n\nafter\n"
    )
    assert page.update(target, chosen.out) == ["tiny"]
    once = target.read_text()
    assert page.update(target, chosen.out) == ["tiny"]
    assert target.read_text() == once
    assert once.count("<!-- suite: tiny -->") == 1
    assert "kept" in once
    assert once.index("## Tiny") < once.index("<!-- more suites -->") < once.index("after")
    assert (tmp_path / "images" / "evaluation" / "tiny_grid.jpg").is_file()
    with pytest.raises(LayeredError, match="no report in"):
        page.update(target, tmp_path / "images")


def test_the_page_names_the_suites_that_it_has_no_figures_of(summary, tmp_path):
    chosen = summary.settings
    write_report(summary)
    target = tmp_path / "evaluation.md"
    target.write_text(
        "<!-- suite: layout -->\nx\n<!-- /suite -->\n<!-- more suites -->\n<!-- not measured -->\nold\n<!-- "
        "/not measured -->\n"
    )
    page.update(target, chosen.out)
    (said,) = (line for line in target.read_text().splitlines() if line.startswith("Not measured yet: "))
    assert said == f"Not measured yet: {', '.join(s for s in suite_names() if s != 'layout')}."


def test_the_readme_shows_the_telling_figures_with_what_made_them(tmp_path):
    readme, folder = tmp_path / "README.md", tmp_path / "out"
    folder.mkdir()
    readme.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    assert page.update_readme(readme, folder, tmp_path / "docs" / "evaluation.md") == []
    assert "old" in readme.read_text()
    for name in page.TELLING:
        (folder / f"{name}.json").write_text(json.dumps({"provenance": f"the command of {name}"}))
    page.update_readme(readme, folder, tmp_path / "docs" / "evaluation.md")
    text = readme.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    for name, (file, _) in page.TELLING.items():
        assert f"(docs/images/evaluation/{file})" in text
        assert f"*the command of {name}:" in text


# --- methods


def test_every_method_gives_a_picture_a_scene(pipeline):
    # joined_texts is for transformers; tests/diffusers/transformer tests it.
    few = {"steps": 1, "batch": 1}
    for name, function in ((n, f) for n, f in METHODS.items() if n != "joined_texts"):
        of_layers = name in ("drawn_layer", "transparent_layer", "cut_out", "difference_matte")
        cases = (
            layer_cases
            if of_layers
            else redo_cases
            if "redo" in name or name == "picture_before"
            else learn_cases
            if name.endswith("_word")
            else layout_cases
        )(2)
        needed = {
            "global_sdedit": {"strength": 0.5},
            "redo_sdedit": {"strength": 0.5},
            "layer_noise": {"objects": 0.5},
            "learnt_layer_noise": {"objects": 0.5, "settings": few},
            "learnt_word": {"settings": few},
        }.get(name, {})
        pictures = function(pipeline, cases, seeds=[0, 1], steps=2, guidance=3.0, **needed)
        assert pictures.shape == (2, 4 if of_layers else 3, 128, 128), name
        assert bool(((pictures >= 0) & (pictures <= 1)).all()), name


def test_multidiffusion_of_a_scene_without_objects_is_its_words_alone(pipeline):
    case = layout_cases(1)[0]
    alone = replace(case.scene, objects=())
    a = METHODS["multidiffusion"](pipeline, [Case(alone)], seeds=[5], steps=3, guidance=3.0)
    b = pipeline.generate([Case(alone).background_words], seeds=[5], steps=3)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_a_region_that_counts_far_more_has_its_own_way(pipeline):
    """If one region covers the canvas and has almost all the weight, only its words act."""
    case = layout_cases(1, objects=(1,))[0]
    rows = region_rows([case], [5], base=True)._replace(masks=torch.ones(2, 128, 128))
    fusion = RegionFusion(rows, pipeline, hard=False, strength=1e6)
    a = pipeline.generate(rows.prompts, seeds=rows.seeds, steps=3, methods=[fusion])
    assert len(a) == 1
    b = pipeline.generate([case.things[0].words], seeds=[5], steps=3)
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


def test_redo_leaves_every_pixel_outside_its_mask_alone(pipeline):
    case = redo_cases(1)[0]
    picture = METHODS["redo_repaint"](pipeline, [case], seeds=[0], steps=2, guidance=3.0)[0]
    outside = case.change_mask == 0
    assert torch.equal(picture[:, outside], case.picture_before[:, outside])
