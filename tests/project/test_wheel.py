"""The wheel that ``pip install layered-diffusion`` installs, tried in an environment of its own."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image

from layered_core import __version__

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = ("layered_core", "layered_diffusers", "layered_cli", "demo", "benchmarks")


def run(*command, folder):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(c) for c in command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(skip_suite, tmp_path_factory):
    """The wheel, built from the files that git tracks."""
    if not (ROOT / ".git").exists():
        skip_suite("the wheel", "not a git checkout: it is built from a clone")
    found = [d.version for d in metadata.distributions(name="setuptools")]
    if not found or int(found[0].split(".")[0]) < 77:
        skip_suite("the wheel", "setuptools is missing or older than 77: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    run("git", "clone", "-q", ROOT, "clone", folder=folder)
    build = ("wheel", "./clone", "--no-deps", "--no-build-isolation", "--wheel-dir", "made")
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *build, folder=folder)
    (made,) = (folder / "made").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The python of a new environment with the wheel in it. The wheel's dependencies are this environment's,
    by path alone: its ``.pth`` files, which name this checkout, are not read again."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, folder=folder)
    places = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder)
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(places.strip(), "dependencies.pth").write_text("\n".join(sorted(dependencies)) + "\n")
    return python


def test_the_wheel_holds_every_file_of_its_packages(wheel):
    tracked = subprocess.run(
        ["git", "ls-files", "-z", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.getinfo(name).file_size for name in archive.namelist()}
    assert sorted({name for name in tracked if name} - set(packed)) == []
    for name in (
        "demo/model/unet/diffusion_pytorch_model.safetensors",
        "demo/files/storybook.psd",
        "benchmarks/suites/layout.yaml",
        "layered_core/formats/schema/document.schema.json",
        "layered_core/py.typed",
        "layered_cli/page/board.js",
        "layered_cli/page/page.css",
        "layered_diffusers/py.typed",
    ):
        assert packed[name] == (ROOT / name).stat().st_size, name


def test_the_wheel_holds_its_packages_alone(wheel):
    """``nodes`` above all: ComfyUI has a module of that name."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_the_installed_command_says_its_version(installed):
    assert (
        run(installed.with_name("layered"), "--version", folder=installed.parent)
        == f"layered {__version__}\n"
    )


def test_the_installed_packages_are_the_wheels_and_not_this_checkout(installed):
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {PACKAGES}]"
    files = run(installed, "-c", code, folder=installed.parent).split("\n")[:-1]
    assert len(files) == len(PACKAGES)
    assert all(Path(file).is_relative_to(installed.parents[1]) for file in files), files


def test_the_installed_command_paints_a_picture(installed, tmp_path):
    run(
        installed.with_name("layered"),
        "generate",
        "a red ball",
        "-o",
        "x.png",
        "--device",
        "cpu",
        folder=tmp_path,
    )
    from demo.world.judge import Judge
    from layered_core.formats.pictures import from_image

    picture = from_image(Image.open(tmp_path / "x.png"))
    assert picture.shape == (128, 128, 4)
    (verdict,) = Judge.load().look(picture[None, ..., :3].permute(0, 3, 1, 2))
    assert ("red", "ball") in {found.thing for found in verdict.objects}
