"""Words learnt with the storybook: the model stays as it is, files are whole or absent, and the words act."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from demo.world.scenes import random_scene
from layered_core.attention.regional_plan import Settings
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.learning import objective
from layered_core.learning.lesson import LearnSettings, find_subjects, plan_lesson
from layered_core.learning.word_files import read_tensors
from layered_core.learning.wording import with_word
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers.learning.learn import training_size
from layered_diffusers.learning.training import WordTraining
from layered_diffusers.models.adapters import embedded
from layered_diffusers.pipeline import LayeredDiffusionPipeline


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def document():
    """A scene of two things, which are described by their kinds alone."""
    scene = random_scene(3, count=2, materials=("solid",))
    back, *things = scene.document()
    names = ("one", "two")
    layers = (
        replace(x, name=n, prompt=f"a {o.kind}") for x, n, o in zip(things, names, scene.objects, strict=True)
    )
    return LayerDocument(128, 128, (back, *layers))


def weights(pipeline):
    model = pipeline.model
    parts = {"unet": model.unet, "text": model.text_encoder, "vae": model.vae}
    return {f"{n}.{k}": v.clone() for n, part in parts.items() for k, v in part.state_dict().items()}


def state(pipeline):
    """Return everything but the weights that a training might change in the model."""
    model = pipeline.model
    hooks = [m for m in model.text_encoder.modules() if m._forward_hooks or m._forward_pre_hooks]
    grads = [p.requires_grad for p in model.unet.parameters()]
    return (
        [type(p) for p in model.unet.attn_processors.values()], hooks, grads, model.unet.training,
        model.tokenizer.get_added_vocab(), any(p.grad is not None for p in model.unet.parameters()),
    )  # fmt: skip


def learn(
    pipeline, document, folder, layers=("one",), steps=2, overwrite=False, progress=None, preview=None, **more
):
    return pipeline.learn_words(
        document,
        folder,
        layers=layers,
        words={name: f"{name}-krk" for name in layers},
        settings=LearnSettings(steps=steps, batch=2, **more),
        overwrite=overwrite,
        progress=progress,
        preview=preview,
    )


def drawn(pipeline, words, folder=None, document=None):
    with embedded(pipeline.model, [document] if document else [], folder):
        return pipeline.generate([words], seeds=[5], steps=3)[0]


@pytest.mark.parametrize("form", ["values", "word"])
def test_after_no_step_a_word_is_the_one_it_started_from(pipeline, document, tmp_path, form):
    learnt = learn(pipeline, document, tmp_path, steps=0, form=form, start="red")
    table = pipeline.model.text_encoder.get_input_embeddings().weight
    red = pipeline.model.tokenizer("red", add_special_tokens=False).input_ids
    assert torch.equal(load_file(tmp_path / "one-krk.safetensors")["one-krk"], table[red].float())
    assert (tmp_path / "one-krk.values.safetensors").exists() == (form == "values")
    named = drawn(pipeline, "a <one-krk> ball by the sea", tmp_path, learnt)
    assert torch.equal(named, drawn(pipeline, "a red ball by the sea"))


@pytest.mark.parametrize("form", ["values", "word"])
def test_the_model_is_the_same_afterwards_and_the_word_is_another(pipeline, document, tmp_path, form):
    before, others = weights(pipeline), state(pipeline)
    learnt = learn(pipeline, document, tmp_path, form=form, preview=lambda step, pictures: None)
    after = weights(pipeline)
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert state(pipeline) == others
    assert [x.recipe.embedding for x in learnt] == [None, "one-krk", None]
    named = drawn(pipeline, "a <one-krk> ball", tmp_path, learnt)
    start = learn(pipeline, document, tmp_path, steps=0, form=form, overwrite=True)
    again, plain = (drawn(pipeline, "a <one-krk> ball", tmp_path, x) for x in (learnt, start))
    assert torch.equal(again, plain)  # the files of the second run
    assert not torch.equal(named, plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_training_that_stops_at_step_3_changes_nothing_and_writes_nothing(
    pipeline, document, tmp_path, error
):
    def stop(step, steps):
        if step == 3:
            raise error

    before, others = weights(pipeline), state(pipeline)
    with pytest.raises(error):
        learn(pipeline, document, tmp_path, steps=4, progress=stop)
    after = weights(pipeline)
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert state(pipeline) == others
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_the_model_leaves_it_as_it_was(pipeline, document, tmp_path, monkeypatch):
    others = state(pipeline)

    def fail(*_, **__):
        raise RuntimeError("inside")

    monkeypatch.setattr(pipeline.model.unet.mid_block, "forward", fail)
    with pytest.raises(RuntimeError, match="inside"):
        learn(pipeline, document, tmp_path)
    assert state(pipeline) == others
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_bits(pipeline, document, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        files = []
        for run in ("first", "second"):
            (tmp_path / run).mkdir()
            learn(pipeline, document, tmp_path / run, steps=3, seed=7)
            files.append({p.name: read_tensors(p) for p in (tmp_path / run).iterdir()})
    finally:
        torch.set_num_threads(before)
    assert sorted(files[0]) == ["one-krk.safetensors", "one-krk.values.safetensors"]
    for name, (tensors, facts) in files[0].items():
        others, other_facts = files[1][name]
        assert facts == other_facts
        assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())


def test_values_act_on_the_word_and_its_noun_and_are_off_to_the_bit_without_it(pipeline, document, tmp_path):
    learnt = learn(pipeline, document, tmp_path, steps=1)
    values = tmp_path / "one-krk.values.safetensors"
    for words in ("a ball by the sea", "a krk ball"):
        assert torch.equal(drawn(pipeline, words, tmp_path, learnt), drawn(pipeline, words))
    both = drawn(pipeline, "a <one-krk> house", tmp_path, learnt)
    values.unlink()
    assert not torch.equal(both, drawn(pipeline, "a <one-krk> house", tmp_path, learnt))


def test_layers_learnt_together_are_two_words_that_each_work_alone(pipeline, document, tmp_path):
    learnt = learn(pipeline, document, tmp_path, layers=("one", "two"), steps=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "one-krk.safetensors", "one-krk.values.safetensors", "two-krk.safetensors", "two-krk.values.safetensors",
    ]  # fmt: skip
    one, two = (replace(learnt, layers=(learnt.layers[0], learnt.layer(x))) for x in ("one", "two"))
    pictures = [drawn(pipeline, f"a <{x}-krk> ball", tmp_path, d) for x, d in (("one", one), ("two", two))]
    together = [drawn(pipeline, f"a <{x}-krk> ball", tmp_path, learnt) for x in ("one", "two")]
    assert all(torch.equal(a, b) for a, b in zip(pictures, together, strict=True))
    assert not torch.equal(*pictures)


def test_a_rendered_layer_of_words_alone_shows_its_learnt_values_where_it_is(pipeline, document, tmp_path):
    learnt = learn(pipeline, document, tmp_path, steps=1)
    box = Layer("box", prompt="a ball", x=16, y=16, width=96, height=96, recipe=learnt.layer("one").recipe)
    scene = LayerDocument(
        128, 128, (replace(document.layers[0], prompt="by the sea"), box), prompt="by the sea"
    )

    def rendered():
        return np.asarray(pipeline.render(scene, seed=1, strength=1.0, steps=3, adapters=tmp_path))

    with_values = rendered()
    (tmp_path / "one-krk.values.safetensors").unlink()
    assert not np.array_equal(with_values, rendered())


def test_a_region_of_the_whole_canvas_is_the_plain_prompt_with_the_learnt_word(pipeline, document, tmp_path):
    """Values act in a region's own words as they do in the prompt."""
    learnt = learn(pipeline, document, tmp_path, steps=1)
    recipe = learnt.layer("one").recipe
    scene = LayerDocument(128, 128, (Layer("all", prompt="a ball", recipe=recipe),), prompt="at night")
    with embedded(pipeline.model, [learnt], tmp_path):
        regions = pipeline.regional_prompts([scene], Settings(global_weight=0.0, emphasis=0.0))
        inside = pipeline.generate(regions.prompts, seeds=[5], steps=3, methods=[regions])
        plain = pipeline.generate(["<one-krk> a ball"], seeds=[5], steps=3)
    torch.testing.assert_close(inside, plain, atol=1e-4, rtol=0)
    (tmp_path / "one-krk.values.safetensors").unlink()
    assert not torch.allclose(drawn(pipeline, "<one-krk> a ball", tmp_path, learnt), plain[0], atol=1e-3)


