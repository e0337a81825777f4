"""An embedding of a layer's recipe acts in regional prompts as the vectors that it holds."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from layered_core.attention.attention_maps import AttentionMaps
from layered_core.attention.regional_plan import REGION_MODES, Settings
from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError
from layered_diffusers.methods.regional_attention import RegionalPrompts
from layered_diffusers.models.adapters import embedded, embedding_token
from layered_diffusers.pipeline import LayeredDiffusionPipeline


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


@pytest.fixture
def folder(pipeline, tmp_path):
    """Embedding "colour": the storybook's own vector of the word red. "two": those of "a red"."""
    model = pipeline.model
    table = model.text_encoder.get_input_embeddings().weight
    ids = model.tokenizer("a red", add_special_tokens=False).input_ids
    assert len(ids) == 2
    vectors = table[ids].detach().clone()
    save_file({"emb_params": vectors[1:]}, tmp_path / "colour.safetensors")
    save_file({"emb_params": vectors}, tmp_path / "two.safetensors")
    return tmp_path


def halves(left, embedding=None, **more):
    layers = (
        Layer("left", width=64, height=128, prompt=left, recipe=Recipe(embedding=embedding)),
        Layer("right", x=64, width=64, height=128, prompt="a blue star"),
    )
    return LayerDocument(128, 128, layers, prompt="in a meadow", **more)


def render(pipeline, document, folder=None, **settings):
    return pipeline.render(
        document, strength=1.0, attention=Settings(**settings), adapters=folder, steps=3, seed=1
    )


def difference(a, b):
    a, b = (torch.frombuffer(bytearray(x.tobytes()), dtype=torch.uint8).float() for x in (a, b))
    return float((a - b).abs().mean())


@pytest.mark.parametrize(
    ("embedding", "rest"), [("colour", "ball"), ("two", "ball"), ("two.safetensors", "ball")]
)
def test_an_embedding_acts_as_the_words_whose_vectors_it_holds(pipeline, folder, embedding, rest):
    written = {"colour": "red ball"}.get(embedding, "a red ball")
    named = render(pipeline, halves(rest, embedding), folder)
    plain = render(pipeline, halves(written))
    assert difference(named, plain) < 0.05
    assert difference(named, render(pipeline, halves(rest))) > 1


def test_the_name_is_found_as_a_token_in_the_prompt(pipeline, folder):
    document = replace(halves("ball", "colour"), prompt="a <colour> ball and a blue star")
    written = replace(halves("red ball"), prompt="a red ball and a blue star")
    named = render(pipeline, document, folder, mode="collage")
    assert difference(named, render(pipeline, written, mode="collage")) < 0.05


@pytest.mark.parametrize("mode", REGION_MODES)
def test_after_the_picture_the_model_is_as_before(pipeline, folder, mode):
    model = pipeline.model
    before = {k: v.clone() for k, v in model.text_encoder.state_dict().items()}
    vocabulary = dict(model.tokenizer.get_added_vocab())
    render(pipeline, halves("ball", "two"), folder, mode=mode, append=True)
    assert model.tokenizer.get_added_vocab() == vocabulary
    after = model.text_encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_two_layers_may_share_an_embedding(pipeline, folder):
    document = halves("ball", "colour")
    shared = replace(document, layers=tuple(replace(x, recipe=Recipe(embedding="colour")) for x in document))
    written = LayerDocument(
        128,
        128,
        tuple(replace(x, prompt=f"red {x.prompt}", recipe=Recipe()) for x in document),
        prompt=document.prompt,
    )
    assert difference(render(pipeline, shared, folder), render(pipeline, written)) < 0.05


def test_a_missing_embedding_is_named_with_its_layer(pipeline, folder):
    with pytest.raises(LayeredError, match="layer 'left': LoRA or embedding is 'nosuch'; allowed: .*colour"):
        render(pipeline, halves("ball", "nosuch"), folder)
    with pytest.raises(LayeredError, match="layer 'left': LoRA or embedding 'nosuch' was not found"):
        render(pipeline, halves("ball", "nosuch"))


@pytest.mark.parametrize("maps", [False, True])
def test_a_method_of_its_own_names_an_embedding_that_is_not_loaded(pipeline, folder, maps):
    record = AttentionMaps(["left", "right"]) if maps else None
    settings = Settings(mode="collage", append=True, strength=0.0 if maps else 1.0)
    document = halves("ball", "colour")
    with pytest.raises(LayeredError, match="layer 'left': its embedding 'colour' is not loaded"):
        RegionalPrompts(pipeline.model, [document], settings, maps=record)
    with embedded(pipeline.model, [document], folder):
        method = RegionalPrompts(pipeline.model, [document], settings, maps=record)
    assert "<colour> ball" in method.prompts[0]


def test_layers_that_do_not_act_need_no_embedding(pipeline):
    plain = pipeline.render(halves("ball"), strength=1.0, steps=2, attention=None)
    off = pipeline.render(halves("ball", "nosuch"), strength=1.0, steps=2, attention=Settings(strength=0.0))
    assert difference(off, plain) == 0
    hidden = halves("ball", "nosuch")
    hidden = replace(hidden, layers=tuple(replace(x, visible=x.name != "left") for x in hidden))
    assert RegionalPrompts(pipeline.model, [hidden]).plans[0].cond[0].name == "right"


def test_the_token_is_the_name_without_folder_and_ending():
    assert [embedding_token(x) for x in ("krk", "krk.safetensors", "krk.v2", "styles/krk")] == [
        "<krk>", "<krk>", "<krk.v2>", "<krk>",
    ]  # fmt: skip
