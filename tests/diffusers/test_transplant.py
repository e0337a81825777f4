"""Layers made by themselves and held in the picture of all: ``transplant_scenes`` and ``layered generate``."""

import logging

import pytest
import torch

from demo.world.places import TRANSPARENT
from layered_cli.command import main
from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_diffusers.methods.transplant import KeepLatents, Transplant
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Method
from layered_diffusers.together import SceneWords
from layered_diffusers.transparent import OWN_GUIDANCE

ONE = SceneWords("a red ball by the sea", background="by the sea")
TWO = SceneWords("a red ball and a blue star by the sea", ("a red ball", "a blue star"), "by the sea")
DRAFTS = {"alpha": "difference", "steps": 2, "guidance": 2.0}
QUICK = {"alpha": "transparent", "augmentations": 1, "steps": 2, "guidance": 2.0}
PROMPTS = ["a red ball by the sea", "a blue star in a meadow"]


@pytest.fixture(scope="module")
def unet():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu", sampler="euler_ancestral")


@pytest.fixture(scope="module")
def transformer():
    return LayeredDiffusionPipeline.from_pretrained("demo-transformer", device="cpu")


@pytest.fixture(params=["unet", "transformer"])
def pipeline(request):
    return request.getfixturevalue(request.param)


class Seen(Method):
    """Keep what the model gets at every step, after all other methods have acted."""

    on_transformers = True

    def __init__(self):
        self.latents = []

    def before_step(self, run, index):
        self.latents.append(run.latents.clone())


def donor_of(pipeline, **options):
    kept = KeepLatents()
    pipeline.sample_latents(PROMPTS, seeds=[5, 6], steps=4, methods=[kept], **options)
    return kept.latents


def test_without_cells_or_steps_a_run_is_the_plain_one_bit_for_bit(pipeline):
    donor, none = donor_of(pipeline), torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    plain, _, _ = pipeline.sample_latents(PROMPTS, seeds=[1, 2], steps=4)
    for cells, until in ((none, 1.0), (~none, 0.0)):
        method = Transplant(donor, cells, until)
        found, _, _ = pipeline.sample_latents(PROMPTS, seeds=[1, 2], steps=4, methods=[method])
        assert torch.equal(found, plain)


def test_inside_the_cells_the_latents_are_the_donors_up_to_the_step_and_the_runs_own_after_it(pipeline):
    donor, cells = donor_of(pipeline), torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    cells[0, :, 4:9, 2:7] = cells[1, :, :, 10:] = True
    seen = Seen()
    made, _, _ = pipeline.sample_latents(
        PROMPTS, seeds=[1, 2], steps=4, methods=[Transplant(donor, cells, 0.5), seen]
    )
    inside = cells.expand_as(made)
    for step, latents in enumerate(seen.latents):
        assert torch.equal(latents[inside], donor[step][inside]) == (step <= 2)
        assert not torch.equal(latents[~inside], donor[step][~inside])
    assert not torch.equal(made[inside], donor[4][inside])


def test_until_the_end_the_cells_come_out_as_the_donors(pipeline):
    donor, cells = donor_of(pipeline), torch.ones(2, 1, 16, 16, dtype=torch.bool)
    made, _, _ = pipeline.sample_latents(
        PROMPTS, seeds=[1, 2], steps=4, methods=[Transplant(donor, cells, 1.0)]
    )
    assert torch.equal(made, donor[4])


def test_a_donor_of_a_run_with_other_steps_is_refused(pipeline):
    method = Transplant(donor_of(pipeline), torch.ones(2, 1, 16, 16, dtype=torch.bool), 0.5)
    with pytest.raises(LayeredError, match="steps of the donor's run is 4; allowed: the run's own, 5"):
        pipeline.sample_latents(PROMPTS, steps=5, methods=[method])


