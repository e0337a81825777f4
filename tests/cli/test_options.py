"""What is said on the command line reaches the pipeline, word by word."""

import io
import zipfile
from inspect import signature
from pathlib import Path

import pytest
import torch
from PIL import Image

from layered_cli import generate, render, stage
from layered_cli.command import main
from layered_core.document import Layer, LayerDocument
from layered_core.files import read_layers, write_layers
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers.pipeline import PLACES, LayeredDiffusionPipeline

SAID = ["--seed", "7", "--steps", "11", "--guidance", "4.5"]
HEARD = {"seed": 7, "steps": 11, "guidance": 4.5}


class Pipeline:
    """Notes what it is asked for."""

    def __init__(self):
        self.asked = {}

    def _picture(self, *given, **how):
        self.asked = how
        return Image.new("RGB", (4, 4))

    generate_layer = generate_transparent_layer = render = harmonize = _picture

    def generate_layers(self, document, **how):
        self.asked = how
        return document

    def replace_layer(self, document, name, **how):
        self.asked = {"name": name, **how}
        return document


@pytest.fixture
def pipeline(monkeypatch):
    made = Pipeline()
    for command in (generate, render, stage):
        monkeypatch.setattr(command, "pipeline_of", lambda options: made)
    return made


@pytest.fixture
def scene(tmp_path):
    layer = Layer("sky", torch.ones(4, 4, 4), prompt="a sky")
    document = LayerDocument(4, 4, (layer,), negative="rust")
    return str(write_layers(document, tmp_path / "scene.ora", {"prompt": {"1": "kept"}}))


