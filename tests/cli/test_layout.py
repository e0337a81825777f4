"""``layered layout`` converts layers to elements and back."""

import json

import pytest

from layered_cli.command import main
from layered_core.document import Layer, LayerDocument
from layered_core.files import read_layers, write_layers

ELEMENTS = [
    {"type": "obj", "bbox": [0, 0, 1000, 1000], "desc": "a meadow"},
    {"type": "obj", "bbox": [500, 250, 1000, 750], "desc": "a red ball"},
]


@pytest.fixture
def scene(tmp_path):
    layers = (
        Layer("meadow", prompt="a meadow", width=64, height=48),
        Layer("ball", prompt="a red ball", x=16, y=24, width=32, height=24),
        Layer("ghost", prompt="a ghost", width=8, height=8, visible=False),
    )
    return str(write_layers(LayerDocument(64, 48, layers), tmp_path / "scene.ora"))


def test_a_document_is_printed_or_written_as_elements(scene, tmp_path, capsys):
    assert main(["layout", scene]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == ELEMENTS
    assert told.err == "layered: scene.ora: Left out, as they are hidden: 'ghost'.\n"
    assert main(["layout", scene, "-o", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'a.json'}\n"
    assert json.loads((tmp_path / "a.json").read_text()) == ELEMENTS


def test_the_answer_of_a_language_model_becomes_a_document(tmp_path, capsys):
    answer = tmp_path / "answer.txt"
    answer.write_text(f"Here it is:\n```json\n{json.dumps(ELEMENTS)}\n```")
    assert main(["layout", str(answer), "--size", "64x48", "-o", str(tmp_path / "scene.psd")]) == 0
    document = read_layers(tmp_path / "scene.psd").document
    assert (document.width, document.height) == (64, 48)
    assert [(x.prompt, x.x, x.y, x.width, x.height) for x in document] == [
        ("a meadow", 0, 0, 64, 48),
        ("a red ball", 16, 24, 32, 24),
    ]
    assert "answer.txt: The boxes are read as 0..1000 y x y x" in capsys.readouterr().err


def test_bad_input_is_one_line(scene, tmp_path, capsys):
    empty = tmp_path / "none.txt"
    empty.write_text("no list")
    out = str(tmp_path / "a.psd")
    for said, error in (
        (["layout", str(empty), "--size", "9x9", "-o", out], "allowed: a list of elements"),
        (
            ["layout", str(empty), "--size", "9x9", "-o", out, "--boxes", "odd"],
            "boxes is 'odd'; allowed: auto",
        ),
        (["layout", str(empty), "--size", "9x9"], "--out is not given"),
        (["layout", scene, "-o", out], "a name that ends in .json"),
        (["layout", str(tmp_path / "gone"), "--size", "9x9", "-o", out], "was not found"),
    ):
        assert main(said) == 2
        text = capsys.readouterr().err
        assert error in text
        assert text.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["layout", str(empty), "--size", "9", "-o", out])
    assert not (tmp_path / "a.psd").exists()
