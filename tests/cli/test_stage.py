"""``layered stage`` and ``layered render --per-layer``."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from demo.world.places import TRANSPARENT
from layered_cli.command import main
from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.files import read_layers
from layered_core.formats.document_json import write_document

SCENE = {
    "version": 1, "width": 96, "height": 64,
    "layers": [
        {"name": "sky", "width": 96, "height": 64, "prompt": "at night"},
        {"name": "tree", "x": 8, "y": 8, "width": 40, "height": 52, "prompt": "a green tree"},
    ],
}  # fmt: skip
QUICK = ["--steps", "2", "--device", "cpu"]


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.json"
    path.write_text(json.dumps(SCENE))
    return path


@pytest.mark.parametrize("out", ["out.psd", "out.ora", "out"])
def test_a_scene_of_words_becomes_layers_and_a_picture(scene, out, tmp_path, capsys):
    assert (
        main(
            ["stage", str(scene), "-o", str(tmp_path / out), "--picture", str(tmp_path / "flat.png"), *QUICK]
        )
        == 0
    )
    made = read_layers(tmp_path / out).document
    assert [(x.name, x.prompt, x.image is not None) for x in made] == [
        ("sky", "at night", True),
        ("tree", "a green tree", True),
    ]
    assert Image.open(tmp_path / "flat.png").size == (96, 64)
    assert "4/4" in capsys.readouterr().err  # one bar over both stages


def test_words_that_are_not_what_they_seem_are_told(tmp_path, capsys):
    path = tmp_path / "scene.json"
    path.write_text(json.dumps(SCENE).replace("a green tree", "a {green|red} tree"))
    main(["stage", str(path), "-o", str(tmp_path / "out"), "--replace", "nobody"])
    assert (
        "layered: scene.json: layer 'tree': prompt has '{green|red}': choices in braces"
        in capsys.readouterr().err
    )


def test_staging_is_reproducible_and_one_layer_can_be_replaced(scene, tmp_path):
    for name in ("a", "b"):
        assert main(["stage", str(scene), "-o", str(tmp_path / name), "--seed", "3", *QUICK]) == 0
    a, b = (read_layers(tmp_path / n).document for n in ("a", "b"))
    assert all(torch.equal(x.image, y.image) for x, y in zip(a, b, strict=True))
    replaced = ["--replace", "tree", "--prompt", "a red ball", "--seed", "3", *QUICK]
    assert main(["stage", str(tmp_path / "a" / "document.json"), "-o", str(tmp_path / "c"), *replaced]) == 0
    c = read_layers(tmp_path / "c").document
    assert torch.equal(c.layer("sky").image, a.layer("sky").image)
    assert not torch.equal(c.layer("tree").image, a.layer("tree").image)
    assert c.layer("tree").prompt == "a red ball"


def test_layers_can_be_painted_alone_with_alpha_of_their_own(scene, tmp_path):
    for name, files in (
        ("a", []),
        ("b", ["--file", TRANSPARENT / "lora.safetensors", "--decoder", TRANSPARENT / "decoder.safetensors"]),
    ):
        assert (
            main(
                [
                    "stage",
                    str(scene),
                    "-o",
                    str(tmp_path / name),
                    "--alpha",
                    "transparent",
                    "--guidance",  # files have another default than the storybook's own
                    "3",
                    *map(str, files),
                    *QUICK,
                ]
            )
            == 0
        )
    assert main(["stage", str(scene), "-o", str(tmp_path / "c"), *QUICK]) == 0
    a, b, c = (read_layers(tmp_path / n).document.layer("tree").image for n in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--replace", "dog"], "layer name is 'dog'; allowed: 'sky', 'tree'"),
        (["--later"], "--prompt and --later are used with --replace only"),
        (["--decoder", "a.safetensors"], "--alpha is 'difference'; allowed: transparent"),
        (
            [
                "--alpha",
                "transparent",
                "--file",
                "no.safetensors",
                "--decoder",
                "vae_transparent_decoder.safetensors",
            ],
            "208 MB",
        ),
        (
            ["-o", "out.gif"],
            "a name that ends in .psd or .psb or .ora, or a folder's name, which has no ending",
        ),
        (["-o", "gone/out"], "an existing folder"),
        (["--picture", "flat.jpg"], "a name that ends in .png"),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(scene, arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["stage", str(scene), "-o", "out", *arguments, *QUICK]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_written_over(scene, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert main(["stage", str(scene), "-o", str(tmp_path / "out"), *QUICK]) == 2
    assert "a name that is not taken" in capsys.readouterr().err


def test_rendering_per_layer_keeps_a_frozen_layer_to_the_bit(tmp_path):
    random = torch.randint(0, 256, (64, 64, 4), generator=torch.Generator().manual_seed(0)) / 255
    random[..., 3] = 1
    back, frozen = (
        Layer("back", random, recipe=Recipe(noise=0.9)),
        Layer("frozen", random[:20, :30].clone(), recipe=Recipe(noise=0.0), x=10, y=10),
    )
    path = write_document(LayerDocument(64, 64, (back, frozen), prompt="at night"), tmp_path / "scene")
    assert main(["render", str(path), "-o", str(tmp_path / "out.png"), "--per-layer", *QUICK]) == 0
    out = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.array_equal(out[10:30, 10:40], (frozen.image[..., :3] * 255).round().to(torch.uint8).numpy())
    assert not np.array_equal(out, (random[..., :3] * 255).round().to(torch.uint8).numpy())