def test_layers_are_those_made_alone_and_the_blend_without_holding_is_the_plain_picture(unet):
    made = unet.transplant_scenes([TWO], seeds=[5], until=0.0, apart=False, **QUICK)
    how = {"steps": 2, "guidance": 2.0}
    alone = unet.generate_transparent(TWO.layers, seeds=[5, 5 + 3 * 2**30], augmentations=1, **how)
    assert torch.equal(made.layers[0], alone)
    assert torch.equal(made.blend, unet.generate([TWO.prompt], seeds=[5 + 2 * 2**30], **how))
    assert torch.equal(made.background, unet.generate([TWO.background], seeds=[5 + 2**30], **how))


def test_drafts_hold_the_background_and_the_layers_before_them(pipeline):
    made = pipeline.transplant_scenes([TWO], seeds=[5], until=0.75, **{**DRAFTS, "steps": 6})
    plain = pipeline.generate([TWO.background], seeds=[5 + 2**30], steps=6, guidance=2.0)
    assert torch.equal(made.background, plain)
    first, second = made.layers[0][:, 3]
    assert first.max() == second.max() == 1
    assert float(torch.minimum(first, second).sum() / second.sum()) < 0.25
    held = made.blend[0][:, first >= 0.9] - made.layers[0][0, :3][:, first >= 0.9]
    free = pipeline.transplant_scenes([TWO], seeds=[5], **{**DRAFTS, "steps": 6, "until": 0.0})
    assert torch.equal(free.layers[0], made.layers[0])
    loose = free.blend[0][:, first >= 0.9] - made.layers[0][0, :3][:, first >= 0.9]
    assert held.abs().mean() < loose.abs().mean() / 2


@pytest.mark.parametrize("how", [QUICK, DRAFTS], ids=["transparent", "drafts"])
def test_scenes_of_any_number_of_layers_are_made_whatever_the_batch(unet, how):
    three = SceneWords("a ball, a star, a tree", ("a red ball", "a blue star", "a green tree"))
    made = unet.transplant_scenes([ONE, three, TWO], seeds=[5, 6, 7], **how)
    assert [len(x) for x in made.layers] == [1, 3, 2]
    single = unet.transplant_scenes([TWO], seeds=[7], **how)
    for a, b in zip(single, (made.layers[2][None], *(x[2:] for x in made[1:])), strict=True):
        torch.testing.assert_close(a[0], b[0], atol=2e-3, rtol=0)


def test_any_size_is_made(pipeline):
    made = pipeline.transplant_scenes([TWO], **DRAFTS, width=136, height=100)
    assert made.layers[0].shape == (2, 4, 100, 136)
    assert made.background.shape == made.blend.shape == (1, 3, 100, 136)


def test_transparent_layers_of_any_size_stay_on_the_canvas(unet):
    made = unet.transplant_scenes([TWO], **QUICK, width=136, height=100)
    still = unet.transplant_scenes([TWO], **QUICK, width=136, height=100, apart=False)
    assert made.layers[0].shape == (2, 4, 100, 136)
    for placed, own in zip(made.layers[0][:, 3], still.layers[0][:, 3], strict=True):
        assert (placed > 0.5).sum() == (own > 0.5).sum()


def test_the_words_of_a_layer_act_in_its_place(unet):
    held = unet.transplant_scenes([TWO], **QUICK, places=False)
    placed = unet.transplant_scenes([TWO], **QUICK)
    assert torch.equal(held.layers[0], placed.layers[0])
    assert not torch.equal(held.blend, placed.blend)


def test_without_a_guidance_the_storybooks_layers_get_their_own(unet):
    how = {"alpha": "transparent", "augmentations": 1, "steps": 2, "apart": False}
    made = unet.transplant_scenes([ONE], seeds=[5], **how)
    alone = unet.generate_transparent(
        [ONE.prompt], seeds=[5], steps=2, augmentations=1, guidance=OWN_GUIDANCE
    )
    assert torch.equal(made.layers[0], alone)


