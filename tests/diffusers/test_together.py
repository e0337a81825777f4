"""Scenes made at once: ``generate_scenes``, ``generate_scene`` and ``layered generate --layers``."""

import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.world.places import TRANSPARENT
from layered_cli.command import main
from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_core.joint.enhancer import PromptEnhancer
from layered_core.joint.joint_files import read_joint
from layered_core.joint.network import JointNetwork
from layered_core.transparency.transparent_decode import decode
from layered_core.transparency.transparent_networks import TransparentDecoder
from layered_diffusers.methods.layer_diffuse import LayerDiffuse
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import GUIDANCE, Method
from layered_diffusers.together import SceneWords
from layered_diffusers.transparent import OWN_GUIDANCE

ONE = SceneWords("a red ball by the sea")
TWO = SceneWords("a red ball and a blue star by the sea", ("a red ball", "a blue star"), "by the sea")
QUICK = {"steps": 2, "augmentations": 1}
DECODER = TRANSPARENT / "decoder.safetensors"


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu", sampler="euler_ancestral")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Return the file of the joint generator of one layer in the format for several, with an enhancer that acts."""
    torch.manual_seed(0)
    one = read_joint(load_file(TRANSPARENT / "joint.safetensors"), "joint")
    enhancer = PromptEnhancer(64)
    torch.nn.init.normal_(enhancer.o.weight, std=0.2)
    network = JointNetwork(one.units, enhancer, trained_layers=2).half()
    file = tmp_path_factory.mktemp("joint") / "several.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, file)
    return {"file": file, "decoder": DECODER, "guidance": OWN_GUIDANCE}


def test_one_layer_is_what_layer_diffuse_makes_of_the_same_file_bit_for_bit(pipeline):
    made = pipeline.generate_scenes([ONE], seeds=[5], **QUICK)
    change = LayerDiffuse(
        pipeline.model, TRANSPARENT / "joint.safetensors", "foreground, background and blend"
    )
    seeds = [5 + frame * 2**30 for frame in range(3)]
    latents, _, _ = pipeline.sample_latents(
        [ONE.prompt] * 3, steps=2, seeds=seeds, guidance=OWN_GUIDANCE, methods=[change]
    )
    decoder = TransparentDecoder.from_weights(load_file(DECODER), "decoder")
    front = decode(decoder, pipeline.decode(latents[:1]), latents[:1], augmentations=1)
    assert torch.equal(made.layers[0], front)
    assert torch.equal(made.background, pipeline.decode(latents[1:2]))
    assert torch.equal(made.blend, pipeline.decode(latents[2:]))


def test_a_file_of_one_layer_in_the_format_for_several_is_the_same_bit_for_bit(pipeline, untrained):
    old = pipeline.generate_scenes([ONE], **QUICK)
    new = pipeline.generate_scenes([ONE], **untrained, enhance=0.0, **QUICK)
    assert all(
        torch.equal(a, b) for a, b in zip((old.layers[0], *old[1:]), (new.layers[0], *new[1:]), strict=True)
    )


def test_scenes_of_any_number_of_layers_are_made_at_once_whatever_the_batch(pipeline, untrained):
    three = SceneWords(
        "a red ball, a blue star and a green tree", ("a red ball", "a blue star", "a green tree")
    )
    made = pipeline.generate_scenes([ONE, three, TWO], seeds=[5, 6, 7], **untrained, **QUICK)
    assert [len(x) for x in made.layers] == [1, 3, 2]
    assert tuple(made.background.shape) == tuple(made.blend.shape) == (3, 3, 128, 128)
    for place, scene in ((0, ONE), (2, TWO)):
        alone = pipeline.generate_scenes([scene], seeds=[5 + place], **untrained, **QUICK)
        for a, b in ((made.layers[place], alone.layers[0]), *((made[i][place], alone[i][0]) for i in (1, 2))):
            assert torch.allclose(a, b, atol=1e-3)
    assert not torch.allclose(made.background, made.blend, atol=0.05)


