"""Temporary files: they are renamed, removed when writing fails, and removed later if their process was killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layered_core.formats.part_files import ENDING, part_file, part_folder, remove_abandoned, scratch_folder

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs locks on files")

PROGRAM = """
import sys, time
from pathlib import Path
from layered_core.formats.part_files import part_file, part_folder
with {make}(Path(sys.argv[1])) as part:
    print("ready", flush=True)
    time.sleep(60)
"""


def writer(make, path):
    """Start a process that is writing ``path``."""
    run = [sys.executable, "-c", PROGRAM.format(make=make), str(path)]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def parts(folder):
    return [name for name in os.listdir(folder) if name.endswith(ENDING)]


@POSIX
@pytest.mark.parametrize("make", ["part_file", "part_folder"])
def test_only_what_a_killed_process_left_is_removed(tmp_path, make):
    process = writer(make, tmp_path / "a")
    try:
        assert len(parts(tmp_path)) == 1
        with part_file(tmp_path / "b") as file:
            file.write(b"whole")
        assert len(parts(tmp_path)) == 1  # its process still runs
    finally:
        process.kill()
        process.wait()
    assert len(parts(tmp_path)) == 1
    with part_file(tmp_path / "c") as file:
        file.write(b"whole")
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]


@POSIX
def test_two_writers_of_one_process_leave_each_other_alone(tmp_path):
    with part_file(tmp_path / "a") as a:
        with part_folder(tmp_path / "b") as b:
            Path(b, "inside").write_text("x")
            with part_file(tmp_path / "a") as again:
                again.write(b"second")
        a.write(b"first")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert (tmp_path / "b" / "inside").read_text() == "x"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_files_of_others_stay(tmp_path):
    names = [".a.part", "a.layered.part", ".a.abcdefgh.part"]
    for name in names:
        (tmp_path / name).write_text("x")
    remove_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names)


@POSIX
def test_a_link_or_pipe_of_such_a_name_stays(tmp_path):
    (tmp_path / "mine").write_text("x")
    os.symlink(tmp_path / "mine", tmp_path / f".a.{ENDING}")
    os.mkfifo(tmp_path / f".b.{ENDING}")
    remove_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([f".a.{ENDING}", f".b.{ENDING}", "mine"])


@pytest.mark.parametrize("make", [part_file, part_folder])
def test_what_fails_leaves_nothing(tmp_path, make):
    with pytest.raises(KeyboardInterrupt), make(tmp_path / "a"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@POSIX
def test_a_scratch_folder_goes_with_all_that_is_in_it_and_with_what_a_killed_one_left(tmp_path):
    (tmp_path / f".scratch.abc{ENDING}").mkdir()
    with scratch_folder(tmp_path) as mine:
        with scratch_folder(tmp_path) as other:
            (other / "inside").write_text("x")
            assert sorted(tmp_path.iterdir()) == sorted([mine, other])
        assert list(tmp_path.iterdir()) == [mine]
        with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path):
            raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_finished_file_has_the_usual_rights(tmp_path):
    with part_file(tmp_path / "a") as file:
        file.write(b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