def test_a_layer_that_is_nowhere_seen_is_told(unet, caplog, monkeypatch):
    monkeypatch.setattr(
        "layered_diffusers.transplant.read_transparency", lambda *given: torch.zeros(1, 4, 128, 128)
    )
    with caplog.at_level(logging.WARNING):
        unet.transplant_scenes([ONE], **{**QUICK, "steps": 1})
    assert "layer 'a red ball by the sea': it is too small or hidden by others" in caplog.text


@pytest.mark.parametrize("how", [QUICK, DRAFTS], ids=["transparent", "drafts"])
def test_progress_counts_all_runs_together_and_can_stop_them(unet, how):
    told = []
    unet.transplant_scenes([TWO], progress=lambda done, total: told.append((done, total)), **how)
    total = 3 * 2 if how is QUICK else 4 * 2
    assert told == [(i + 1, total) for i in range(total)]

    def stop(done, total):
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        unet.transplant_scenes([TWO], progress=stop, **how)


@pytest.mark.parametrize(
    ("scene", "options", "says"),
    [
        (TWO, {"until": 1.5}, "until is 1.5; allowed: a number 0..1"),
        (TWO, {"alpha": "mask"}, "alpha is 'mask'; allowed: transparent, difference"),
        (TWO, {"alpha": "difference", "decoder": "a.safetensors"}, "alpha 'transparent' only"),
        (TWO, {"file": "a.safetensors"}, "The file and the decoder belong together"),
        (TWO, {"augmentations": 3}, "augmentations is 3"),
        (TWO, {"seeds": [1, 2]}, "one for each prompt, that is 1"),
        (TWO, {"steps": 0}, "steps is 0"),
        (SceneWords("all", ("a ball",) * 5), {}, "layers: number is 5; allowed: a whole number 1..4"),
        (SceneWords("all", ("a ball", " ")), {}, "layer 2: words is ' '"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is_sampled(unet, scene, options, says, monkeypatch):
    monkeypatch.setattr("layered_diffusers.generator.sample", None)
    with pytest.raises(LayeredError, match=says):
        unet.transplant_scenes([scene], **options)


def test_a_transformer_has_drafts_and_refuses_transparent_layers(transformer):
    with pytest.raises(LayeredError, match="LayerDiffuse"):
        transformer.transplant_scenes([TWO], alpha="transparent")
    scene = transformer.transplant_scene(TWO.prompt, TWO.layers, steps=2)
    assert [x.name for x in scene] == ["background", "a red ball", "a blue star", "blend"]


@pytest.mark.parametrize("model", [[], ["--model", "demo-transformer"]], ids=["unet", "transformer"])
def test_the_command_writes_layers_that_were_transplanted(tmp_path, model):
    out = tmp_path / "scene.psd"
    words = ["--layers", "--layer", "a red ball", "--layer", "a blue star", "--background", "by the sea"]
    how = ["--way", "transplant", "--until", "0.5", "--steps", "2", "--augmentations", "1"]
    assert main(["generate", TWO.prompt, "-o", str(out), *words, *how, *model, "--device", "cpu"]) == 0
    made = read_layers(out).document
    assert [x.name for x in made] == ["background", "a red ball", "a blue star", "blend"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--layers", "--until", "0.5"], "--until and --alpha are used with --layers --way transplant only"),
        (["--layers", "--way", "transplant", "--enhance", "0.5"], "used with --way together only"),
    ],
)
def test_options_of_the_other_way_are_refused(tmp_path, capsys, given, says):
    assert main(["generate", "a red ball", "-o", str(tmp_path / "a.psd"), *given]) == 2
    assert says in capsys.readouterr().err


def test_layer_diffuses_files_can_be_given(unet):
    files = {"file": TRANSPARENT / "lora.safetensors", "decoder": TRANSPARENT / "decoder.safetensors"}
    own, given = (unet.transplant_scenes([ONE], **QUICK, **x) for x in ({}, files))
    assert torch.equal(own.layers[0], given.layers[0])
    assert torch.equal(own.blend, given.blend)
