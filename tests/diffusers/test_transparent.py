"""Transparent layers from prompts: the pipeline's methods, ``layered generate --transparent`` and
``--layers``."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from demo.world.places import TRANSPARENT
from layered_cli.command import main
from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_core.transparency.transparent_decode import decode
from layered_core.transparency.transparent_networks import TransparentDecoder
from layered_diffusers.methods.layer_diffuse import LayerDiffuse
from layered_diffusers.models.loading import STORYBOOK
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import GUIDANCE, Method
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


@pytest.mark.parametrize("kind", ["alone", "together"])
def test_without_a_guidance_the_storybooks_layers_get_their_own_and_other_files_that_of_pictures(
    pipeline, kind, tmp_path
):
    assert OWN_GUIDANCE != GUIDANCE
    own = TRANSPARENT / {"alone": "lora.safetensors", "together": "joint.safetensors"}[kind]
    file, decoder = (tmp_path / "other.safetensors", tmp_path / "decoder.safetensors")
    shutil.copy(own, file)
    shutil.copy(TRANSPARENT / "decoder.safetensors", decoder)

    def made(**more):
        how = {"steps": 2, "augmentations": 1, **more}
        if kind == "alone":
            return pipeline.generate_transparent(["a red ball"], **how)
        return pipeline.generate_together(["a red ball by the sea"], **how).foreground

    default = made()
    assert torch.equal(default, made(guidance=None))
    assert torch.equal(default, made(guidance=OWN_GUIDANCE))
    assert not torch.equal(default, made(guidance=GUIDANCE))
    others = made(file=file, decoder=decoder)
    assert torch.equal(others, made(guidance=GUIDANCE))


def test_pictures_without_a_guidance_get_the_general_one(pipeline):
    made = pipeline.generate(["a red ball"], steps=2)
    assert torch.equal(made, pipeline.generate(["a red ball"], steps=2, guidance=GUIDANCE))


def test_one_layer_is_a_picture_with_alpha(pipeline, layers):
    picture = pipeline.generate_transparent_layer("a red ball", seed=0, steps=20, augmentations=1)
    assert picture.mode == "RGBA"
    assert np.abs(np.asarray(picture)[..., 3] / 255 - layers[0, 3].numpy()).max() < 0.02


def test_foreground_background_and_blend_of_a_scene_are_made_at_once_whatever_the_batch(pipeline):
    made = pipeline.generate_together(["a red ball", "a blue star"], steps=2, seeds=[5, 6], augmentations=1)
    assert [tuple(x.shape) for x in made] == [(2, 4, 128, 128), (2, 3, 128, 128), (2, 3, 128, 128)]
    alone = pipeline.generate_together(["a blue star"], steps=2, seeds=[6], augmentations=1)
    assert all(torch.allclose(a[1], b[0], atol=1e-3) for a, b in zip(made, alone, strict=True))
    assert not torch.allclose(made.background, made.blend, atol=0.05)


def test_every_picture_of_every_scene_begins_from_noise_of_its_own(pipeline):
    class Look(Method):
        def start(self, run, stack):
            seen.append(run.noise)

    seen = []
    look = {"steps": 1, "methods": [Look()]}
    pipeline.generate_together(["a red ball", "a blue star"], seeds=[5, 6], augmentations=1, **look)
    pipeline.generate(["a red ball", "a blue star"], seeds=[5, 6], **look)
    scenes, alone = seen
    alike = torch.corrcoef(scenes.flatten(1)) - torch.eye(6)
    assert float(alike.abs().max()) < 0.15
    assert torch.equal(scenes[::3], alone), "the first has that of the scene's seed"


def test_words_of_one_picture_are_seen_by_the_others_of_its_scene(pipeline):
    plain = pipeline.generate_together(["a red ball"], steps=2, augmentations=1)
    other = pipeline.generate_together(
        ["a red ball"], words={"background": "at night"}, steps=2, augmentations=1
    )
    assert all(float((a - b).abs().mean()) > 1e-3 for a, b in zip(plain, other, strict=True))
    unchanged = pipeline.generate_together(["a red ball"], weight=0.0, steps=2, augmentations=1)
    seeds = [2**30 * frame for frame in range(3)]
    base = pipeline.generate(["a red ball"] * 3, steps=2, seeds=seeds)
    assert torch.allclose(torch.cat([unchanged.background, unchanged.blend]), base[1:], atol=1e-4)


def test_a_scene_is_a_document_that_goes_into_a_psd(pipeline, tmp_path):
    scene = pipeline.generate_scene("a red ball by the sea", background="by the sea", seed=3, steps=20)
    assert [(x.name, x.prompt, x.visible) for x in scene] == [
        ("background", "by the sea", True), ("foreground", "a red ball by the sea", True),
        ("blend", "a red ball by the sea", False),
    ]  # fmt: skip
    alpha = scene.layer("foreground").image[..., 3]
    assert float(alpha[:6].mean()) < 0.1 < float(alpha[50:78, 50:78].mean())
    out = tmp_path / "scene.psd"
    assert (
        main(
            ["generate", "a red ball by the sea", "-o", str(out), "--layers", "--augmentations", "1", *QUICK]
        )
        == 0
    )
    assert [x.name for x in read_layers(out).document] == ["background", "foreground", "blend"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"words": {"middle": "a ball"}}, "foreground, background, blend"),
        ({"seeds": [1, 2]}, "one for each prompt, that is 1"),
        ({"seeds": [-1]}, "seed is -1"),
        (
            {"file": TRANSPARENT / "lora.safetensors", "decoder": TRANSPARENT / "decoder.safetensors"},
            "3 in the mode",
        ),
    ],
)
def test_what_cannot_be_made_together_is_said_before_anything_is_sampled(
    pipeline, options, says, monkeypatch
):
    monkeypatch.setattr("layered_diffusers.generator.sample", None)
    with pytest.raises(LayeredError, match=says):
        pipeline.generate_together(["a red ball"], **options)


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
