"""The storybook transformer without ComfyUI: how it is put together, asked for and measured. Its weights are
random here."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.bench import command, records
from benchmarks.bench.methods import METHODS
from benchmarks.bench.scenes import layout_cases
from benchmarks.bench.suite import Settings, read_suite
from demo.train.transformer import SHIFT, new_transformer
from demo.world.places import MODEL
from demo.world.scenes import random_scene
from layered_cli.command import main
from layered_core.attention.regional_plan import Settings as Places
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.formats.document_json import write_document
from layered_core.formats.pictures import read_picture
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers import pipeline as pipelines
from layered_diffusers.models import loading
from layered_diffusers.pipeline import LayeredDiffusionPipeline, TransformerPipeline
from layered_diffusers.transformer.text import encode, tokenise


@pytest.fixture
def random_weights(tmp_path, monkeypatch):
    """Let the model's place be a folder of random weights."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    transformer = new_transformer()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    transformer.save_pretrained(tmp_path / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(tmp_path / "schedule")
    for module in (loading, pipelines, records):
        monkeypatch.setattr(module, "TRANSFORMER", tmp_path / "transformer")
    monkeypatch.setattr(loading, "TRANSFORMER_SCHEDULER", tmp_path / "schedule")
    return tmp_path / "transformer"


@pytest.fixture
def pipeline(random_weights):
    return LayeredDiffusionPipeline.from_pretrained("demo-transformer", device="cpu")


def test_it_is_asked_for_by_name_and_makes_pictures_of_the_storybooks_size(pipeline):
    assert isinstance(pipeline, TransformerPipeline)
    assert pipeline.model.transformer.dtype == torch.float32
    out = pipeline.generate(["a red ball in a meadow"], steps=1)
    assert tuple(out.shape) == (1, 3, 128, 128)
    assert pipeline.model.scheduler.config.shift == SHIFT


def test_it_reads_the_hidden_states_of_clip(pipeline):
    text = encode(pipeline.model, "a red ball")
    ids = torch.tensor([[49406, 320, 736, 1069, *[49407] * 73]])
    out = pipeline.model.text_encoder(ids)
    assert torch.equal(text.states, out.last_hidden_state[0])
    assert torch.equal(text.pooled, out.pooler_output[0])
    assert torch.equal(text.own, text.states[:5])  # start, three words, end
    assert [t.index for t in tokenise(pipeline.model, "a red ball")] == [1, 2, 3]


def test_prompts_of_different_length_in_one_batch_are_as_each_alone(pipeline):
    """One prompt has two chunks of 77 tokens; the other's missing chunk is read by nobody."""
    prompts = ["a red ball " * 30, "a blue star"]
    how = {"steps": 2, "negative": "at night", "guidance": 3.0}
    both = pipeline.sample_latents(prompts, seeds=[1, 2], **how)[0]
    for i in range(2):
        alone = pipeline.sample_latents([prompts[i]], seeds=[1 + i], **how)[0]
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-4, rtol=1e-4)


def test_layers_with_texts_of_different_length_are_rendered_and_regions_follow(pipeline):
    """One layer's text has two chunks of 77 tokens, and so has one of the prompts."""
    ball = Layer("ball", width=64, height=128, prompt="a red ball " * 30)
    star = Layer("star", x=64, width=64, height=64, prompt="a blue star")
    prompts = ["a red ball and a blue star " * 15, "a blue star in a meadow"]
    documents = [LayerDocument(128, 128, (ball, star)), LayerDocument(128, 128, (star,))]
    how = {"steps": 3, "negative": "at night", "guidance": 3.0}

    def led(chosen, words, follows=True):
        regions = pipeline.regional_prompts(chosen, Places(guidance=2.0), prompts=words, negative="at night")
        return pipeline.layered_rendering(
            chosen, Rendering(), prompts=words, negative="at night", then=regions if follows else None
        )

    both = pipeline.sample_latents(prompts, seeds=[1, 2], methods=[led(documents, prompts)], **how)[0]
    for i in range(2):
        one = documents[i : i + 1], prompts[i : i + 1]
        alone = pipeline.sample_latents(one[1], seeds=[1 + i], methods=[led(*one)], **how)[0]
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-4, rtol=1e-4)
        without = pipeline.sample_latents(one[1], seeds=[1 + i], methods=[led(*one, follows=False)], **how)[0]
        plain = pipeline.sample_latents(one[1], seeds=[1 + i], **how)[0]
        assert float((alone - without).abs().max()) > 1e-3
        assert float((without - plain).abs().max()) > 1e-3