def changed(path, how):
    """Put ``how(name, data)`` in the place of every entry of an OpenRaster file."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in entries.items():
            new.writestr(name, how(name, data))


def heard(pipeline, **wanted):
    assert {k: pipeline.asked[k] for k in wanted} == wanted


@pytest.mark.parametrize("command", ["render", "stage"])
def test_a_document_that_needs_more_memory_than_allowed_is_refused_with_the_option(
    command, scene, tmp_path, capsys
):
    said = [command, scene, "-o", str(tmp_path / "a.psd")]
    big = io.BytesIO()
    Image.new("L", (9000, 9000)).save(big, "PNG", compress_level=1)
    changed(scene, lambda name, data: big.getvalue() if name.startswith("data/") else data)
    assert main([*said, "--memory-limit", "1"]) == 2
    assert (
        "is '1,296,000,000 bytes'; allowed: at most 1,073,741,824. "
        "Raise the memory limit, --memory-limit, to 2 GiB or more"
    ) in capsys.readouterr().err


@pytest.mark.parametrize("command", ["render", "stage"])
def test_what_layers_cannot_hold_is_told(command, pipeline, tmp_path, capsys):
    path = tmp_path / "scene.ora"
    write_layers(LayerDocument(4, 4, (Layer("a", torch.ones(4, 4, 4), prompt="a"),)), path)
    changed(
        path, lambda name, data: data.replace(b"<layer", b"<filter /><layer") if name == "stack.xml" else data
    )
    main([command, str(path), "-o", str(tmp_path / "a.psd"), *SAID])
    assert "layered: scene.ora: a <filter> is left out" in capsys.readouterr().err


def test_generate(pipeline, tmp_path):
    out = ["-o", str(tmp_path / "a.png")]
    assert (
        main(["generate", "a ball", *out, *SAID, "--width", "24", "--height", "40", "--negative", "dark"])
        == 0
    )
    heard(pipeline, **HEARD, width=24, height=40, negative="dark")
    files = ["--file", "f.safetensors", "--decoder", "d.safetensors", "--augmentations", "2"]
    assert main(["generate", "a ball", *out, "--transparent", *files]) == 0
    heard(pipeline, seed=0, steps=25, guidance=None, augmentations=2, negative="", width=None, height=None)
    assert [str(pipeline.asked[k]) for k in ("file", "decoder")] == ["f.safetensors", "d.safetensors"]


def test_render(pipeline, scene, tmp_path):
    out = ["-o", str(tmp_path / "a.png")]
    assert main(["render", scene, *out, *SAID, "--strength", "0.3"]) == 0
    heard(pipeline, **HEARD, strength=0.3, negative="rust", attention=PLACES, adapters=None)
    more = ["--words", "everywhere", "--adapters", "a folder"]
    assert main(["render", scene, *out, "--per-layer", "--negative", "dark", *more]) == 0
    heard(pipeline, negative="dark", attention=None, adapters=Path("a folder"))
    assert "strength" not in pipeline.asked


def test_layered_rendering(pipeline, scene, tmp_path):
    said = ["render", scene, "-o", str(tmp_path / "a.png")]
    assert main(said) == 0
    heard(pipeline, rendering=None)
    assert main([*said, "--render-share", "0.3"]) == 0
    heard(pipeline, rendering=Rendering(share=0.3, strength=0.2, colour="words", preset="faithful"))
    more = ["--vision-strength", "0.1", "--vision-colour", "#FF8000", "--render-preset", "fast"]
    assert main([*said, "--per-layer", "--render-share", "1", *more]) == 0
    constant = (1.0, 128 / 255, 0.0)
    wanted = Rendering(share=1.0, strength=0.1, colour="constant", constant=constant, preset="fast")
    heard(pipeline, rendering=wanted)
    for colour in ("picture", "noise"):
        assert main([*said, "--render-share", "0.3", "--vision-colour", colour]) == 0
        heard(pipeline, rendering=Rendering(colour=colour))


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--render-share", "1.5", "'1.5' is not a number 0..1"),
        ("--render-share", "nan", "'nan' is not a number 0..1"),
        ("--vision-strength", "-1", "'-1' is not a number 0..1"),
        ("--vision-colour", "red", "'red' is not words, picture, noise, or a colour such as #FF8000"),
        ("--vision-colour", "#FF800", "'#FF800' is not words, picture, noise, or a colour such as #FF8000"),
        ("--render-preset", "quick", "'quick'"),
    ],
)
def test_bad_settings_of_layered_rendering_are_told(pipeline, scene, tmp_path, capsys, option, value, told):
    with pytest.raises(SystemExit) as stopped:
        main(["render", scene, "-o", str(tmp_path / "a.png"), "--render-share", "0.3", f"{option}={value}"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert option in error
    assert told in error


def test_layers_that_cannot_be_rendered_are_told_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    def load(options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(render, "pipeline_of", load)
    said = ["render", str(tmp_path / "a.ora"), "-o", str(tmp_path / "a.png"), "--render-share", "0.3"]
    write_layers(LayerDocument(4, 4, (Layer("sky", torch.ones(4, 4, 4)),)), tmp_path / "a.ora")
    assert main(said) == 2
    assert "layers: none has words of its own" in capsys.readouterr().err
    ball = Layer("ball", width=4, height=4, prompt="a ball")
    write_layers(LayerDocument(4, 4, (ball,)), tmp_path / "a.ora")
    assert main([*said, "--vision-colour", "picture"]) == 2
    told = "layer 'ball': the picture that gives its colour is None; allowed: a picture in every layer"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_the_command_renders_as_the_pipeline_does_when_nothing_is_said(pipeline, scene, tmp_path):
    for more, method in (([], "render"), (["--per-layer"], "harmonize")):
        assert main(["render", scene, "-o", str(tmp_path / "a.png"), *more]) == 0
        for name, parameter in signature(getattr(LayeredDiffusionPipeline, method)).parameters.items():
            if name in pipeline.asked and name != "options":
                assert pipeline.asked[name] == parameter.default, (method, name)


def test_stage(pipeline, scene, tmp_path):
    out = tmp_path / "a.ora"
    assert (
        main(["stage", scene, "-o", str(out), *SAID, "--feather", "3", "--size", "96", "--alpha", "mask"])
        == 0
    )
    heard(pipeline, **HEARD, feather=3, size=96, alpha="mask", negative="rust")
    assert read_layers(out).workflow == {"prompt": {"1": "kept"}}
    again = ["--replace", "sky", "--prompt", "a night", "--later", "--negative", "dark"]
    assert main(["stage", scene, "-o", str(out), *again]) == 0
    heard(pipeline, name="sky", prompt="a night", later=True, negative="dark", feather=8, size=0)
