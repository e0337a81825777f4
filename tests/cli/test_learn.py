"""``layered learn`` writes words that other commands use, and leaves nothing behind when it stops."""

import pytest
from PIL import Image

from demo.world.scenes import random_scene
from layered_cli import learn
from layered_cli.command import main
from layered_core.files import read_layers
from layered_core.formats.document_json import write_document
from layered_core.learning.lesson import LearnSettings
from layered_core.learning.word_files import read_tensors


@pytest.fixture
def scene(tmp_path):
    return write_document(random_scene(4, count=2).document(), tmp_path / "scene")


@pytest.fixture
def layers(scene):
    return [layer.name for layer in read_layers(scene).document]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "words"
    made.mkdir()
    return made


def test_the_words_are_written_shown_and_named_in_the_document(scene, layers, folder, tmp_path, capsys):
    out = tmp_path / "learnt.psd"
    arguments = [
        "learn",
        str(scene),
        "--adapters",
        str(folder),
        "--steps",
        "1",
        "--batch",
        "1",
        "-o",
        str(out),
    ]
    assert main([*arguments, "--layer", f"{layers[1]}=krk", "--device", "cpu"]) == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        "krk.plot.png", "krk.preview.png", "krk.safetensors", "krk.values.safetensors",
    ]  # fmt: skip
    for name in ("plot", "preview"):
        Image.open(folder / f"krk.{name}.png").verify()
    learnt = read_layers(out).document
    assert [x.recipe.embedding for x in learnt] == [None, "krk", None]
    assert str(folder / "krk.values.safetensors") in capsys.readouterr().out
    picture = tmp_path / "picture.png"
    render = ["render", str(out), "-o", str(picture), "--adapters", str(folder), "--steps", "2"]
    assert main([*render, "--device", "cpu"]) == 0
    assert main([*arguments, "--layer", f"{layers[1]}=krk"]) == 2
    assert "'krk.safetensors' exists already" in capsys.readouterr().err


class Pipeline:
    """Notes what it is asked for, shows one preview, and is stopped."""

    def __init__(self, error=KeyboardInterrupt):
        self.error = error

    def learn_words(self, document, folder, **how):
        self.asked = how
        how["preview"](50, [Image.new("RGB", (4, 4))] * len(how["layers"]))
        assert len(list(folder.glob("*.preview.png"))) == len(how["layers"])
        raise self.error


def test_what_is_asked_for_reaches_the_training(scene, layers, folder, monkeypatch):
    made = Pipeline()
    monkeypatch.setattr(learn, "pipeline_of", lambda options: made)
    options = ["--form", "word", "--steps", "7", "--batch", "3", "--rate", "0.2", "--vectors", "2"]
    options += ["--context", "grey", "--attention", "0.3", "--start", "red", "--seed", "9", "--overwrite"]
    assert main(["learn", str(scene), "--adapters", str(folder), *options]) == 1
    assert made.asked["settings"] == LearnSettings("word", 7, 3, 0.2, 2, "grey", 0.3, "red", seed=9)
    assert made.asked["layers"] == layers
    assert made.asked["overwrite"] is True


def test_stopping_leaves_no_file_and_the_exit_code_says_so(scene, folder, monkeypatch, capsys):
    monkeypatch.setattr(learn, "pipeline_of", lambda options: Pipeline())
    assert main(["learn", str(scene), "--adapters", str(folder)]) == 1
    assert list(folder.iterdir()) == []
    assert capsys.readouterr().err == "layered: stopped\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--layer", "none"], "layer name is 'none'"),
        (["--layer", "{0}=a/b"], "name of its word is 'a/b'"),
        (["--layer", "{0}=krk", "--layer", "{1}=krk"], "would both be learnt as 'krk'"),
        (["--adapters", "nowhere"], "folder of learnt words is 'nowhere'"),
        (["--model", "demo-transformer"], "words cannot be learnt with FluxPipeline"),
        (["-o", "words"], "output folder is"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(scene, layers, folder, capsys, monkeypatch, options, told):
    monkeypatch.chdir(folder.parent)
    given = [x.format(*layers[1:]) for x in options]
    assert main(["learn", str(scene), "--adapters", str(folder), "--device", "cpu", *given]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_a_layer_whose_name_has_an_equals_sign_can_be_learnt():
    assert learn._named(["a=b", "a=b=krk", "c"], ["a=b", "c"]) == (["a=b", "a=b", "c"], {"a=b": "krk"})


def test_the_files_say_what_was_learnt_from_what(scene, layers, folder):
    arguments = ["learn", str(scene), "--adapters", str(folder), "--steps", "0", "--form", "word"]
    assert main([*arguments, "--layer", f"{layers[1]}=krk", "--device", "cpu"]) == 0
    _, facts = read_tensors(folder / "krk.safetensors")
    assert facts["layer"] == layers[1]
    assert facts["word"] == "krk"
    assert {"class_words", "steps", "rate", "seed", "best_error", "text_encoder_sha256", "version"} <= set(
        facts
    )