def test_a_missing_or_broken_file_is_named(random_weights):
    file = random_weights / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(LayeredError, match="diffusion_pytorch_model.safetensors' is broken"):
        LayeredDiffusionPipeline.from_pretrained("demo-transformer", device="cpu")
    file.unlink()
    with pytest.raises(LayeredError, match="is missing. Restore it with 'git checkout"):
        LayeredDiffusionPipeline.from_pretrained("demo-transformer", device="cpu")


def test_the_command_line_takes_it(random_weights, tmp_path):
    document, out = (
        write_document(random_scene(4, count=2).document(), tmp_path / "scene"),
        tmp_path / "out.png",
    )
    options = ["--model", "demo-transformer", "--steps", "2", "--device", "cpu"]
    assert main(["render", str(document), "-o", str(out), "--strength", "0.5", *options]) == 0
    assert tuple(read_picture(out).shape) == (128, 128, 4)
    plain = out.read_bytes()
    assert main(["render", str(document), "-o", str(out), "--per-layer", *options]) == 0
    led = ["--render-share", "0.5", "--render-preset", "fast", "--vision-colour", "#FF8000"]
    assert main(["render", str(document), "-o", str(out), "--strength", "0.5", *led, *options]) == 0
    assert out.read_bytes() != plain


def test_the_command_line_refuses_a_controlnet_on_it(random_weights, tmp_path, capsys):
    document = write_document(random_scene(4, count=2).document(), tmp_path / "scene")
    command_line = ["render", str(document), "-o", str(tmp_path / "out.png"), "--control", "--steps", "1"]
    assert main([*command_line, "--model", "demo-transformer", "--device", "cpu"]) == 2
    assert "ControlNet needs a model with a UNet, and FluxPipeline has" in capsys.readouterr().err


def test_the_suite_takes_its_own_model_unless_another_is_chosen(random_weights, tmp_path):
    suite = read_suite("layout_transformer")
    usual = Settings(count=1, model=MODEL, out=tmp_path)
    assert command.of_suite(usual, suite).model == random_weights
    other = Settings(count=1, model=tmp_path, out=tmp_path)
    assert command.of_suite(other, suite).model == tmp_path
    assert command.of_suite(usual, read_suite("layout")).model == MODEL


def test_weights_of_the_transformer_count_only_where_it_is_measured(random_weights):
    before = records.weights_checksum(MODEL), records.weights_checksum(random_weights)
    tensors = load_file(random_weights / "diffusion_pytorch_model.safetensors")
    changed = {k: v + 1 for k, v in tensors.items()}
    save_file(changed, random_weights / "diffusion_pytorch_model.safetensors")
    assert records.weights_checksum(MODEL) == before[0]
    assert records.weights_checksum(random_weights) != before[1]


def test_joint_text_without_places_differs_from_the_caption_and_from_regions(pipeline):
    scenes = layout_cases(2)
    how = {"seeds": [0, 1], "steps": 2, "guidance": 3.0}
    made = [
        METHODS[name](pipeline, scenes, **how)
        for name in ("plain_prompt", "joined_texts", "regional_prompts")
    ]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert float((made[a] - made[b]).abs().max()) > 1e-3
    storybook = LayeredDiffusionPipeline.from_pretrained(device="cpu")
    with pytest.raises(
        LayeredError, match="joined_texts: model is 'StableDiffusionPipeline'; allowed: a tran"
    ):
        METHODS["joined_texts"](storybook, scenes, **how)


@pytest.mark.skipif(not loading.TRANSFORMER.is_dir(), reason="the storybook transformer is not there")
def test_the_shipped_transformer_is_small_and_reads_the_shipped_text_encoder():
    shape = json.loads((loading.TRANSFORMER / "config.json").read_text())
    encoder = json.loads((MODEL / "text_encoder" / "config.json").read_text())
    assert shape["joint_attention_dim"] == shape["pooled_projection_dim"] == encoder["hidden_size"]
    assert sum(f.stat().st_size for f in loading.TRANSFORMER.iterdir()) <= 12e6
