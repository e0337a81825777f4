"""Layers made anew among others, pictures taken apart, and ``layered edit``."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from demo.train.sprites import draw_sprite, padded
from demo.train.transparent import Autoencoder
from demo.world.places import TRANSPARENT
from demo.world.vocabulary import Thing
from layered_cli.command import main
from layered_core.canvas.compositing import composite
from layered_core.document import Layer, LayerDocument, identical
from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_core.formats.pictures import to_image
from layered_core.joint.editing import Edit, plan_layers
from layered_core.metrics.picture_metrics import psnr
from layered_core.transparency.transparent_networks import over_mid_grey
from layered_diffusers.editing import encode_frames, read_encoder
from layered_diffusers.pipeline import LayeredDiffusionPipeline

FILES = {x: TRANSPARENT / f"{x}.safetensors" for x in ("encoder", "decoder")} | {
    "file": TRANSPARENT / "joint.safetensors"
}
QUICK = {**FILES, "steps": 2, "augmentations": 1}
WORDS = "a red ball and a blue star by the sea"


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu", sampler="euler_ancestral")


@pytest.fixture(scope="module")
def scene(pipeline):
    """Return a document of one layer, made in earnest."""
    return pipeline.generate_scene(
        "a red ball by the sea", ["a red ball"], background="by the sea", seed=3, steps=12, augmentations=1
    )


@pytest.fixture(scope="module")
def two(scene):
    """Return a document of two layers: that of ``scene`` twice, the second turned upside down."""
    ball = scene.layer("a red ball")
    star = Layer("star", ball.image.flip(0), prompt="a blue star")
    back, _, blend = scene.layers
    return LayerDocument(128, 128, (back, ball, star, replace(blend, prompt=WORDS)), prompt=WORDS)


@pytest.fixture
def no_pass(pipeline, monkeypatch):
    def fail(*arguments, **more):
        raise AssertionError("the model was called")

    monkeypatch.setattr(pipeline.model.unet, "forward", fail)
    monkeypatch.setattr("layered_diffusers.models.vae.posterior", fail)


def test_with_nothing_free_the_document_comes_back_without_a_pass(pipeline, two, no_pass):
    assert pipeline.sample_layers(two, {}) is two
    assert pipeline.sample_layers(two, {"star": 0.0}) is two
    assert identical(pipeline.edit_layers(two, {}), two)


def test_an_edited_layer_is_new_and_all_others_come_back_bit_for_bit(pipeline, two):
    made = pipeline.edit_layers(two, {"star": "a green tree"}, **QUICK)
    assert made.prompt == "a red ball and a green tree by the sea"
    assert [x.name for x in made] == [x.name for x in two]
    for name in ("background", "a red ball"):
        assert identical(replace(made, layers=(made.layer(name),)), replace(made, layers=(two.layer(name),)))
    star, blend = made.layer("star"), made.layer("blend")
    assert star.prompt == "a green tree"
    assert float((star.image - two.layer("star").image).abs().mean()) > 0.02
    assert (blend.visible, blend.prompt) == (False, made.prompt)
    assert float((blend.image - two.layer("blend").image).abs().mean()) > 0.01
    again = pipeline.edit_layers(two, {"star": "a green tree"}, **QUICK)
    assert identical(made, again), "its noise is the seed's"
    other = pipeline.edit_layers(two, {"star": "a green tree"}, seed=1, **QUICK)
    assert not torch.equal(other.layer("star").image, star.image)


def test_what_is_held_is_seen_by_what_is_made(pipeline, two):
    moved = two.with_layer(replace(two.layer("a red ball"), x=-30))
    here, there = (
        pipeline.sample_layers(x, {"star": 1.0}, **QUICK).layer("star").image for x in (two, moved)
    )
    assert float((here - there).abs().mean()) > 1e-3


def test_a_layer_with_no_time_to_change_comes_through_encoder_and_decoder_as_it_was(pipeline, scene):
    """Catches a wrong scale of the latents, and frames in a wrong order."""
    made = pipeline.sample_layers(
        scene, {"a red ball": 0.0005, "background": 0.0005}, steps=30, augmentations=1
    )
    before, after = (x.layer("a red ball").image for x in (scene, made))
    assert not torch.equal(before, after)
    assert psnr(float((before[..., 3] - after[..., 3]).square().mean())) > 25
    inside = before[..., 3] > 0.9
    assert psnr(float((before - after)[inside].square().mean())) > 25
    a, b = (x.layer("background").image for x in (scene, made))
    assert psnr(float((a - b).square().mean())) > 28


@torch.no_grad()
def test_frames_are_encoded_as_in_training(pipeline):
    """The layer on grey with the offset of its alpha; background and blend without one."""
    sprite = draw_sprite(Thing("glass", "red", "ball"), np.random.default_rng(0))
    layer = torch.from_numpy(sprite.copy()).float() / 255
    sea = torch.tensor([0.2, 0.5, 0.8, 1.0]).expand(128, 128, 4)
    plan = plan_layers(
        LayerDocument(128, 128, (Layer("sea", sea, prompt="sea"), Layer("ball", layer, prompt="a ball"))),
        {"ball": 0.5},
    )
    latents = encode_frames(pipeline, plan, *read_encoder(None, None))
    trained = Autoencoder()
    trained.load(TRANSPARENT)
    front = padded(sprite)[None]
    expected = pipeline.model.vae.encoder(over_mid_grey(front) * 2 - 1) + trained.offset(front)
    assert torch.allclose(latents[:1], expected, atol=1e-3)
    assert float(trained.offset(front).abs().mean()) > 0.02
    assert torch.allclose(latents[1:2], pipeline.encode(sea[..., :3].movedim(-1, 0)[None]), atol=1e-4)


def test_an_edit_makes_what_the_words_say_and_a_style_keeps_the_form(pipeline, scene):
    how = {"steps": 12, "augmentations": 1}
    star = pipeline.edit_layers(scene, {"a red ball": "a blue star"}, **how).layer("a red ball").image
    glass = pipeline.edit_layers(
        scene, {"a red ball": Edit("a green ball", amount=0.5)}, **how
    ).layer("a red ball").image  # fmt: skip
    ball = scene.layer("a red ball").image
    red, blue, green = (x[..., :3][x[..., 3] > 0.9].mean(0).tolist() for x in (ball, star, glass))
    assert red[0] > 2 * red[2]
    assert blue[2] > 1.5 * blue[0]
    assert green[0] < red[0]

    def shape(image):
        return image[..., 3] > 0.5

    def iou(a, b):
        return float((a & b).sum() / (a | b).sum())

    assert iou(shape(ball), shape(glass)) > 0.8
    assert iou(shape(ball), shape(star)) < 0.8


def test_outside_its_mask_a_layer_keeps_every_bit(pipeline, two):
    mask = torch.zeros(128, 128)
    mask[:, :64] = 1.0
    made = pipeline.edit_layers(two, {"star": Edit("a green tree", mask=mask)}, **QUICK).layer("star").image
    assert torch.equal(made[:, 64:], two.layer("star").image[:, 64:])
    assert float((made - two.layer("star").image)[:, :64].abs().mean()) > 0.02


def test_a_layer_with_words_and_no_picture_is_added(pipeline, scene):
    document = scene.with_layer(Layer("tree", prompt="a green tree"))
    made = pipeline.edit_layers(document, {}, **QUICK)
    assert made.prompt == "a red ball by the sea, a green tree"
    assert torch.equal(made.layer("a red ball").image, scene.layer("a red ball").image)
    assert made.layer("tree").image.shape == (128, 128, 4)


def test_a_canvas_of_any_size_is_edited(pipeline, two):
    cut = LayerDocument(
        100, 90, tuple(replace(x, y=-20) for x in two), prompt=WORDS, background=two.background
    )
    made = pipeline.edit_layers(cut, {"star": "a green tree", "background": "in a forest"}, **QUICK)
    assert made.layer("star").image.shape == made.layer("background").image.shape == (90, 100, 4)
    assert float(made.layer("background").image[..., 3].min()) == 1
    assert made.layer("a red ball").image is two.layer("a red ball").image


def test_a_picture_is_taken_apart_and_stays_bit_for_bit(pipeline, scene):
    picture = to_image(composite(scene)[..., :3])
    made = pipeline.decompose(
        picture, ["a red ball"], background="by the sea", prompt=scene.prompt, steps=12, augmentations=1
    )
    assert [(x.name, x.prompt, x.visible) for x in made] == [
        ("background", "by the sea", True), ("a red ball", "a red ball", True), ("blend", scene.prompt, False),
    ]  # fmt: skip
    blend = made.layer("blend").image
    assert torch.equal((blend[..., :3] * 255).round(), (composite(scene)[..., :3] * 255).round())
    a, b = (x.layer("a red ball").image[..., 3] > 0.5 for x in (scene, made))
    assert float((a & b).sum() / (a | b).sum()) > 0.7, "the ball is where the picture has it"
    assert psnr(float((composite(made) - blend).square().mean())) > 20


@pytest.mark.parametrize(
    ("layers", "options", "says"),
    [
        ([], {}, "layers is \\[\\]; allowed: words of 1 to 4 layers"),
        (["a ball"] * 5, {}, "layers: number is 5"),
        (["a ball", " "], {}, "layer 2: words is ' '"),
        (["a ball"], {"file": FILES["file"]}, "The file and the encoder belong together"),
        (["a ball"], {**FILES, "encoder": FILES["decoder"]}, "decoder.safetensors"),
        (["a ball"], {**FILES, "file": FILES["decoder"]}, "'trained_layers' is missing"),
        (["a ball"], {"self_mask": 3.0}, "self-mask guidance is 3.0; allowed: a number 0..2"),
        (["a ball"], {"seed": -1}, "seed is -1"),
        (["a ball"], {"augmentations": 3}, "augmentations is 3"),
    ],
)
def test_what_cannot_be_taken_apart_is_said_before_anything_is_sampled(
    pipeline, layers, options, says, monkeypatch
):
    monkeypatch.setattr("layered_diffusers.generator.sample", None)
    with pytest.raises(LayeredError, match=says):
        pipeline.decompose(Image.new("RGB", (128, 128)), layers, **options)


def test_the_command_edits_one_layer_of_a_psd(scene, tmp_path):
    from layered_core.files import write_layers

    before, after, picture = (tmp_path / x for x in ("before.psd", "after.psd", "after.png"))
    write_layers(scene, before, bits=8)
    how = ["--steps", "2", "--augmentations", "1", "--device", "cpu"]
    edit = ["edit", str(before), "--layer", "a red ball", "--prompt", "a blue star"]
    assert main([*edit, "-o", str(after), "--picture", str(picture), "--self-mask", "0.5", *how]) == 0
    a, b = (read_layers(x).document for x in (before, after))
    assert b.prompt == "a blue star by the sea"
    assert b.layer("a red ball").prompt == "a blue star"
    assert torch.equal(a.layer("background").image, b.layer("background").image)
    assert not torch.equal(a.layer("a red ball").image, b.layer("a red ball").image)
    assert Image.open(picture).size == (128, 128)


def test_the_command_keeps_a_layer_outside_a_mask(scene, tmp_path):
    from layered_core.files import write_layers

    before, after, mask = (tmp_path / x for x in ("before.ora", "after.ora", "mask.png"))
    write_layers(scene, before, bits=8)
    Image.new("L", (64, 128), 255).crop((0, 0, 128, 128)).save(mask)
    how = ["--steps", "2", "--augmentations", "1", "--device", "cpu", "--amount", "0.6", "--style", "glass"]
    edit = ["edit", str(before), "--layer", "a red ball", "--mask", str(mask), "-o", str(after), *how]
    assert main(edit) == 0
    a, b = (composite(replace(x, layers=(x.layer("a red ball"),))) for x in (
        read_layers(before).document, read_layers(after).document
    ))  # fmt: skip
    assert torch.equal(a[:, 64:], b[:, 64:])
    assert not torch.equal(a[:, :64], b[:, :64])


def test_the_command_adds_a_layer(scene, tmp_path):
    from layered_core.files import write_layers

    before, after = tmp_path / "before.psd", tmp_path / "after.psd"
    write_layers(scene, before, bits=8)
    files = [x for key, file in FILES.items() for x in (f"--{key}", str(file))]
    how = ["--steps", "1", "--augmentations", "1", "--device", "cpu", *files]
    assert main(["edit", str(before), "--add", "a green tree", "-o", str(after), *how]) == 0
    made = read_layers(after).document
    assert [x.name for x in made] == ["background", "a red ball", "blend", "a green tree"]
    assert made.layer("a green tree").prompt == "a green tree"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--add", "a tree", "--prompt", "a tree"], "used with --layer only"),
        (["--layer", "moon"], "layer name is 'moon'; allowed: 'background', 'a red ball', 'blend'"),
        (["--layer", "blend", "--prompt", "a tree"], "layer 'blend': visible is False"),
        (["--layer", "a red ball", "--file", "a.safetensors"], "The file and the encoder belong together"),
    ],
)
def test_the_command_refuses_in_one_line(scene, tmp_path, options, says, capsys, monkeypatch):
    from layered_core.files import write_layers

    monkeypatch.setattr("layered_diffusers.generator.sample", None)
    write_layers(scene, tmp_path / "before.psd", bits=8)
    arguments = ["edit", str(tmp_path / "before.psd"), "-o", str(tmp_path / "after.psd"), "--device", "cpu"]
    assert main([*arguments, *options]) == 2
    found = capsys.readouterr().err
    assert says in found
    assert found.count("\n") == 1 or "Warning" in found
    assert not (tmp_path / "after.psd").exists()