def test_every_picture_of_every_scene_begins_from_noise_of_its_own(pipeline, untrained):
    class Look(Method):
        def start(self, run, stack):
            seen.append(run.noise)

    seen = []
    look = {"steps": 1, "methods": [Look()]}
    pipeline.generate_scenes([TWO, TWO], seeds=[5, 6], augmentations=1, **untrained, **look)
    pipeline.generate_scenes([ONE], seeds=[5], augmentations=1, **look)
    pipeline.generate(["a red ball", "a blue star"], seeds=[5, 6], **look)
    two, one, alone = seen
    alike = torch.corrcoef(two.flatten(1)) - torch.eye(8)
    assert float(alike.abs().max()) < 0.15
    assert torch.equal(two[::4], alone), "the first layer has that of the scene's seed"
    assert torch.equal(two[[0, 2, 3]], one), "the number of layers changes nobody's noise"


def test_words_of_one_picture_are_seen_by_the_others_of_its_scene(pipeline, untrained):
    plain = pipeline.generate_scenes([TWO], **untrained, **QUICK)
    other = SceneWords(TWO.prompt, ("a red ball", "a green tree"), TWO.background)
    changed = pipeline.generate_scenes([other], **untrained, **QUICK)
    for a, b in ((plain.layers[0][:1], changed.layers[0][:1]), *zip(plain[1:], changed[1:], strict=True)):
        assert float((a - b).abs().mean()) > 1e-4


def test_the_enhancer_lets_the_scenes_words_reach_a_layers(pipeline, untrained):
    first, second = (SceneWords(f"a {c} ball", ("a ball",)) for c in ("red", "blue"))

    def layer(scene, enhance):
        class Look(Method):
            def model_inputs(self, run, model_input, index):
                return {}

        return pipeline.generate_scenes(
            [scene], **untrained, enhance=enhance, steps=1, augmentations=1, methods=[Look()]
        ).layers[0]

    assert not torch.equal(layer(first, 1.0), layer(first, 0.0))
    assert float((layer(first, 1.0) - layer(second, 1.0)).abs().mean()) > 1e-4


def test_weight_0_is_the_base_model(pipeline):
    unchanged = pipeline.generate_scenes([ONE], weight=0.0, **QUICK)
    base = pipeline.generate([ONE.prompt] * 3, steps=2, seeds=[2**30 * frame for frame in range(3)])
    assert torch.allclose(torch.cat([unchanged.background, unchanged.blend]), base[1:], atol=1e-4)


def test_the_model_is_as_it_was_afterwards_and_after_an_error(pipeline):
    class Stop(Method):
        def after_step(self, run, index):
            raise RuntimeError("stopped")

    before = dict(pipeline.model.unet.attn_processors)
    pipeline.generate_scenes([ONE], **QUICK)
    assert pipeline.model.unet.attn_processors == before
    with pytest.raises(RuntimeError, match="stopped"):
        pipeline.generate_scenes([ONE], methods=[Stop()], **QUICK)
    assert pipeline.model.unet.attn_processors == before


def test_without_a_guidance_the_storybooks_scenes_get_their_own_and_other_files_that_of_pictures(
    pipeline, tmp_path
):
    shutil.copy(TRANSPARENT / "joint.safetensors", tmp_path / "other.safetensors")

    def made(**more):
        return pipeline.generate_scenes([ONE], **QUICK, **more).background

    assert torch.equal(made(), made(guidance=OWN_GUIDANCE))
    assert not torch.equal(made(), made(guidance=GUIDANCE))
    others = made(file=tmp_path / "other.safetensors", decoder=DECODER)
    assert torch.equal(others, made(guidance=GUIDANCE))


def test_more_layers_than_a_file_was_trained_for_are_made_and_told(pipeline, caplog):
    old = {"file": TRANSPARENT / "joint.safetensors", "decoder": DECODER}
    with caplog.at_level(logging.WARNING):
        pipeline.generate_scenes([ONE], **old, **QUICK)
        assert not caplog.records
        made = pipeline.generate_scenes([TWO], **old, **QUICK)
    assert [r.message for r in caplog.records] == [
        "file 'joint.safetensors' was trained to make 1 layer at once, and 2 are asked for. It is run without "
        "training for them: expect layers in the same place"
    ]
    assert tuple(made.layers[0].shape) == (2, 4, 128, 128)


