"""``layered batch`` makes every item once, complete or not at all, whatever comes in between."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from PIL import Image

from layered_cli import batch, render, shared
from layered_cli.batching.items import Shard
from layered_cli.command import main
from layered_core.files import read_layers

QUICK = ["--steps", "1", "--device", "cpu"]
LAYER = {"name": "tree", "prompt": "a green tree", "x": 8, "y": 8, "width": 40, "height": 52}
SCENE = {"version": 1, "width": 64, "height": 64, "layers": [LAYER]}


@pytest.fixture
def scenes(tmp_path):
    """A folder with three documents."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name, words, red in (("a", "a green tree", 0), ("b", "a white house", 0.5), ("c", "a red ball", 1)):
        document = {**SCENE, "background": [red, 0, 0], "layers": [{**LAYER, "prompt": words}]}
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def run(tmp_path, scenes, capsys):
    """Return ``run(*words)``, which makes a batch of the scenes into ``tmp_path / 'out'`` and returns the exit code,
    and the counts of what was made, what was there and what failed."""

    def call(*words, sources=(scenes,)):
        code = main(["batch", *map(str, sources), "--out", str(tmp_path / "out"), *QUICK, *map(str, words)])
        said = capsys.readouterr().out.split()
        return code, *(int(x) for x in said if x.isdecimal())

    return call


def contents(folder):
    return {x.relative_to(folder).as_posix(): x.read_bytes() for x in results(folder)}


def results(folder):
    return sorted(x for x in folder.rglob("*") if x.is_file() and ".layered" not in x.parts)


def parts(folder):
    return list((folder / ".layered" / "parts").iterdir())


def no_model(*_):
    raise AssertionError("a model was loaded")


def instead(monkeypatch, function, command=render):
    """Let ``function(options, run)`` make the items of a command; ``run`` is the command's own."""
    own = command.run
    monkeypatch.setattr(command, "run", lambda options: function(options, own))


def test_results_are_those_of_the_single_command_and_a_second_run_renders_nothing(
    run, scenes, tmp_path, monkeypatch
):
    sources = [scenes / "a.json", scenes / "c.json"]
    assert run(sources=sources) == (0, 2, 0, 0)
    made = contents(tmp_path / "out")
    assert list(made) == ["a.png", "c.png"]
    single = tmp_path / "c.png"  # in the batch, the model has made another before
    assert main(["render", str(scenes / "c.json"), "-o", str(single), *QUICK]) == 0
    assert single.read_bytes() == made["c.png"]
    monkeypatch.setattr(shared, "_load", no_model)
    assert run(sources=sources) == (0, 0, 2, 0)
    assert contents(tmp_path / "out") == made
    assert parts(tmp_path / "out") == []


def test_documents_and_prompts_of_a_list_are_made_each_in_its_way(run, scenes, tmp_path):
    lines = [
        {"document": "a.json", "as": "stage", "name": "stages/a"},
        {"document": "b.json", "options": {"strength": 1, "seed": 4}},
        {"prompt": "a red ball", "options": {"width": 64, "height": 64}, "name": "ball"},
    ]
    path = scenes / "list.jsonl"
    path.write_text("\n".join(json.dumps(x) for x in lines))
    assert run("--format", "ora", sources=[path]) == (0, 3, 0, 0)
    out = tmp_path / "out"
    assert [x.relative_to(out).as_posix() for x in results(out)] == ["b.ora", "ball.png", "stages/a.psd"]
    assert read_layers(out / "stages" / "a.psd").document.layer("tree").image is not None
    assert run("--format", "ora", sources=[path]) == (0, 0, 3, 0)


def test_shares_of_a_batch_make_together_what_one_makes(run, tmp_path):
    assert [run("--composite-only", "--shard", f"{i}/4") for i in range(4)] == [(0, 1, 0, 0)] * 3 + [
        (0, 0, 0, 0)
    ]
    assert len(results(tmp_path / "out")) == 3
    assert run("--composite-only") == (0, 0, 3, 0)


