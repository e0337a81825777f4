"""An embedding that words name and that ComfyUI would leave out is an error before sampling."""

from pathlib import Path

import folder_paths
import pytest
import safetensors.torch
import torch
from graph import add_layer, from_image, node, regional
from sampling import LOADER

MASKS = {
    "prompt": "", "negative": "", "seed": 0, "steps": 1, "cfg": 3.0, "threshold": 0.5, "largest": True,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def folder():
    """Embeddings "fits" of the storybook's width and "wide" of SDXL's second encoder."""
    where = Path(folder_paths.get_folder_paths("embeddings")[0])
    where.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({"emb_params": torch.zeros(2, 1280)}, where / "wide.safetensors")
    yield where
    for name in ("wide", "fits"):
        (where / f"{name}.safetensors").unlink(missing_ok=True)


@pytest.fixture
def fits(folder, pack):
    clip = pack("nodes.demo.demo_model").LoadDemoModel.execute().result[1]
    width = clip.tokenizer.clip_l.embedding_size
    safetensors.torch.save_file({"emb_params": torch.zeros(1, width)}, folder / "fits.safetensors")
    folder_paths.cache_helper.clear()
    return clip


def scene(**layer):
    box = {"width": 64, "height": 128, "canvas_width": 128, "canvas_height": 128}
    return {**LOADER, "a": from_image(name="left", **{"prompt": "a red ball", **box, **layer})}


def regional_error(host, layer, **values):
    prompt = {**scene(**layer), "it": regional("a", **values)}
    return host.error_of({**prompt, "end": node("TestCatch", value=["it", 1])})


@pytest.mark.parametrize(
    "words",
    [
        "embedding:nosuch a red ball", "a red ball, embedding:nosuch", "a (red embedding:nosuch, ball:1.2)",
        "(embedding:nosuch:1.3) ball", "a\nembedding:nosuch",
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["prompt", "negative"])
@pytest.mark.parametrize("mode", ["regions", "collage"])
def test_a_missing_embedding_of_a_layer_is_named_with_the_layer(host, words, field, mode):
    text = regional_error(host, {field: words}, mode=mode)
    assert text.startswith("layer 'left': embedding is 'nosuch'; allowed: a name in ComfyUI's folder")
    assert "wide.safetensors" in text


def test_a_missing_embedding_of_a_recipe_is_named_with_the_layer(host, pack):
    document, socket = pack("layered_core.document"), pack("nodes.layers.socket")
    errors, node_of = pack("layered_core.errors"), pack("nodes.attention.embeddings")
    clip = pack("nodes.demo.demo_model").LoadDemoModel.execute().result[1]
    recipe = document.Recipe(embedding="nosuch")
    layer = document.Layer("ball", width=8, height=8, prompt="a red ball", recipe=recipe)
    stack = socket.write_stack(document.LayerDocument(8, 8, (layer,)))
    with pytest.raises(errors.LayeredError, match="layer 'ball': embedding is 'nosuch'"):
        node_of.check_layer_words(clip, socket.read_stack(stack))


@pytest.mark.parametrize("field", ["prompt", "negative"])
def test_a_missing_embedding_of_the_main_words_is_named_with_the_input(host, field):
    text = regional_error(host, {}, **{field: "a meadow, embedding:nosuch"})
    assert text.startswith(f"{field}: embedding is 'nosuch'")


def test_an_embedding_for_another_model_is_refused_by_its_width(host):
    text = regional_error(host, {"prompt": "embedding:wide a red ball"})
    assert text.startswith("layer 'left': embedding 'wide': width is 1280; allowed: ")


def test_a_layer_whose_words_do_not_act_may_name_any_embedding(host):
    for layer, values in (({"visible": False}, {}), ({}, {"strength": 0.0})):
        prompt = {**scene(prompt="embedding:nosuch a red ball", **layer), "it": regional("a", **values)}
        assert host.value(prompt, "it", 1)


@pytest.mark.parametrize(
    "words",
    ["embedding:fits a ball", "a ball, embedding:fits,", "a (embedding:fits:1.2)", "x embedding:fits.safetensors",
     "it has noembedding:nosuch", "a ball"],
)  # fmt: skip
def test_embeddings_that_comfyui_finds_are_taken_however_they_are_written(pack, fits, words):
    pack("nodes.attention.embeddings").check_words(fits, words, "prompt: ")


def test_a_name_that_is_missing_is_an_error(pack, fits):
    with pytest.raises(pack("layered_core.errors").LayeredError, match="prompt: embedding is ''"):
        pack("nodes.attention.embeddings").check_words(fits, "a ball embedding:", "prompt: ")


def test_a_stage_and_a_mask_from_attention_name_layer_and_embedding(host):
    stage = {**LOADER, "it": add_layer("embedding:nosuch a ball", name="ball", width=64, height=64)}
    mask = {"model": ["loader", 0], "clip": ["loader", 1], "layers": ["a", 0]}
    masks = {
        **scene(prompt="embedding:nosuch a ball"),
        "it": node("LD_LayerMaskFromAttention", **mask, **MASKS),
    }
    for prompt, name in ((stage, "ball"), (masks, "left")):
        text = host.error_of({**prompt, "end": node("TestCatch", value=["it", 0])})
        assert text.startswith(f"layer '{name}': embedding is 'nosuch'"), text