def test_layered_rendering_paints_a_layer_with_its_values(pipeline, document, tmp_path):
    learnt = learn(pipeline, document, tmp_path, steps=1)
    box = Layer("box", prompt="a ball", x=16, y=16, width=96, height=96, recipe=learnt.layer("one").recipe)
    back = Layer("back", prompt="by the sea")

    def rendered(folder=tmp_path):
        return np.asarray(
            pipeline.render(
                LayerDocument(128, 128, (back, box)),
                seed=1, strength=1.0, steps=3, adapters=folder, attention=None, rendering=Rendering(share=0.5),
            )
        )  # fmt: skip

    with_values = rendered()
    (tmp_path / "one-krk.values.safetensors").unlink()
    assert not np.array_equal(with_values, rendered())


def training(pipeline, document, **more):
    subjects = find_subjects(document, ["one", "two"])
    settings = LearnSettings(batch=2, **more)
    return WordTraining(
        pipeline, plan_lesson(document, subjects, settings, *training_size(pipeline, document))
    )


def test_what_lies_outside_the_mask_is_not_learnt_from(pipeline, document, monkeypatch):
    made = training(pipeline, document, form="word")
    outside = made._masks[0, 0] == 0
    with made.training():
        whole = made.errors()[0]
    # The model's own output near the border depends on what is around, so only what it is compared with is planted.
    before = objective.target

    def planted(*given):
        wanted = before(*given).clone()
        wanted[..., outside] = torch.nan
        return wanted

    monkeypatch.setattr(objective, "target", planted)
    with made.training():
        assert made.errors()[0] == whole