def test_only_what_has_changed_is_made_again(run, scenes, tmp_path):
    quick = "--composite-only"
    assert run(quick) == (0, 3, 0, 0)
    made = tmp_path / "out" / "a.png"
    made.write_bytes(made.read_bytes()[:-1])  # cut short
    assert run(quick) == (0, 1, 2, 0)
    made.unlink()
    assert run(quick) == (0, 1, 2, 0)
    (tmp_path / "out" / ".layered" / "recipes" / "a.png.json").write_text("[")
    assert run(quick) == (0, 1, 2, 0)
    assert run(quick, "--seed", 7) == (0, 3, 0, 0)
    assert run(quick, "--memory-limit", 2, "--seed", 7) == (0, 0, 3, 0)  # it changes no result


def test_a_change_that_leaves_size_and_times_is_seen_and_times_alone_are_none(run, scenes, monkeypatch):
    path = scenes / "a.json"
    assert run("--composite-only") == (0, 3, 0, 0)
    before = path.stat()
    path.write_text(path.read_text().replace("a green tree", "a green star"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run("--composite-only") == (0, 1, 2, 0)
    jumping = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (next(jumping) % 3))
    for when in (0, 2**32):
        for name in "abc":
            os.utime(scenes / f"{name}.json", (when, when))
        assert run("--composite-only") == (0, 0, 3, 0)


def test_other_weights_make_it_again_wherever_they_lie(tmp_path):
    from layered_cli.batching.recipes import Identities

    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "weights").write_bytes(b"one")
    first = Identities().of("control", str(folder))
    folder = folder.rename(tmp_path / "moved")
    assert Identities().of("control", str(folder)) == first
    (folder / "weights").write_bytes(b"two")
    assert Identities().of("control", str(folder)) != first


def test_an_item_that_fails_is_told_with_its_reason_and_the_others_are_made(run, scenes, tmp_path, capsys):
    good = (scenes / "b.json").read_text()
    (scenes / "b.json").write_text(good[:-9])
    assert run("--composite-only") == (1, 2, 0, 1)
    (line,) = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    said = json.loads(line)
    assert (said["source"], said["name"]) == (str(scenes / "b.json"), "b.png")
    assert "b.json" in said["reason"]
    (scenes / "b.json").write_text(good)
    assert run("--composite-only") == (0, 1, 2, 0)
    assert len(results(tmp_path / "out")) == 3  # the list of failures has gone


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried"), ZeroDivisionError("a fault of ours")]
)
def test_an_error_of_any_kind_is_one_items_and_after_one_of_memory_the_models_are_loaded_anew(
    run, tmp_path, monkeypatch, error
):
    loaded = []
    monkeypatch.setattr(shared, "_load", lambda options: loaded.append(1))

    def fail(options, own):
        shared.pipeline_of(options)
        if options.document.stem == "b":
            raise error
        own(options)

    instead(monkeypatch, fail)
    assert run("--composite-only") == (1, 2, 0, 1)
    assert type(error).__name__ in (tmp_path / "out" / "failures.jsonl").read_text()
    assert len(loaded) == (1 if isinstance(error, ZeroDivisionError) else 2)


def test_a_document_that_changes_while_it_is_rendered_leaves_no_result(run, scenes, tmp_path, monkeypatch):
    def change(options, own):
        own(options)
        if options.document.stem == "b":
            path = scenes / "b.json"
            path.write_text(path.read_text().replace("house", "mouse"))

    with monkeypatch.context() as patch:
        instead(patch, change)
        assert run("--composite-only") == (1, 2, 0, 1)
    assert "changed while the result was made" in (tmp_path / "out" / "failures.jsonl").read_text()
    assert not (tmp_path / "out" / "b.png").exists()
    assert run("--composite-only") == (0, 1, 2, 0)


def test_stopping_loses_the_item_at_work_alone(run, tmp_path, monkeypatch, capsys):
    def stop(options, own):
        if options.document.stem == "b":
            raise KeyboardInterrupt
        own(options)

    with monkeypatch.context() as patch:
        instead(patch, stop)
        assert run("--composite-only") == (1,)
    assert [x.name for x in results(tmp_path / "out")] == ["a.png"]
    assert parts(tmp_path / "out") == []
    assert run("--composite-only") == (0, 2, 1, 0)


