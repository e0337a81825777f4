"""Run the suites of host/ on a real ComfyUI, in one process of its own python, and report each of their tests here."""

import ast
import functools
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
HOST = HERE / "host"

sys.path.insert(0, str(HERE))
from host_env import find_host  # noqa: E402

sys.path.remove(str(HERE))


def names():
    """(file, test) of every test under host/, read without importing."""
    for file in sorted(HOST.glob("test_*.py")):
        for item in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(item, ast.FunctionDef) and item.name.startswith("test_"):
                yield file.stem, item.name


@functools.cache
def results():
    """What every test under host/ came to: ``{(file, test): [failure text or None a case]}``, and the log."""
    folder, python = find_host()
    report = Path(os.environ.get("TMPDIR", "/tmp")) / f"comfyui-host-{os.getpid()}.xml"
    environment = {**os.environ, "COMFYUI_PATH": str(folder), "LAYERED_PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    command = [python, "-m", "pytest", "-c", "pytest.ini", "--rootdir", ".", "--confcutdir", ".", f"--junit-xml={report}"]
    done = subprocess.run(command, cwd=HOST, env=environment, capture_output=True, text=True, timeout=1800)
    log = done.stdout + done.stderr
    if not report.is_file():
        return {}, log
    cases = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next((p for kind in ("failure", "error", "skipped") if (p := case.find(kind)) is not None), None)
        text = None if problem is None else f"{case.get('name')}: {problem.text or problem.get('message')}"
        cases.setdefault((case.get("classname").rsplit(".", 1)[-1], case.get("name").split("[")[0]), []).append(text)
    report.unlink()
    return cases, log


@pytest.mark.parametrize(("file", "test"), names(), ids=lambda v: v.removeprefix("test_"))
def test_on_the_host(file, test, skip_suite):
    host = find_host()
    if isinstance(host, str):
        skip_suite("ComfyUI in process", host)
    cases, log = results()
    assert (file, test) in cases, f"the host did not run it:\n{log[-4000:]}"
    problems = [p for p in cases[file, test] if p is not None]
    assert not problems, "\n\n".join(problems)
