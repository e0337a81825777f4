"""A ComfyUI that is there and does not start makes the run fail once, with its log, and not once for every test."""

import os
import stat
import subprocess
import sys

import rooms


def run_with(tmp_path, *suites):
    """Run suites with a ComfyUI whose python ends with SIGABRT, as a second declaration of an operator does."""
    (tmp_path / "ComfyUI").mkdir()
    (tmp_path / "ComfyUI" / "main.py").touch()
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Tried to register an operator multiple times' >&2\nkill -ABRT $$\n")
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    here = {"COMFYUI_PATH": str(tmp_path / "ComfyUI"), "COMFYUI_PYTHON": str(python)}
    command = [sys.executable, "-m", "pytest", *suites]
    return subprocess.run(
        command, cwd=rooms.ROOT, env={**os.environ, **here}, capture_output=True, text=True, timeout=300
    )


def test_a_host_that_aborts_is_told_once_with_its_log_and_fails_the_run(tmp_path):
    done = run_with(tmp_path, "tests/comfyui/test_host.py", "tests/comfyui/test_http.py")
    assert done.returncode == 1, done.stdout[-2000:]
    assert (
        done.stdout.count("Tried to register an operator multiple times") == 2
    )  # in process, and the server
    assert done.stdout.count("ComfyUI in process could not start ===") == 1
    assert done.stdout.count("ComfyUI's server could not start ===") == 1
    assert "FAILED: ComfyUI's server, ComfyUI in process could not start" in done.stdout
    assert " failed" not in done.stdout
    assert " error" not in done.stdout.replace("operator", "")


def test_where_there_is_no_host_the_run_is_green_and_says_so(tmp_path):
    here = {**os.environ, "COMFYUI_PATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "tests/comfyui/test_host.py", "-k", "test_words"]
    done = subprocess.run(command, cwd=rooms.ROOT, env=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "SKIPPED SUITES: ComfyUI in process (no ComfyUI at" in done.stdout