def test_a_scene_is_a_document_that_goes_into_a_psd(pipeline, tmp_path):
    scene = pipeline.generate_scene("a red ball by the sea", background="by the sea", seed=3, steps=20)
    assert [(x.name, x.prompt, x.visible) for x in scene] == [
        ("background", "by the sea", True), ("foreground", "a red ball by the sea", True),
        ("blend", "a red ball by the sea", False),
    ]  # fmt: skip
    alpha = scene.layer("foreground").image[..., 3]
    assert float(alpha[:6].mean()) < 0.1 < float(alpha[50:78, 50:78].mean())
    out = tmp_path / "scene.psd"
    options = ["--layers", "--augmentations", "1", "--steps", "2", "--device", "cpu"]
    assert main(["generate", "a red ball by the sea", "-o", str(out), *options]) == 0
    assert [x.name for x in read_layers(out).document] == ["background", "foreground", "blend"]


def test_the_command_makes_layers_of_their_words(tmp_path, untrained):
    out, options = tmp_path / "scene.psd", ["--augmentations", "1", "--steps", "1", "--device", "cpu"]
    words = ["--layers", "--layer", "a red ball", "--layer", "a blue star", "--background", "by the sea"]
    files = ["--file", str(untrained["file"]), "--decoder", str(DECODER)]
    assert main(["generate", TWO.prompt, "-o", str(out), *words, *files, *options]) == 0
    made = read_layers(out).document
    assert [(x.name, x.prompt) for x in made] == [
        ("background", "by the sea"), ("a red ball", "a red ball"), ("a blue star", "a blue star"),
        ("blend", TWO.prompt),
    ]  # fmt: skip


def test_words_of_layers_without_layers_are_refused(tmp_path, capsys):
    assert main(["generate", "a red ball", "-o", str(tmp_path / "a.png"), "--layer", "a ball"]) == 2
    assert "--layer and --background are used with --layers only" in capsys.readouterr().err


def test_layers_with_words_are_named_by_them_back_to_front(pipeline, untrained):
    how = {**untrained, **QUICK}
    scene = pipeline.generate_scene(TWO.prompt, ["a red ball", "a red ball"], background="by the sea", **how)
    assert [(x.name, x.prompt, x.visible) for x in scene] == [
        ("background", "by the sea", True), ("a red ball", "a red ball", True),
        ("a red ball 2", "a red ball", True), ("blend", TWO.prompt, False),
    ]  # fmt: skip
    assert all(x.image.shape == (128, 128, 4) for x in scene)


@pytest.mark.parametrize(
    ("scene", "options", "says"),
    [
        (ONE, {"seeds": [1, 2]}, "one for each prompt, that is 1"),
        (ONE, {"seeds": [-1]}, "seed is -1"),
        (ONE, {"enhance": 2}, "enhance is 2"),
        (ONE, {"weight": 3.0}, "weight is 3.0"),
        (ONE, {"augmentations": 3}, "augmentations is 3"),
        (ONE, {"file": "a.safetensors"}, "The file and the decoder belong together"),
        (ONE, {"file": TRANSPARENT / "lora.safetensors", "decoder": DECODER}, "'trained_layers' is missing"),
        (SceneWords("all", ("a ball",) * 5), {}, "layers: number is 5; allowed: a whole number 1..4"),
        (SceneWords("all", ("a ball", " ")), {}, "layer 2: words is ' '"),
    ],
)
def test_what_cannot_be_made_together_is_said_before_anything_is_sampled(
    pipeline, scene, options, says, monkeypatch
):
    monkeypatch.setattr("layered_diffusers.generator.sample", None)
    with pytest.raises(LayeredError, match=says):
        pipeline.generate_scenes([scene], **options)
