"""``layered batch --engine ray``: two workers make what one makes, also when one of them is killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LAYER = {"name": "tree", "prompt": "a green tree", "x": 8, "y": 8, "width": 40, "height": 52}
COLOURS = [number / 8 for number in range(8)]
PATIENCE = 600


@pytest.fixture(autouse=True)
def ray(skip_suite):
    if importlib.util.find_spec("ray") is None:
        skip_suite("batches on Ray", "ray is not installed: pip install -e '.[scale]'")


@pytest.fixture
def scenes(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number, red in enumerate(COLOURS):
        scene = {"version": 1, "width": 64, "height": 64, "background": [red, 0.5, 0.5], "layers": [LAYER]}
        (folder / f"{number}.json").write_text(json.dumps(scene))
    return folder


def start(scenes, out, *words, cluster=None):
    """Start a batch in a process of its own, in which pictures are made with one thread."""
    command = [sys.executable, "-m", "layered_cli", "batch", scenes, "--out", out, "--steps", "2"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
    if cluster:
        environment["RAY_ADDRESS"] = cluster.address
    return subprocess.Popen(
        [*map(str, command), "--device", "cpu", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip


def ended(batch):
    """Return the exit code, standard output and standard error of a batch."""
    said, errors = batch.communicate(timeout=PATIENCE)
    return batch.returncode, said, errors


def workers_at_an_item(of):
    """Return the ids of the processes that make an item now and descend from the process ``of``."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,command="], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, *_ in rows}

    def is_ours(pid):
        while pid in parents and pid != of:
            pid = parents[pid]
        return pid == of

    return [int(x[0]) for x in rows if x[2:] and x[2].startswith("ray::_Remote.make") and is_ours(int(x[0]))]


def wait_for(what, batch):
    """Return what ``what()`` returns when that is true."""
    until = time.monotonic() + PATIENCE
    while not (found := what()):
        assert batch.poll() is None, batch.communicate()[1][-4000:]
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def pictures(folder):
    return {x.name: x.read_bytes() for x in folder.glob("*.png")}


def test_one_worker_is_killed_and_one_item_raises_and_all_others_are_made_once_as_by_one_process(
    scenes, tmp_path
):
    (scenes / "4.json").write_text('{"version": 1}')
    assert ended(start(scenes, tmp_path / "serial"))[0] == 1
    one = pictures(tmp_path / "serial")
    assert sorted(one) == [f"{number}.png" for number in range(8) if number != 4]
    assert len(set(one.values())) == 7

    out, many = tmp_path / "ray", ("--engine", "ray", "--workers", "2")
    batch = start(scenes, out, *many)
    wait_for(lambda: pictures(out), batch)
    os.kill(wait_for(lambda: workers_at_an_item(batch.pid), batch)[0], signal.SIGKILL)
    code, said, errors = ended(batch)
    assert code == 1, errors
    assert "begun 2 times, since the worker at it was ended" in errors
    assert said.startswith("7 made (by ")
    assert said.endswith(" processes), 0 were there, 1 failed\n")
    assert pictures(out) == one
    (line,) = (out / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "4.png"

    times = {x: x.stat().st_mtime_ns for x in out.glob("*.png")}
    code, said, errors = ended(start(scenes, out, *many))
    assert (code, said) == (1, "0 made, 7 were there, 1 failed\n")
    assert {x: x.stat().st_mtime_ns for x in out.glob("*.png")} == times
    assert list((out / ".layered" / "parts").iterdir()) == []


def test_an_item_whose_worker_dies_each_time_fails_and_the_next_is_made(scenes, tmp_path):
    for number in range(2, 8):
        (scenes / f"{number}.json").unlink()
    out, killed = tmp_path / "out", set()
    batch = start(scenes, out, "--engine", "ray", "--workers", "1")
    for _ in range(3):
        pid = wait_for(lambda: set(workers_at_an_item(batch.pid)) - killed, batch).pop()
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    code, said, errors = ended(batch)
    assert (code, said) == (1, "1 made, 0 were there, 1 failed\n"), errors
    (line,) = (out / "failures.jsonl").read_text().splitlines()
    assert "its worker was ended 3 times while it made this" in json.loads(line)["reason"]
    assert list(pictures(out)) == ["1.png"]


def test_a_machine_that_disappears_for_good_takes_no_item_with_it(scenes, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    out = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        machine = cluster.add_node(num_cpus=1)
        batch = start(scenes, out, "--engine", "ray", "--workers", "2", cluster=cluster)
        wait_for(lambda: len(workers_at_an_item(os.getpid())) == 2, batch)
        cluster.remove_node(machine, allow_graceful=False)
        code, said, errors = ended(batch)
    finally:
        cluster.shutdown()
    assert code == 0, errors
    assert "8 made" in said
    assert "begun 2 times, since the worker at it was ended" in errors
    assert sorted(pictures(out)) == [f"{number}.png" for number in range(8)]


def test_more_workers_than_there_are_cores_or_gpus_are_refused(scenes, tmp_path, monkeypatch):
    from layered_cli.batching.ray_workers import _starter
    from layered_cli.batching.work import Plan
    from layered_core.errors import LayeredError

    class Cluster:
        def __init__(self, **there):
            self.there = there

        def cluster_resources(self):
            return self.there

    for device, cluster, told in (
        ("cpu", Cluster(CPU=2.0, GPU=8.0), "--workers is 3; allowed: at most 2, since there are 2 cores"),
        (None, Cluster(CPU=64.0, GPU=2.0), "--workers is 3; allowed: at most 2, since there are 2 GPUs"),
    ):
        with pytest.raises(LayeredError, match=told):
            _starter(cluster, Plan(tmp_path, {"device": device}), 3)
