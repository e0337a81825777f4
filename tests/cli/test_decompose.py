"""``layered decompose`` and ``layered dataset`` from their options to their files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from demo.world.drawing import draw_background
from demo.world.scenes import Scene, place_object
from demo.world.vocabulary import Thing
from layered_cli import parts
from layered_cli.command import main
from layered_cli.command import parser as command_parser
from layered_core.canvas.compositing import composite
from layered_core.files import read_layers
from layered_diffusers.dataset.filtering import Thresholds

QUICK = ["--steps", "2", "--device", "cpu"]


def picture_of(path, seed=0):
    things = (Thing("solid", "red", "ball"), Thing("solid", "yellow", "star"))
    boxes = ((8.0, 30.0, 50.0, 50.0), (68.0, 40.0, 48.0, 48.0))
    objects = tuple(place_object(t, box) for t, box in zip(things, boxes, strict=True))
    scene = Scene(seed, "sea", draw_background("sea", np.random.default_rng(seed)), objects)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.picture()).save(path)
    return torch.from_numpy(scene.picture().copy())


def test_a_picture_becomes_a_layered_file_that_gives_the_picture(tmp_path, capsys):
    pixels = picture_of(tmp_path / "a.png")
    assert main(["decompose", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.psd"), *QUICK]) == 0
    assert f"wrote {tmp_path / 'a.psd'}" in capsys.readouterr().out
    document = read_layers(tmp_path / "a.psd").document
    assert [x.name for x in document] == ["background", "red ball", "yellow star"]
    assert [x.prompt for x in document] == ["by the sea", "a red ball", "a yellow star"]
    assert torch.equal((composite(document)[..., :3] * 255).round().to(torch.uint8), pixels)


def test_words_choose_the_things_and_what_is_not_found_is_an_error(tmp_path, capsys):
    picture_of(tmp_path / "a.png")
    said = ["decompose", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *QUICK]
    assert main([*said, "--words", "a green house"]) == 2
    assert "looked for: 'a green house'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*said, "--words", "a yellow star", "--background", "the sea"]) == 0
    document = read_layers(tmp_path / "out").document
    assert [(x.name, x.prompt) for x in document] == [
        ("background", "the sea"),
        ("yellow star", "a yellow star"),
    ]


def test_together_makes_the_layers_with_the_network(tmp_path):
    picture_of(tmp_path / "a.png")
    said = ["decompose", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.ora"), *QUICK]
    assert main([*said, "--method", "together", "--words", "a red ball", "--augmentations", "1"]) == 0
    document = read_layers(tmp_path / "a.ora").document
    assert [(x.name, x.visible) for x in document] == [
        ("background", True), ("a red ball", True), ("blend", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--out", "a.txt"], "output file"),
        (["--file", "x.safetensors"], "--method together"),
        (["--segmenter", "nothing"], "grounded-sam2, sam3, florence2, judge, file"),
        (["--segmenter", "grounded-sam2"], "hf download"),
        (["--depth", "file"], "a.depth.png was not found"),
        (["--inpainter", "none_such:Lama"], "PYTHONPATH"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, options, text):
    picture_of(tmp_path / "a.png")
    assert main(["decompose", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.psd"), *QUICK, *options]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a.psd").exists()


def test_a_folder_becomes_a_data_set_that_is_continued_and_checked(tmp_path, capsys):
    picture_of(tmp_path / "in" / "1.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    said = ["dataset", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *QUICK, "--licence", "CC0-1.0"]
    assert main(said) == 0
    assert "broken.png: left out: picture 'broken.png' cannot be read" in capsys.readouterr().err
    (record,) = map(json.loads, (tmp_path / "out" / "index.jsonl").read_text().splitlines())
    assert record["licence"] == "CC0-1.0"
    assert record["providers"]["captioner"] == {"name": "judge", "model": "storybook judge"}
    assert record["thresholds"] == Thresholds().entries()
    assert [x["name"] for x in record["layers"]] == ["red ball", "yellow star"]
    assert main(said) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*said, "--resume"]) == 0
    assert main([*said, "--resume", "--score", "0.5"]) == 2
    assert "score was 0.35 and is 0.5" in capsys.readouterr().err
    assert main([*said, "--check"]) == 0
    (tmp_path / "out" / record["sha256"] / "document.json").unlink()
    assert main([*said, "--check"]) == 2
    assert "1.png" in capsys.readouterr().err


def test_a_files_words_name_no_file_out_of_the_folder(tmp_path, capsys):
    picture_of(tmp_path / "in" / "1.png")
    (tmp_path / "words.jsonl").write_text('{"file": "../x.png", "text": ""}')
    said = ["dataset", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *QUICK]
    assert main([*said, "--words", str(tmp_path / "words.jsonl")]) == 2
    assert "line 1: file is '../x.png'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_threshold_has_an_option_with_its_usual_value():
    usual = Thresholds().entries()
    assert {k.replace("-", "_"): v[3] for k, v in parts.THRESHOLDS.items()} == usual
    options = command_parser().parse_args(["dataset", "x", "-o", "y"])
    assert parts.thresholds_of(options) == Thresholds()
    options = command_parser().parse_args(
        ["dataset", "x", "-o", "y", "--still-there", "0.5", "--layers", "4"]
    )
    assert parts.thresholds_of(options) == Thresholds(still_there=0.5, layers=4)
