"""The command line has exit codes and one-line errors, and writes nothing after an error."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from psd_tools import PSDImage

from demo.world.scenes import random_scene
from layered_cli.command import main
from layered_core.canvas.compositing import composite
from layered_core.document import Layer, LayerDocument, identical
from layered_core.files import read_layers, write_layers
from layered_core.formats.document_json import read_document, write_document
from layered_core.formats.pictures import read_picture


def scene(folder):
    return write_document(random_scene(4, count=2).document(), folder)


def test_help_reads_well_and_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from layered_cli.command import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    for command in ("render", "generate", "demo"):
        assert command in done.stdout


def test_every_sampler_that_there_is_can_be_asked_for(tmp_path):
    from layered_diffusers.models.loading import SAMPLERS

    written = set()
    for sampler in SAMPLERS:
        out = tmp_path / f"{sampler}.png"
        assert (
            main(
                [
                    "generate",
                    "a red ball",
                    "-o",
                    str(out),
                    "--steps",
                    "3",
                    "--sampler",
                    sampler,
                    "--device",
                    "cpu",
                ]
            )
            == 0
        )
        written.add(out.read_bytes())
    assert len(written) > 2  # ddim and euler may give the same picture


def test_without_torch_a_command_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None; from layered_cli.command import main; "
        "sys.exit(main(['render', 'x.json', '-o', 'x.png']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "layered-diffusion[headless]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_render_writes_a_picture_of_the_canvas_size(tmp_path, capsys):
    out = tmp_path / "out.png"
    assert (
        main(
            [
                "render",
                str(scene(tmp_path / "scene")),
                "-o",
                str(out),
                "--steps",
                "2",
                "--strength",
                "0.5",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert Image.open(out).size == (128, 128)
    assert "1/1" in capsys.readouterr().err  # the progress bar


def test_render_is_reproducible(tmp_path):
    path = scene(tmp_path / "scene")
    for name in ("a.png", "b.png"):
        main(
            [
                "render",
                str(path),
                "-o",
                str(tmp_path / name),
                "--steps",
                "2",
                "--seed",
                "9",
                "--device",
                "cpu",
            ]
        )
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "a.png")), np.asarray(Image.open(tmp_path / "b.png"))
    )


@pytest.mark.parametrize("end", [".psd", ".ora"])
def test_a_layered_file_is_rendered_and_comes_out_with_the_picture_on_top(tmp_path, end):
    document = random_scene(4, count=2).document()
    path = write_layers(document, tmp_path / f"scene{end}", {"prompt": {"1": {}}})
    out = tmp_path / f"out{end}"
    assert (
        main(["render", str(path), "-o", str(out), "--steps", "2", "--strength", "0.5", "--device", "cpu"])
        == 0
    )
    read = read_layers(out)
    assert [layer.name for layer in read.document] == [*(layer.name for layer in document), "render"]
    assert read.document.layers[-1].image.shape == (128, 128, 4)
    assert read.workflow == {"prompt": {"1": {}}}
    assert (
        main(
            [
                "render",
                str(path),
                "-o",
                str(tmp_path / "plain.png"),
                "--steps",
                "2",
                "--strength",
                "0.5",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert torch.equal(read_picture(tmp_path / "plain.png"), read.document.layers[-1].image)


def test_negative_words_of_one_render_act_but_are_not_kept_in_the_file(tmp_path):
    document = replace(random_scene(4, count=2).document(), negative="rain")
    path = write_layers(document, tmp_path / "scene.ora")
    how = ["--steps", "2", "--strength", "0.9", "--device", "cpu"]
    for name, words in (("a.ora", []), ("b.ora", ["--negative", "a red ball"])):
        assert main(["render", str(path), "-o", str(tmp_path / name), *how, *words]) == 0
    a, b = (read_layers(tmp_path / name).document for name in ("a.ora", "b.ora"))
    assert (a.negative, b.negative) == ("rain", "rain")
    assert not torch.equal(a.layers[-1].image, b.layers[-1].image)


def test_a_document_with_no_room_for_the_picture_is_refused_before_the_model_is_loaded(tmp_path, capsys):
    full = LayerDocument(8, 8, tuple(Layer(f"l{i}", width=1, height=1) for i in range(50)))
    path = write_layers(full, tmp_path / "full.ora")
    assert (
        main(["render", str(path), "-o", str(tmp_path / "out.psd"), "--model", str(tmp_path / "no model")])
        == 2
    )
    assert (
        "full.ora: number of layers is 50; allowed: at most 49 beside the picture" in capsys.readouterr().err
    )
    assert not (tmp_path / "out.psd").exists()


def test_a_document_is_turned_into_another_format(tmp_path, capsys):
    path = scene(tmp_path / "scene")
    assert main(["render", str(path), "-o", str(tmp_path / "a.psd"), "--composite-only"]) == 0
    assert main(["render", str(tmp_path / "a.psd"), "-o", str(tmp_path / "b.ora"), "--composite-only"]) == 0
    assert identical(read_layers(tmp_path / "b.ora").document, read_document(path))


def test_what_becomes_of_groups_can_be_chosen_and_is_told(tmp_path, capsys):
    psd = PSDImage.new("RGBA", (9, 9))
    pair = [psd.create_pixel_layer(Image.new("RGBA", (9, 9), "red"), name=name) for name in "ab"]
    psd.create_group(pair, name="group", opacity=128)
    psd.save(tmp_path / "a.psd")
    why = "its opacity acts on its layers together\n"
    for groups, names, told in (
        ("auto", ["group"], f"layered: a.psd: group 'group' is merged into one layer: {why}"),
        ("merged", ["group"], ""),
        ("apart", ["a", "b"], f"group 'group' is taken apart, which changes the picture: {why}"),
    ):
        out = tmp_path / f"{groups}.ora"
        command = ["render", str(tmp_path / "a.psd"), "-o", str(out), "--composite-only", "--groups", groups]
        assert main(command) == 0
        assert capsys.readouterr().err.endswith(told)
        assert [layer.name for layer in read_layers(out).document] == names


def test_every_command_says_which_file_it_wrote(tmp_path, capsys):
    path, quick = str(scene(tmp_path / "scene")), ["--steps", "1", "--device", "cpu"]
    words = tmp_path / "words.json"
    layer = {"name": "a", "prompt": "a red ball", "width": 64, "height": 64}
    words.write_text(json.dumps({"version": 1, "width": 64, "height": 64, "layers": [layer]}))
    out, folder = str(tmp_path / "out"), str(tmp_path / "layers")
    stage = ["stage", str(words), "-o", folder, "--picture", f"{out}.png", *quick]
    for said, files in (
        (["render", path, "-o", f"{out}.png", *quick], [f"{out}.png"]),
        (["render", path, "-o", f"{out}.ora", *quick], [f"{out}.ora"]),
        (["render", path, "-o", f"{out}.psd", "--composite-only"], [f"{out}.psd"]),
        (["generate", "a ball", "-o", f"{out}.png", *quick], [f"{out}.png"]),
        (stage, [f"{folder}/document.json", f"{out}.png"]),
        (["layout", path, "-o", f"{out}.json"], [f"{out}.json"]),
        (["layout", f"{out}.json", "--size", "64x64", "-o", f"{out}.psd"], [f"{out}.psd"]),
    ):
        assert main(said) == 0
        assert capsys.readouterr().out == "".join(f"wrote {file}\n" for file in files)


def test_composite_only_keeps_alpha(tmp_path):
    document = LayerDocument(4, 4, (Layer("a", torch.full((4, 4, 4), 0.2)),))
    path = write_document(document, tmp_path / "scene")
    assert main(["render", str(path), "-o", str(tmp_path / "out.png"), "--composite-only"]) == 0
    torch.testing.assert_close(
        read_picture(tmp_path / "out.png"), composite(read_document(path)), atol=1 / 510, rtol=0
    )


def test_generate_writes_a_picture_of_the_size_asked(tmp_path):
    out = tmp_path / "out.png"
    assert (
        main(
            [
                "generate",
                "a red ball",
                "-o",
                str(out),
                "--steps",
                "1",
                "--width",
                "64",
                "--height",
                "96",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert Image.open(out).size == (64, 96)


def bad(data):
    def make(folder):
        path = folder / "scene.json"
        path.write_text(json.dumps(data))
        return ["render", str(path), "-o", str(folder / "out.png")]

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            bad(
                {
                    "version": 1,
                    "width": 8,
                    "height": 8,
                    "layers": [{"name": "sky", "opacity": 3, "width": 1, "height": 1}],
                }
            ),
            "layer 'sky': opacity is 3",
        ),
        (bad({"version": 1, "width": 0, "height": 8}), "canvas width is 0"),
        (
            bad({"version": 1, "width": 8, "height": 8, "layers": [{"name": "sky", "image": "no.png"}]}),
            "no.png",
        ),
        (lambda f: ["render", str(f / "none.json"), "-o", str(f / "out.png")], "none.json"),
        (lambda f: ["render", str(scene(f / "scene")), "-o", str(f / "out.gif")], "a name that ends in .png"),
        (
            lambda f: ["render", str(scene(f / "scene")), "-o", str(f / "gone" / "out.png")],
            "an existing folder",
        ),
        (
            lambda f: [
                "render",
                str(scene(f / "scene")),
                "-o",
                str(f / "out.png"),
                "--model",
                "no/such-model",
            ],
            "Nothing is downloaded",
        ),
        (
            lambda f: ["render", str(scene(f / "scene")), "-o", str(f / "out.png"), "--device", "warp9"],
            "device 'warp9' cannot be used",
        ),
    ],
)
def test_bad_input_is_one_line_exit_code_two_and_nothing_written(make, says, tmp_path, capsys):
    assert main(make(tmp_path)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    "option", [["--steps", "0"], ["--strength", "nan"], ["--seed", "-1"], ["--guidance", "x"]]
)
def test_options_out_of_range_are_refused(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["render", "x.json", "-o", str(tmp_path / "out.png"), *option])
    assert caught.value.code == 2
    assert "is not a" in capsys.readouterr().err


def test_an_interrupt_exits_with_one_and_writes_nothing(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("layered_diffusers.pipeline.LayeredDiffusionPipeline.render", stop)
    assert (
        main(["render", str(scene(tmp_path / "scene")), "-o", str(tmp_path / "out.png"), "--device", "cpu"])
        == 1
    )
    assert not (tmp_path / "out.png").exists()
