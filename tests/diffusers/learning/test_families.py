"""Words learnt with tiny random models of SD1.5, which predicts noise, and of SDXL, which has two text encoders."""

import pytest
import torch
from tiny_unets import sd15, sdxl

from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.learning.lesson import LearnSettings, find_subjects, plan_lesson
from layered_core.learning.word_files import read_tensors
from layered_diffusers.learning.learn import training_size
from layered_diffusers.learning.training import WordTraining
from layered_diffusers.models.adapters import embedded, loaded_values
from layered_diffusers.models.text import encode
from layered_diffusers.pipeline import LayeredDiffusionPipeline


def document():
    image = torch.rand(64, 64, 4, generator=torch.Generator().manual_seed(0))
    image[..., 3] = 1
    layer = Layer("cat", image[16:48, 16:48].contiguous(), x=16, y=16, prompt="a cat")
    return LayerDocument(64, 64, (Layer("back", image, prompt="a garden"), layer))


def pipeline_of(make):
    return LayeredDiffusionPipeline(make())


def learn(pipeline, folder, steps=2, **more):
    settings = LearnSettings(steps=steps, batch=2, vectors=2, **more)
    return pipeline.learn_words(document(), folder, layers=["cat"], words={"cat": "krk"}, settings=settings)


@pytest.mark.parametrize(("make", "names"), [(sd15, ["krk"]), (sdxl, ["clip_g", "clip_l"])])
@pytest.mark.parametrize("attention", [0.0, 0.3])
def test_a_word_is_learnt_and_the_model_stays(make, names, attention, tmp_path):
    pipeline = pipeline_of(make)
    modules = [m for m in pipeline.model.components.values() if isinstance(m, torch.nn.Module)]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in modules]
    learn(pipeline, tmp_path, attention=attention)
    for module, own in zip(modules, before, strict=True):
        after = module.state_dict()
        assert own.keys() == after.keys()
        assert all(torch.equal(v, after[k]) for k, v in own.items())
    tensors, _ = read_tensors(tmp_path / "krk.safetensors")
    assert sorted(tensors) == names
    assert all(tensor.shape == (2, 16) for tensor in tensors.values())


@pytest.mark.parametrize("make", [sd15, sdxl])
def test_every_encoders_vectors_and_the_values_are_trained(make):
    pipeline, scene = pipeline_of(make), document()
    settings = LearnSettings(steps=1, batch=2)
    subjects = find_subjects(scene, ["cat"])
    training = WordTraining(pipeline, plan_lesson(scene, subjects, settings, *training_size(pipeline, scene)))
    start = training.words(best=False)[0]
    training.run()
    last = training.words(best=False)[0]
    assert all(not torch.equal(vector, last.vectors[name]) for name, vector in start.vectors.items())
    assert all(bool((x != 0).all()) for x in last.values.values)


def test_sdxl_reads_the_word_with_both_encoders_and_forgets_it(tmp_path):
    pipeline = pipeline_of(sdxl)
    learnt = learn(pipeline, tmp_path)
    model = pipeline.model
    plain, pooled = encode(model, ["a photo of a cat"])
    with embedded(model, [learnt], tmp_path):
        assert set(loaded_values(model)) == {"<krk>"}
        named, named_pooled = encode(model, ["a photo of a <krk> cat"])
        for encoder, tokenizer in (
            (model.text_encoder, model.tokenizer),
            (model.text_encoder_2, model.tokenizer_2),
        ):
            rows = encoder.get_input_embeddings().weight
            assert rows.shape[0] == len(tokenizer)
        assert not torch.equal(named[0][5], plain[0][5])
        assert not torch.equal(named_pooled, pooled)
        again, _ = encode(model, ["a photo of a cat"])
        assert torch.equal(again[0], plain[0])
    assert loaded_values(model) == {}
    assert "<krk>" not in model.tokenizer.get_vocab()
    assert "<krk>" not in model.tokenizer_2.get_vocab()


def test_the_pooled_text_is_that_of_the_end_whatever_the_encoder_takes_for_it(tmp_path):
    """Published SDXL encoders have the end token 2 in their configuration, and then take the greatest id."""
    pipeline = pipeline_of(sdxl)
    learnt = learn(pipeline, tmp_path, steps=0)
    model = pipeline.model
    with embedded(model, [learnt], tmp_path):
        right = encode(model, ["a <krk> cat"])[1]
        inner = getattr(model.text_encoder_2, "text_model", model.text_encoder_2)
        inner.eos_token_id = 2
        assert torch.allclose(encode(model, ["a <krk> cat"])[1], right, atol=1e-6)


def test_a_word_of_another_family_is_named_with_its_layer(tmp_path):
    learnt = learn(pipeline_of(sdxl), tmp_path, steps=0)
    with (
        pytest.raises(LayeredError, match="layer 'cat': .*one for SDXL, and the model has one text encoder"),
        embedded(pipeline_of(sd15).model, [learnt], tmp_path),
    ):
        pass


def test_values_of_another_unet_are_named_with_their_layer(tmp_path):
    learnt = learn(pipeline_of(sd15), tmp_path, steps=0)
    storybook = LayeredDiffusionPipeline.from_pretrained(device="cpu").model
    with (
        pytest.raises(LayeredError, match="layer 'cat': .*krk"),
        embedded(storybook, [learnt], tmp_path),
    ):
        pass