FULL = """
import sys
from pathlib import Path
from layered_cli.command import main
disk, scenes, *more = sys.argv[1:]
disk = Path(disk)
words = ["batch", scenes, "--out", str(disk / "out"), "--composite-only", *more]
codes = [main(words)]
names = [sorted(x.name for x in (disk / "out").glob("*.png"))]
parts = [list((disk / "out" / ".layered" / "parts").iterdir())]
(disk / "fill").unlink()
codes.append(main(words))
print([*codes, len(names[0]), len(parts[0])])
"""
"""Makes a batch on a disk that is too small, then again where there is room."""


@pytest.mark.parametrize(
    "words", [(), pytest.param(("--engine", "ray"), marks=pytest.mark.slow)], ids=["here", "ray"]
)
def test_a_full_disk_stops_the_batch_and_it_goes_on_later(scenes, tmp_path, skip_suite, words):
    if words and importlib.util.find_spec("ray") is None:
        skip_suite("batches on Ray", "ray is not installed: pip install -e '.[scale]'")
    for name in "abc":
        Image.effect_noise((144, 144), 90).save(scenes / f"{name}.png")
        layer = {"name": "noise", "image": f"{name}.png"}
        scene = {"version": 1, "width": 144, "height": 144, "layers": [layer]}
        (scenes / f"{name}.json").write_text(json.dumps(scene))
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=256k tmpfs "{disk}"'
    within = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*within, mount], capture_output=True).returncode:
        skip_suite("writing on a full disk", "this user may not mount a tmpfs: unshare --user --mount fails")
    fill = f'head -c 150000 /dev/zero > "{disk}/fill"'
    done = subprocess.run(
        [*within, f'{mount} && {fill} && exec "$0" "$@"', sys.executable, "-c", FULL, disk, scenes, *words],
        capture_output=True, text=True,
    )  # fmt: skip
    said = re.split(r"[\r\n]+", done.stderr)
    (told,) = [x for x in said if x.startswith("layered: ")]
    assert re.fullmatch(rf"layered: '.\.png' cannot be written: the disk of '{disk}/out' is full .*", told)
    counts, codes = done.stdout.splitlines()
    code, later, first, unfinished = json.loads(codes)
    assert (code, later, unfinished) == (2, 0, 0)
    assert 0 < first < 3
    assert counts == f"{3 - first} made, {first} were there, 0 failed"


