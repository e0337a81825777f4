"""The package that the registry hands out, as ``comfy node pack`` makes it, in a ComfyUI with nothing else."""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from comfy_server import NotStartedError, Server
from PIL import Image

from benchmarks.hosts.find import find_host

ROOT = Path(__file__).resolve().parents[2]

LEFT_OUT = {".ci", ".github", "benchmarks", "docs", "mkdocs.yml", "output", "results", "tests"}
"""Folders and files of the checkout that a user of ComfyUI has no use for."""


@pytest.fixture(scope="module")
def comfy(skip_suite, tmp_path_factory):
    """Runs ``comfy node`` in a clone of the committed files, without a network; and the clone."""
    if importlib.util.find_spec("comfy_cli") is None:
        skip_suite("the registry's package", "comfy-cli is not installed: pip install -e '.[dev]'")
    if not (ROOT / ".git").exists():
        skip_suite("the registry's package", "not a git checkout: comfy-cli packs what git tracks")
    folder = tmp_path_factory.mktemp("registry")
    clone, home = folder / "clone", folder / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True, capture_output=True)
    # A home of its own, so that nothing is written to the user's; proxies that lead nowhere.
    environment = {**os.environ, "HOME": str(home), "USERPROFILE": str(home), "DO_NOT_TRACK": "1"}
    environment |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")

    def run(word):
        command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", word]
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run, clone


@pytest.fixture(scope="module")
def package(comfy):
    """The folder that the registry's package unpacks to."""
    run, clone = comfy
    run("pack")
    unpacked = clone.parent / "unpacked"
    with zipfile.ZipFile(clone / "node.zip") as archive:
        archive.extractall(unpacked)
    return unpacked


@pytest.fixture(scope="module")
def server(package, skip_suite, could_not_start, tmp_path_factory):
    host = find_host()
    if isinstance(host, str):
        skip_suite("the registry's package in ComfyUI", host)
    try:
        server = Server(*host, tmp_path_factory.mktemp("empty") / "base", pack=package)
    except NotStartedError as error:
        could_not_start("ComfyUI's server", str(error))
    yield server
    server.stop()


def tracked(*folders):
    """Files that git tracks in those folders of the checkout."""
    done = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in done.stdout.split("\0") if name}


def test_the_registrys_own_checks_find_nothing(comfy):
    run, _ = comfy
    told = run("validate")
    assert "All validation checks passed" in told
    assert "warning" not in told.lower()


def test_everything_that_comfyui_shows_or_runs_is_in_the_package(package):
    packed = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    shown = tracked(
        "web", "workflows", "subgraphs", "locales", "nodes", "layered_core", "demo/world", "demo/model"
    )
    wanted = shown | {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "NOTICE", "README.md"}
    assert sorted(wanted - packed) == []


def test_nothing_that_only_a_developer_needs_is_in_the_package(package):
    assert {p.name for p in package.iterdir()} & LEFT_OUT == set()
    assert not (package / "demo" / "train").exists()


def test_the_package_is_loaded_without_a_complaint(server):
    log = server.log.read_text()
    assert re.search(r"seconds: .*layered-diffusion", log)
    for complaint in ("IMPORT FAILED", "Error while calling comfy_entrypoint", "Traceback"):
        assert complaint not in log


def test_the_package_offers_every_node(server, package):
    offered = {k for k in server.get("/object_info") if k.startswith("LD_")}
    named = json.loads((package / "locales" / "en" / "nodeDefs.json").read_text())
    assert offered == {k for k in named if k.startswith("LD_")}


def test_every_help_page_of_the_package_and_every_picture_in_it_is_served(server):
    for name in (k for k in server.get("/object_info") if k.startswith("LD_")):
        folder = "/extensions/layered-diffusion/docs"
        for language in ("en", "zh"):
            page = server.read(f"{folder}/{name}/{language}.md").decode()
            assert page.startswith("# ")
            pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
            assert pictures, name
            for picture in pictures:
                assert Image.open(io.BytesIO(server.read(f"{folder}/{picture}"))).size > (1, 1), picture


def test_every_template_of_the_package_opens_with_its_picture(server, package):
    names = server.get("/api/workflow_templates")["layered-diffusion"]
    assert set(names) == {f.stem for f in (package / "workflows").glob("*.json")}
    known = set(server.get("/object_info"))
    for name in names:
        graph = json.loads(server.read(f"/api/workflow_templates/layered-diffusion/{name}.json"))
        # Notes are the page's own; a blueprint's nodes are named by its id.
        inner = {part["id"] for part in (graph.get("definitions") or {}).get("subgraphs", [])}
        types = {node["type"] for node in graph["nodes"]} - {"Note", "MarkdownNote"} - inner
        assert types <= known, name
        Image.open(io.BytesIO(server.read(f"/api/workflow_templates/layered-diffusion/{name}.jpg"))).load()


def test_the_demo_model_of_the_package_paints_what_a_shipped_workflow_asks_for(server, package):
    import torch

    from demo.world.judge import Judge

    entry = server.run(json.loads((package / "workflows" / "api" / "01_storybook_collage.json").read_text()))
    (shown,) = entry["outputs"]["18"]["images"]
    picture = np.asarray(Image.open(io.BytesIO(server.picture(shown))), dtype=np.float32)[:128, :128] / 255
    (verdict,) = Judge.load().look(torch.from_numpy(picture).permute(2, 0, 1)[None])
    assert verdict.background == "meadow"
    assert {f.thing for f in verdict.objects} == {("red", "house"), ("yellow", "heart")}
