"""Run the suites of host/ in a real ComfyUI, in one process of its own python, and report each of their tests
here."""

import ast
import atexit
import functools
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.hosts.find import find_host, host_environment

HOST = Path(__file__).resolve().parent / "host"


def names():
    """Return (file, test) of every test under host/, with the file as a dotted path; the files are parsed,
    not imported."""
    for file in sorted(HOST.rglob("test_*.py")):
        for item in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(item, ast.FunctionDef) and item.name.startswith("test_"):
                yield ".".join(file.relative_to(HOST).with_suffix("").parts), item.name


@functools.cache
def begun(chosen):
    """Start the tests under host/ in a process of their own, those that pytest's ``-m`` has ``chosen``. Return it, its
    log and its report."""
    folder, python = find_host()
    base = Path(os.environ.get("TMPDIR", "/tmp")) / f"comfyui-host-{os.getpid()}"
    report, log = base.with_suffix(".xml"), base.with_suffix(".log")
    environment = {**host_environment(folder), "LAYERED_PYTHON": sys.executable}
    environment["OMP_NUM_THREADS"] = "1"  # the other tests run at the same time
    command = [
        python,
        "-m",
        "pytest",
        "-c",
        "pytest.ini",
        "--rootdir",
        ".",
        "--confcutdir",
        ".",
        f"--junit-xml={report}",
        "-m",
        chosen,
    ]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=HOST, env=environment, stdout=out, stderr=subprocess.STDOUT)
    atexit.register(process.kill)
    return process, log, report


@functools.cache
def results(chosen):
    """Wait for the tests under host/ and return their results ``{(file, test): [failure text or None for each
    case]}``, the log, and the install on which they ran.

    The results are empty if the host's python, or ComfyUI in it, did not start, or if the tests did not end
    within 35 minutes.
    """
    process, written, report = begun(chosen)
    try:
        process.wait(timeout=2100)
    except subprocess.TimeoutExpired:
        process.kill()
    log = written.read_text(errors="replace")
    written.unlink()
    if not report.is_file():
        return {}, log, ""
    cases, started = {}, ""
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next(
            (p for kind in ("failure", "error", "skipped") if (p := case.find(kind)) is not None), None
        )
        text = None if problem is None else f"{case.get('name')}: {problem.text or problem.get('message')}"
        cases.setdefault((case.get("classname"), case.get("name").split("[")[0]), []).append(text)
    for item in ElementTree.parse(report).iter("property"):
        if item.get("name") == "started":
            started = item.get("value")
    report.unlink()
    return (cases if started else {}), log, started


@pytest.mark.parametrize(("file", "test"), names(), ids=lambda v: v.removeprefix("test_"))
def test_on_the_host(file, test, request, skip_suite, could_not_start, tried_on):
    host = find_host()
    if isinstance(host, str):
        skip_suite("ComfyUI in process", host)
    cases, log, started = results(request.config.option.markexpr)
    if not cases:
        could_not_start("ComfyUI in process", log)
    tried_on(started)
    assert (file, test) in cases, f"the host did not run it:\n{log[-4000:]}"
    problems = [p for p in cases[file, test] if p is not None]
    assert not problems, "\n\n".join(problems)