SMALL = """
import resource, sys
from layered_cli import shared
from layered_cli.command import main
own, loaded = shared._load, []
shared._load = lambda options: loaded.append(1) or own(options)
first, scenes, out = sys.argv[1:]
words = ["--out", out, "--steps", "1", "--device", "cpu"]
main(["batch", first, *words])
sizes = open("/proc/self/statm").read().split()
resource.setrlimit(resource.RLIMIT_AS, (int(sizes[0]) * resource.getpagesize() + 600 * 2**20, -1))
code = main(["batch", scenes, *words])
print([code, len(loaded)])
"""
"""Makes a batch in a process that may take 600 MB more than it has with the model loaded."""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep the limit of memory")
def test_a_document_that_takes_more_memory_than_there_is_fails_alone(scenes, tmp_path):
    enormous = {**SCENE, "width": 9000, "height": 9000}
    (scenes / "b.json").write_text(json.dumps(enormous))
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", SMALL, scenes / "a.json", scenes, out],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    first, second, ended = done.stdout.splitlines()
    assert (first, second) == ("1 made, 0 were there, 0 failed", "1 made, 1 were there, 1 failed"), (
        done.stderr
    )
    assert json.loads(ended) == [1, 3]  # loaded by each batch, and after the error once more
    (line,) = (out / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "b.png"
    assert json.loads(line)["reason"].startswith("there was not enough memory. Give a smaller document")


def test_what_a_killed_batch_left_unfinished_is_removed_by_the_next(run, tmp_path):
    left = tmp_path / "out" / ".layered" / "parts" / ".scratch.abc.layered.part"
    left.mkdir(parents=True)
    (left / "result.png").write_bytes(b"half")
    assert run("--composite-only") == (0, 3, 0, 0)
    assert parts(tmp_path / "out") == []


def test_a_second_batch_of_the_same_share_is_refused_and_other_shares_go_on(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with batch._alone(tmp_path / "out", Shard(0, 2)):
        refused = main(["batch", str(tmp_path / "scenes"), "--out", str(tmp_path / "out"), "--shard", "0/2"])
        assert refused == 2
        assert "another batch writes the same items into" in capsys.readouterr().err
        assert run("--composite-only", "--shard", "1/2") == (0, 1, 0, 0)
    assert run("--composite-only", "--shard", "0/2") == (0, 2, 0, 0)


def test_two_batches_with_other_options_on_disks_without_locks_leave_whole_results_with_their_own_recipes(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(batch, "fcntl", None)
    depth = []

    def also(options, own):
        """Let the other batch make all while this one is at its first item."""
        if not depth:
            depth.append(1)
            assert run("--composite-only", "--format", "png", "--seed", 1) == (0, 3, 0, 0)
        own(options)

    with monkeypatch.context() as patch:
        instead(patch, also)
        assert run("--composite-only", "--seed", 2)[0] == 0
    assert run("--composite-only", "--seed", 2) == (0, 0, 3, 0)
    assert run("--composite-only", "--seed", 1) == (0, 3, 0, 0)


def test_a_result_whose_recipe_is_another_batchs_is_made_again(run, tmp_path):
    """Killed between the two renames, a batch leaves its result beside the recipe of the one before."""
    assert run("--composite-only") == (0, 3, 0, 0)
    other = tmp_path / "out" / "b.png"
    other.replace(tmp_path / "out" / "a.png")
    assert run("--composite-only") == (0, 2, 1, 0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "2"], "--workers is used with --engine ray only"),
        (["--shard", "2/2"], "--shard is '2/2'; allowed: i/n with i in 0..n-1"),
        (["--feather", "3"], "--as is 'render'; allowed: a way that has the option --feather"),
        (
            ["--as", "stage", "--strength", "1"],
            "--as is 'stage'; allowed: a way that has the option --strength",
        ),
        (
            ["--model", "nowhere/at/all"],
            "model is 'nowhere/at/all'; allowed: a folder in the diffusers layout",
        ),
        (["--control", "nowhere"], "--control is 'nowhere'; allowed: an existing file or folder"),
    ],
)
def test_options_that_cannot_be_are_told_before_anything_is_made(scenes, tmp_path, capsys, words, told):
    assert main(["batch", str(scenes), "--out", str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_documents_at_all_is_an_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").touch()
    for name in ("empty", "empty.jsonl"):
        assert main(["batch", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        assert "batch is 'empty'; allowed: at least one document or prompt" in capsys.readouterr().err


def test_the_ways_have_all_their_options_in_a_batch():
    from layered_cli.batching.ways import WAYS, options_of, parsers
    from layered_cli.command import parser

    common = vars(parser().parse_args(["batch", "a", "--out", "b"]))
    for way in WAYS:
        single = vars(parser().parse_args([way, "a", "-o", "b"]))
        ours = vars(options_of(way, common, []))
        assert {k: v for k, v in single.items() if k not in ("run", "out", "document", "prompt")} == {
            k: v for k, v in ours.items() if k != "prompt"
        }
    assert len(parsers()) == len(WAYS)


def test_a_warning_about_a_document_is_shown(run, scenes, monkeypatch, capsys):
    def warn(options, own):
        shared.complain(f"{options.document.name}: a remark")
        own(options)

    instead(monkeypatch, warn)
    main(["batch", str(scenes / "a.json"), "--out", str(scenes / "out"), "--composite-only"])
    assert "layered: a.json: a remark" in capsys.readouterr().err
