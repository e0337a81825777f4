"""The notebook runs from top to bottom, and what is stored in it is what it prints and shows."""

import ast
import base64
import importlib.util
import io
import json
import re
import runpy
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image
from rooms import ROOT

PATH = ROOT / "notebooks" / "layered_diffusion.ipynb"
STORED = json.loads(PATH.read_text(encoding="utf-8"))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
REPOSITORY = re.search(r'^Repository = "(.+)"', PROJECT, re.M)[1]

CLOSE = 0.005
"""Greatest mean difference of a stored picture from that of a run, 0..1. Another number of threads and another
instruction set of the CPU change a picture by less than 0.000001, other seeds by 0.02 to 0.1."""


def code(notebook=STORED):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def cell(name):
    """The source of a cell."""
    (found,) = [cell for cell in STORED["cells"] if cell["id"] == name]
    return "".join(found["source"])


def texts(found):
    """What a cell prints, and the texts that stand for its pictures."""
    parts = [x.get("text", x.get("data", {}).get("text/plain", "")) for x in found["outputs"]]
    return ["".join(part) for part in parts]


def pictures(found):
    """The pictures that a cell shows, ``[H, W, 3]`` in 0..1."""
    data = ["".join(x["data"]["image/png"]) for x in found["outputs"] if "image/png" in x.get("data", {})]
    shown = [Image.open(io.BytesIO(base64.b64decode(x))).convert("RGB") for x in data]
    return [np.asarray(x, dtype=np.float32) / 255 for x in shown]


def test_every_cell_was_run_in_order_and_none_failed_or_complained():
    assert [x["execution_count"] for x in code()] == list(range(1, len(code()) + 1))
    for output in (output for x in code() for output in x["outputs"]):
        assert output["output_type"] in ("stream", "execute_result")
        assert output.get("name", "stdout") == "stdout"


def test_the_stored_outputs_show_what_each_section_says():
    by_name = {x["id"]: x for x in code()}
    shown = {name for name, x in by_name.items() if pictures(x)}
    assert shown == {"places", "collage", "redo", "stages", "alpha", "psd"}
    assert "pixels changed outside the box: 0\n" in texts(by_name["redo"])
    assert texts(by_name["psd"])[0].startswith("the same in every layer and every pixel: True\n")


def test_every_cell_is_python():
    pytest.importorskip("IPython")
    from IPython.core.inputtransformer2 import TransformerManager

    for found in code():
        ast.parse(TransformerManager().transform_cell("".join(found["source"])))


def test_the_file_is_small_and_names_no_place_on_a_machine():
    text = PATH.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    without_pictures = re.sub(r'"image/png": "[^"]+"', "", text)
    assert len(without_pictures) < 30_000
    places = {str(ROOT), str(Path.home()), tempfile.gettempdir(), "/home/", "/Users/", "/content/", ":\\\\"}
    assert [x for x in places if x in without_pictures] == []
    assert not re.search(r"0x[0-9a-f]{6}", without_pictures)


def test_the_file_holds_nothing_that_only_an_editor_needs():
    assert STORED["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(x["metadata"] == {} for x in STORED["cells"])
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", x["id"]) for x in STORED["cells"])


def test_the_first_cell_installs_this_project_if_it_is_not_there():
    (name,) = re.findall(r'^name = "(.+)"', PROJECT, re.M)
    for extra in ("headless", "app"):
        assert re.search(rf"^{extra} = \[", PROJECT, re.M)
    (wanted,) = re.findall(r'%pip install --quiet "(.+)"', cell("install"))
    assert wanted == f"{name}[headless,app] @ git+{REPOSITORY}"


def test_its_links_lead_into_the_repository_to_what_there_is():
    text = "".join("".join(x["source"]) for x in STORED["cells"] if x["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    badge, colab, *others = links
    assert badge == "https://colab.research.google.com/assets/colab-badge.svg"
    path = PATH.relative_to(ROOT).as_posix()
    assert colab == f"https://colab.research.google.com/github{urlsplit(REPOSITORY).path}/blob/main/{path}"
    for link in others:
        assert link.startswith(REPOSITORY)
        inner = link.removeprefix(REPOSITORY)
        if inner.startswith("/blob/main/"):
            assert (ROOT / unquote(urlsplit(inner).path).removeprefix("/blob/main/")).is_file(), link
        else:
            titles = re.findall(r"^#+ (.+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
            assert inner.removeprefix("#") in [x.lower().replace(" ", "-") for x in titles], link


@pytest.fixture(scope="module")
def ran(skip_suite, tmp_path_factory):
    """Return the notebook as a run leaves it, and the folder in which it ran."""
    missing = [x for x in ("nbclient", "ipykernel") if importlib.util.find_spec(x) is None]
    if missing:
        skip_suite("the notebook", f"{', '.join(missing)} missing: pip install -e '.[dev]'")
    import run_notebook

    folder = tmp_path_factory.mktemp("notebook")
    return run_notebook.run(run_notebook.read(), folder), folder


def test_a_run_prints_what_is_stored(ran):
    for stored, made in zip(code(), code(ran[0]), strict=True):
        assert texts(made) == texts(stored), stored["id"]


def test_a_run_shows_the_pictures_that_are_stored(ran):
    for stored, made in zip(code(), code(ran[0]), strict=True):
        for old, new in zip(pictures(stored), pictures(made), strict=True):
            assert old.shape == new.shape, stored["id"]
            assert np.abs(old - new).mean() < CLOSE, stored["id"]


def test_a_run_leaves_one_file(ran):
    assert [x.name for x in ran[1].iterdir()] == ["layers.psd"]


def test_with_a_model_from_disk_all_sizes_follow(tmp_path, monkeypatch):
    import tiny_unets

    tiny_unets.sdxl().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    sections = ("model", "places", "collage", "redo", "stages", "psd")
    program = "\n".join(cell(name) for name in sections)
    assert program.count('MODEL = ""') == 1
    Path("program.py").write_text(program.replace('MODEL = ""', 'MODEL = "model"'), encoding="utf-8")
    known = runpy.run_path("program.py")
    assert known["side"] == 8 * 8
    assert known["picture"].size == known["redone"].size == (64, 64)
    opened = known["opened"]
    assert (opened.width, opened.height) == (64, 64)
    places = [(x.x, x.y, x.width, x.height) for x in opened]
    assert places == [(0, 0, 64, 64), (1, 18, 29, 40), (29, 26, 32, 35)]