def test_gradients_reach_all_of_a_word_and_nothing_else(pipeline, document):
    made = training(pipeline, document, attention=0.3, vectors=2)
    with made.training():
        made.loss().backward()
    word = made.learner.words[0]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in word.parameters())
    assert all(float(v.grad.abs().max()) > 0 for v in word.vectors.values())
    assert all(float(p.grad.abs().min(1).values.min()) > 0 for p in word.values.values)
    assert all(p.grad is None for p in pipeline.model.unet.parameters())


def test_a_text_too_long_for_the_encoder_is_replaced_by_the_layers_own(pipeline, document):
    made = training(pipeline, document)
    text = (0, " a ball ", "and a star " * 40)
    encoded = made._texts.encode(made.learner.words, [text], [(0,)])
    own = made._texts.encode(
        made.learner.words, [with_word(made.lesson.subjects[0].prompt, 0, before_noun=False)], [(0,)]
    )
    assert torch.equal(encoded.context, own.context)


def test_encoded_texts_are_those_of_the_file(pipeline, document, tmp_path):
    from layered_diffusers.models.text import encode

    made = training(pipeline, document, vectors=2)
    text = ("a ", 0, f" {made.lesson.subjects[0].noun} by the sea")
    with torch.no_grad():
        mine = made._texts.encode(made.learner.words, [text], [(0,)]).context[0]
    learnt = learn(pipeline, document, tmp_path, steps=0, vectors=2)
    with embedded(pipeline.model, [learnt], tmp_path):
        theirs = encode(pipeline.model, [f"a <one-krk>{text[2]}"])[0][0]
    assert float((mine - theirs).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["ball", "Ball"])
def test_a_name_that_is_a_word_already_is_refused(pipeline, document, tmp_path, name):
    with pytest.raises(LayeredError, match="layer 'one': name of its word is .*no word already"):
        pipeline.learn_words(document, tmp_path, layers=["one"], words={"one": name})


def test_an_existing_file_is_named_before_anything_is_learnt(pipeline, document, tmp_path):
    (tmp_path / "one-krk.safetensors").write_bytes(b"mine")
    with pytest.raises(LayeredError, match=r"layer 'one': file 'one-krk.safetensors' exists already"):
        learn(pipeline, document, tmp_path, progress=lambda *_: pytest.fail("learnt"))
    assert (tmp_path / "one-krk.safetensors").read_bytes() == b"mine"


def test_transformers_and_inpainting_models_are_refused_by_name(pipeline, document, tmp_path, monkeypatch):
    transformer = LayeredDiffusionPipeline.from_pretrained("demo-transformer", device="cpu")
    with pytest.raises(LayeredError, match="cannot be learnt with FluxPipeline.*Train a LoRA"):
        learn(transformer, document, tmp_path)
    monkeypatch.setattr(type(pipeline), "inpaints", True)
    with pytest.raises(LayeredError, match="model to learn words with"):
        learn(pipeline, document, tmp_path)
