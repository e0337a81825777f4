"""Learnt words with values in Regional Prompt Attention: they act wherever a recipe names the word, and only there."""

import json
from pathlib import Path

import folder_paths
import pytest
import torch
from graph import rendering
from regional_scene import apply, halves, left_and_right, once, predicted
from twin import Twin

MEADOW = "a quiet meadow"


@pytest.fixture(scope="module")
def learn(pack):
    """Write a word "krk" with values into ComfyUI's embeddings: their size, the noun, the form."""
    files, values = pack("layered_core.learning.word_files"), pack("layered_core.learning.word_values")
    where = Path(folder_paths.get_folder_paths("embeddings")[0])
    where.mkdir(parents=True, exist_ok=True)

    def write(size=1.0, noun="ball", form="values", widths=None, name="krk"):
        shape = json.loads((pack("demo.world.places").MODEL / "text_encoder" / "config.json").read_text())
        chance = torch.Generator().manual_seed(0)
        vectors = torch.randn(1, shape["hidden_size"], generator=chance) * 0.05
        added = [
            tuple(torch.randn(2, w, generator=chance) * size for w in widths or WIDTHS) for _ in range(2)
        ]
        own = values.WordValues(noun, *added) if form == "values" else None
        files.write_word(files.LearntWord(name, {name: vectors}, own), where, overwrite=True)
        folder_paths.cache_helper.clear()

    yield write
    for file in where.glob("krk*"):
        file.unlink()


WIDTHS = []


@pytest.fixture(scope="module", autouse=True)
def widths(pack, loaded):
    WIDTHS[:] = pack("nodes.attention.unet_run").key_widths(loaded[0].model.diffusion_model)


def scene(regions, left="a red ball", right="a blue star", word="krk"):
    stack = regions.layers.read_stack(halves(regions, left, right))
    recipe = regions.document.Recipe(embedding=word)
    first = regions.document.Layer("left", width=64, height=128, prompt=left, recipe=recipe)
    second = stack.layers[1]
    return regions.layers.write_stack(regions.document.LayerDocument(128, 128, (first, second)))


def shown(regions, loaded, prompt=MEADOW, sigma=5.0, **more):
    out = apply(regions, *loaded, scene(regions), prompt=prompt, global_weight=0.0, **more)
    return predicted(*out, sigma=sigma)[1]


def test_values_act_on_the_side_of_their_layer(regions, loaded, learn):
    learn(form="word")
    word = shown(regions, loaded, sigma=1.0)
    learn()
    left, right = left_and_right(shown(regions, loaded, sigma=1.0) - word)
    assert left > 2 * right
    assert left > 0.01


def test_values_of_zero_change_no_bit(regions, loaded, learn):
    learn(form="word")
    word = shown(regions, loaded)
    learn(size=0.0)
    assert torch.equal(shown(regions, loaded), word)


@pytest.mark.parametrize("mode", ["regions", "joint", "collage", "paint with words"])
def test_values_act_in_every_mode(regions, loaded, learn, mode):
    learn(form="word")
    word = shown(regions, loaded, mode=mode, append=True)
    learn()
    assert not torch.equal(shown(regions, loaded, mode=mode, append=True), word)


def test_values_of_a_word_that_no_recipe_names_do_nothing(regions, loaded, learn):
    def other():
        stack = halves(regions, "a red ball", "a blue star")
        return predicted(*apply(regions, *loaded, stack, prompt=MEADOW))[1]

    learn(form="word")
    word = other()
    learn()
    assert torch.equal(other(), word)


def test_at_strength_zero_a_word_in_the_prompt_is_a_plain_embedding(regions, loaded, learn):
    prompt = "embedding:krk a red ball"
    learn(form="word")
    word = shown(regions, loaded, prompt=prompt, strength=0.0)
    learn()
    assert torch.equal(shown(regions, loaded, prompt=prompt, strength=0.0), word)
    assert not torch.equal(shown(regions, loaded, prompt=prompt), word)


@pytest.mark.parametrize("form", ["values", "word"])
def test_both_hosts_predict_the_same_with_a_learnt_word(regions, pack, loaded, learn, form):
    learn(form=form)
    sigma = loaded[0].get_model_object("model_sampling").sigma(torch.tensor(500.0)).item()
    out = apply(regions, *loaded, scene(regions), prompt="embedding:krk a red ball in a meadow")
    seen = once(*out, sigma)
    half = out[1][0][1][regions.patch.KEY]
    spoken = half.spoken or pack("nodes.attention.learnt_words").Spoken((), ((), ()))
    assert [bool(x) for x in (spoken.prompt, *spoken.regions)] == [form == "values"] * 2 + [False]
    twin = Twin(pack("demo.world.places").MODEL)
    contexts = torch.cat([out[2][0][0], out[1][0][0]])
    names = [n for n in twin.unet.attn_processors if ".attn2." in n]
    order = sorted(names, key=lambda name: ("down", "mid_", "up_b").index(name[:4]))

    class Changed(regions.regional.RegionalAttention):
        def __call__(self, q, k, v, base, *, block, **more):
            number = order.index(block)
            k, v = spoken.of_prompt(number, k, v)
            base = more["attend"](q, k, v, None)
            return super().__call__(q, k, v, base, block=block, change=spoken.of_regions(number), **more)

    attention = Changed(half.regions, half.settings, half.contexts, half.tokens)
    theirs = twin.predict(regions, seen["input"], sigma, contexts, [None, attention])[1]
    a, b = ((seen["input"] - x) / sigma for x in (seen["cond"], theirs))
    assert float((a - b).norm() / b.norm()) < 1e-3


def test_values_of_another_kind_of_model_name_layer_and_word(regions, loaded, learn):
    learn(widths=[8, 8])
    with pytest.raises(
        regions.error, match="layer 'left': embedding 'krk': the values of a learnt word is '2 blocks"
    ):
        shown(regions, loaded)


def test_values_that_belong_to_another_word_are_refused(regions, loaded, learn):
    learn()
    where = Path(folder_paths.get_folder_paths("embeddings")[0])
    kept = (where / "krk.values.safetensors").read_bytes()
    (where / "krk.safetensors").rename(where / "krkold.safetensors")
    learn(form="word", noun="star")
    other = (where / "krkold.safetensors").read_bytes()[:-4] + b"\0\0\x80?"
    (where / "krk.safetensors").write_bytes(other)
    (where / "krk.values.safetensors").write_bytes(kept)
    with pytest.raises(regions.error, match="belongs to another word"):
        shown(regions, loaded)


def test_layered_rendering_says_that_values_act_afterwards(regions, pack, loaded, learn, monkeypatch):
    learn()
    said, module = [], pack("nodes.rendering.layered_rendering")
    monkeypatch.setattr(module, "tell", lambda cls, title, remarks: said.extend(remarks))
    values = {**rendering("a")["inputs"], "model": loaded[0], "clip": loaded[1], "layers": scene(regions)}
    _, positive, _ = module.LayeredRendering.execute(**values).result
    assert any("'krk'" in remark and "without their values" in remark for remark in said)
    halves = [entry[1][regions.patch.KEY] for entry in positive if regions.patch.KEY in entry[1]]
    assert any(half.spoken and half.spoken.regions[0] for half in halves)
