"""Transparent layers from prompts: the pipeline's methods and ``layered generate --transparent``."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from demo.world.places import TRANSPARENT
from layered_cli.command import main
from layered_core.errors import LayeredError
from layered_core.transparency.transparent_decode import decode
from layered_core.transparency.transparent_networks import TransparentDecoder
from layered_diffusers.methods.layer_diffuse import LayerDiffuse
from layered_diffusers.models.loading import STORYBOOK
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import GUIDANCE
from layered_diffusers.transparent import OWN_GUIDANCE

QUICK = ["--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu", sampler="euler_ancestral")


@pytest.fixture(scope="module")
def layers(pipeline):
    return pipeline.generate_transparent(["a red ball", "a glass blue star"], steps=20, augmentations=1)


def test_the_border_is_clear_the_middle_is_not_and_glass_lets_more_through(layers):
    alpha = layers[:, 3]
    assert layers.shape == (2, 4, 128, 128)
    assert float(alpha[:, :6].mean()) < 0.05
    assert float(alpha[0, 58:70, 58:70].mean()) > 0.9
    assert float(alpha[1, 58:70, 58:70].mean()) < 0.8


def test_it_is_what_the_changed_models_latents_decode_to_and_leaves_the_model_alone(pipeline):
    before = {k: v.clone() for k, v in pipeline.model.unet.state_dict().items()}
    layer = pipeline.generate_transparent(["a red ball"], steps=2, seeds=[4], augmentations=2)
    change = LayerDiffuse(pipeline.model, TRANSPARENT / "lora.safetensors")
    how = {"steps": 2, "seeds": [4], "methods": [change], "guidance": OWN_GUIDANCE}
    latents, _, _ = pipeline.sample_latents(["a red ball"], **how)
    decoder = TransparentDecoder.from_weights(load_file(TRANSPARENT / "decoder.safetensors"), "decoder")
    assert torch.equal(layer, decode(decoder, pipeline.decode(latents), latents, augmentations=2))
    assert all(torch.equal(v, before[k]) for k, v in pipeline.model.unet.state_dict().items())


def test_any_size_is_painted_and_weight_0_is_the_base_model(pipeline):
    assert pipeline.generate_transparent(
        ["a red ball"], steps=1, width=100, height=72, augmentations=1
    ).shape == (1, 4, 72, 100)
    base = pipeline.sample_latents(["a red ball"], steps=1)[0]
    decoder = TransparentDecoder.from_weights(load_file(TRANSPARENT / "decoder.safetensors"), "decoder")
    unchanged = pipeline.generate_transparent(["a red ball"], steps=1, weight=0.0, augmentations=1)
    assert torch.equal(unchanged, decode(decoder, pipeline.decode(base), base, augmentations=1))


def test_without_a_guidance_the_storybooks_layers_get_their_own_and_other_files_that_of_pictures(
    pipeline, tmp_path
):
    assert OWN_GUIDANCE != GUIDANCE
    file, decoder = tmp_path / "other.safetensors", tmp_path / "decoder.safetensors"
    shutil.copy(TRANSPARENT / "lora.safetensors", file)
    shutil.copy(TRANSPARENT / "decoder.safetensors", decoder)

    def made(**more):
        return pipeline.generate_transparent(["a red ball"], steps=2, augmentations=1, **more)

    default = made()
    assert torch.equal(default, made(guidance=None))
    assert torch.equal(default, made(guidance=OWN_GUIDANCE))
    assert not torch.equal(default, made(guidance=GUIDANCE))
    others = made(file=file, decoder=decoder)
    assert torch.equal(others, made(file=file, decoder=decoder, guidance=GUIDANCE))
    assert torch.equal(others, made(guidance=GUIDANCE))


def test_pictures_without_a_guidance_get_the_general_one(pipeline):
    made = pipeline.generate(["a red ball"], steps=2)
    assert torch.equal(made, pipeline.generate(["a red ball"], steps=2, guidance=GUIDANCE))


def test_one_layer_is_a_picture_with_alpha(pipeline, layers):
    picture = pipeline.generate_transparent_layer("a red ball", seed=0, steps=20, augmentations=1)
    assert picture.mode == "RGBA"
    assert np.abs(np.asarray(picture)[..., 3] / 255 - layers[0, 3].numpy()).max() < 0.02


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"augmentations": 3}, "augmentations is 3; allowed: 1, 2, 4 or 8"),
        ({"weight": 3.0}, "weight is 3.0"),
        ({"file": "a.safetensors"}, "The file and the decoder belong together"),
        (
            {"file": "layer_xl_transparent_attn.safetensors", "decoder": TRANSPARENT / "decoder.safetensors"},
            "LayerDiffusion/layerdiffusion-v1",
        ),
        (
            {"file": TRANSPARENT / "lora.safetensors", "decoder": TRANSPARENT / "encoder.safetensors"},
            "is not a transparent decoder",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sampled(pipeline, options, says, monkeypatch):
    monkeypatch.setattr(LayeredDiffusionPipeline, "sample_latents", None)
    with pytest.raises(LayeredError, match=says):
        pipeline.generate_transparent(["a red ball"], **options)


def test_the_command_writes_a_png_with_alpha(tmp_path):
    out = tmp_path / "ball.png"
    assert (
        main(
            [
                "generate",
                "a red ball",
                "-o",
                str(out),
                "--transparent",
                "--augmentations",
                "1",
                "--seed",
                "2",
                *QUICK,
            ]
        )
        == 0
    )
    with Image.open(out) as picture:
        assert (picture.mode, picture.size) == ("RGBA", (128, 128))
        assert np.asarray(picture)[..., 3].std() > 5


def test_the_command_takes_other_files(tmp_path):
    weights = {k: v * 0 for k, v in load_file(TRANSPARENT / "lora.safetensors").items()}
    save_file(weights, tmp_path / "nothing.safetensors")
    shutil.copy(TRANSPARENT / "decoder.safetensors", tmp_path / "decoder.safetensors")
    files = [
        "--file",
        str(tmp_path / "nothing.safetensors"),
        "--decoder",
        str(tmp_path / "decoder.safetensors"),
    ]
    shared = [
        "generate",
        "a red ball",
        "--transparent",
        "--augmentations",
        "1",
        "--model",
        str(STORYBOOK),
        *QUICK,
    ]
    assert main([*shared, "-o", str(tmp_path / "a.png")]) == 0
    assert main([*shared, "-o", str(tmp_path / "b.png"), *files]) == 0
    assert not np.array_equal(
        np.asarray(Image.open(tmp_path / "a.png")), np.asarray(Image.open(tmp_path / "b.png"))
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--decoder", "a.safetensors"], "--file and --decoder are used with --transparent or --layers only"),
        (["--layers"], "output file is"),
        (["--transparent", "--file", "a.safetensors"], "The file and the decoder belong together"),
        (
            ["--transparent", "--file", "no.safetensors", "--decoder", "vae_transparent_decoder.safetensors"],
            "208 MB",
        ),
    ],
)
def test_wrong_files_are_one_line_and_nothing_is_written(arguments, says, tmp_path, capsys):
    assert main(["generate", "a red ball", "-o", str(tmp_path / "out.png"), *arguments, *QUICK]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
