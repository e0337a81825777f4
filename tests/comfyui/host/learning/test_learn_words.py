"""Learn Words from Layers in the real host, under its executor and its inference mode."""

from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import safetensors.torch
import torch
from graph import from_image, node, regional
from learning_scene import learn, one_ball
from sampling import LOADER, models, sample


@pytest.fixture
def folder():
    """ComfyUI's folder of embeddings; what is written into it is removed afterwards."""
    where = Path(folder_paths.get_folder_paths("embeddings")[0])
    where.mkdir(parents=True, exist_ok=True)
    before = set(where.iterdir())
    yield where
    for file in set(where.iterdir()) - before:
        file.unlink()
    folder_paths.cache_helper.clear()


def written(folder, name="krk"):
    return {file.name: safetensors.torch.load_file(file) for file in folder.glob(f"{name}*")}


def weights(*patchers):
    return [{k: v.clone() for k, v in p.model.state_dict().items()} for p in patchers]


def same(before, *patchers):
    return all(
        torch.equal(old[k], v)
        for old, p in zip(before, patchers, strict=True)
        for k, v in p.model.state_dict().items()
    )


class Loaded:
    """The MODEL, CLIP and VAE that a prompt with "loader" gets, and what they were."""

    def __init__(self, host):
        host.fresh()
        self.model, self.clip, self.vae = (host.value(LOADER, "loader", i) for i in range(3))
        self.words = models(host)[1:]
        self.before = weights(self.model, self.clip.patcher, self.vae.patcher)
        self.sampled = sample(self.model, *self.words)
        self.tokenizer = dict(vars(self.clip.tokenizer))

    def is_as_before(self):
        return (
            same(self.before, self.model, self.clip.patcher, self.vae.patcher)
            and torch.equal(sample(self.model, *self.words), self.sampled)
            and vars(self.clip.tokenizer) == self.tokenizer
            and not any("forward" in vars(x) for x in self.clip.cond_stage_model.modules())
        )


def test_under_the_executor_gradients_reach_word_keys_and_values(host, folder):
    prompt = {**one_ball(), "l": learn(steps=5)}
    start = {**one_ball(), "l": learn(steps=0, name="krk-start")}
    files = host.value(prompt, "l", 1).splitlines()
    assert [Path(file).name for file in files] == ["krk.safetensors", "krk.values.safetensors"]
    host.value(start, "l", 1)
    word, values = written(folder)["krk.safetensors"], written(folder)["krk.values.safetensors"]
    first = safetensors.torch.load_file(folder / "krk-start.safetensors")["krk-start"]
    assert list(word) == ["krk"]
    assert float((word["krk"] - first).abs().min()) > 0
    assert all(float(tensor.abs().min()) > 0 for tensor in values.values())


def test_no_step_leaves_the_start_the_mean_of_the_layers_words(host, folder):
    host.value({**one_ball(), "l": learn(steps=0)}, "l", 1)
    clip = host.value(LOADER, "loader", 1)
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    ids = [piece[0] for piece in clip.tokenize("a red ball", return_word_ids=True)["l"][0] if piece[2]]
    found = written(folder)
    assert torch.allclose(found["krk.safetensors"]["krk"][0], table[ids].float().mean(0), atol=1e-6)
    assert all(not tensor.any() for tensor in found["krk.values.safetensors"].values())


def test_a_second_run_with_the_same_seed_is_bit_equal(host, folder):
    found = []
    for _ in range(2):
        host.fresh()
        host.value({**one_ball(), "l": learn(overwrite=True)}, "l", 1)
        found.append(written(folder))
    for file, tensors in found[0].items():
        assert all(torch.equal(found[1][file][key], tensor) for key, tensor in tensors.items())


def test_model_clip_and_vae_are_as_before(host, folder):
    it = Loaded(host)
    host.value({**one_ball(), "l": learn()}, "l", 1)
    assert host.value(LOADER, "loader", 0) is it.model
    assert it.is_as_before()


@pytest.mark.parametrize("how", ["broken", "interrupted"])
def test_an_exception_or_interrupt_at_step_3_leaves_no_file_and_everything_as_before(
    host, folder, pack, monkeypatch, how
):
    it, training, done = Loaded(host), pack("layered_core.learning.training").Training, []
    loss = training.loss

    def stop(self):
        done.append(1)
        if len(done) == 3 and how == "broken":
            raise RuntimeError("broken on purpose")
        if len(done) == 3:
            comfy.model_management.interrupt_current_processing()
        return loss(self)

    monkeypatch.setattr(training, "loss", stop)
    text = host.error_of({**one_ball(), "l": learn(steps=9)})
    assert text.strip() == ("broken on purpose" if how == "broken" else "execution_interrupted")
    assert len(done) == 3
    assert not list(folder.glob("*krk*"))
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]
    assert it.is_as_before()


def test_the_word_stands_in_the_recipe_and_acts_in_regional_prompt_attention(host, folder, pack):
    prompt = {**one_ball(), "l": learn(steps=3), "r": regional("l", prompt="in a meadow")}
    (layer,) = pack("nodes.layers.socket").read_stack(host.value(prompt, "l", 0))
    assert layer.recipe.embedding == "krk"
    half = host.value(prompt, "r", 1)[0][1][pack("nodes.attention.conditionings").KEY]
    assert half.regions[0].text == "embedding:krk a red ball"
    (place,) = half.spoken.regions[0]
    assert (place.word, place.noun) == ((1,), (4,))
    assert not torch.equal(sample(*(host.value(prompt, "r", i) for i in range(3))), sample(*models(host)))


def test_two_layers_learnt_together_are_two_words(host, folder, pack):
    star = from_image(name="star", prompt="a star", x=90, y=90, width=36, height=36)
    star["inputs"] |= {"image": ["picture", 0], "mask": ["picture", 1], "layers": ["a", 0]}
    prompt = {**one_ball(), "b": star, "l": learn("b", name="krk-a, krk-b", steps=4)}
    layers = pack("nodes.layers.socket").read_stack(host.value(prompt, "l", 0))
    assert [x.recipe.embedding for x in layers] == ["krk-a", "krk-b"]
    a, b = (written(folder, name)[f"{name}.safetensors"][name] for name in ("krk-a", "krk-b"))
    assert not torch.equal(a, b)


def test_one_of_several_layers_is_chosen_as_in_select_layers_and_named_after_itself(host, folder, pack):
    star = from_image(name="The Star!", prompt="a star", x=90, y=90, width=36, height=36)
    star["inputs"] |= {"image": ["picture", 0], "mask": ["picture", 1], "layers": ["a", 0]}
    prompt = {**one_ball(), "b": star, "l": learn("b", which="-1", name="", form="word", steps=0)}
    ball, star = pack("nodes.layers.socket").read_stack(host.value(prompt, "l", 0))
    assert (ball.recipe.embedding, star.recipe.embedding) == (None, "the-star-look")
    assert [file.name for file in folder.glob("the-star*")] == ["the-star-look.safetensors"]


def test_the_form_word_is_one_tensor_that_comfyui_reads_as_an_embedding(host, folder):
    host.value({**one_ball(), "l": learn(form="word", vectors=2)}, "l", 1)
    found = written(folder)
    assert list(found) == ["krk.safetensors"]
    clip = host.value(LOADER, "loader", 1)
    read = [p[0] for p in clip.tokenize("embedding:krk ball")["l"][0] if isinstance(p[0], torch.Tensor)]
    assert torch.equal(torch.stack(read), found["krk.safetensors"]["krk"])


def test_a_file_that_exists_is_an_error_and_stays_unless_it_may_be_overwritten(host, folder):
    (folder / "krk.safetensors").write_bytes(b"mine")
    prompt = {**one_ball(), "l": learn()}
    assert "layer 'ball': file 'krk.safetensors' exists already" in host.error_of(prompt)
    assert (folder / "krk.safetensors").read_bytes() == b"mine"
    host.value({**one_ball(), "l": learn(overwrite=True)}, "l", 1)
    assert list(written(folder)["krk.safetensors"]) == ["krk"]


def test_gradients_are_the_same_when_blocks_save_memory(host, pack):
    copies = pack("nodes.learning.copies")
    model = host.value(LOADER, "loader", 0)
    found = []
    with torch.inference_mode(False), torch.enable_grad():
        own = copies.copied_model(model)
        comfy.model_management.load_models_gpu([own], force_full_load=True)
        for saving in (False, True):
            changed = copies.save_memory(own.model.diffusion_model) if saving else []
            assert bool(changed) == saving
            chance = torch.Generator().manual_seed(0)
            x, words = (torch.randn(shape, generator=chance) for shape in ((1, 4, 16, 16), (1, 77, 64)))
            words.requires_grad_()
            own.model.apply_model(x, torch.tensor([3.0]), c_crossattn=words).square().mean().backward()
            found.append(words.grad)
            for module in changed:
                del module.forward
    assert float(found[0].abs().max()) > 0
    assert torch.allclose(*found, atol=1e-7)


def test_a_model_that_cannot_be_loaded_again_is_copied_without_what_is_patched_into_it(host, pack):
    copies, model = pack("nodes.learning.copies"), host.value(LOADER, "loader", 0).clone()
    key = "diffusion_model.out.2.weight"
    model.cached_patcher_init = None
    model.add_patches({key: ("diff", (torch.ones_like(model.model.state_dict()[key]),))})
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    patched = model.model.state_dict()[key].clone()
    with torch.inference_mode(False):
        own = copies.copied_model(model)
        comfy.model_management.load_models_gpu([own], force_full_load=True)
        assert own.model is not model.model
        assert torch.equal(own.model.state_dict()[key], patched)
        assert not any(p.is_inference() for p in own.model.parameters())


# --- bad input ---


def error(host, layer=None, scene=one_ball, **values):
    return host.error_of({**scene(**(layer or {})), "l": learn(**values)})


@pytest.mark.parametrize(
    ("layer", "values", "said"),
    [
        ({"prompt": ""}, {"which": "ball"}, "layer 'ball': words is ''"),
        ({"prompt": ""}, {}, "no layer can be learnt from"),
        ({"visible": False}, {"which": "ball"}, "layer 'ball': visible is False"),
        ({"x": 125}, {}, "layer 'ball': visible area"),
        ({"prompt": "ball " * 41}, {}, "layer 'ball': number of words is 41"),
        ({"prompt": "embedding:nosuch ball"}, {}, "layer 'ball': embedding is 'nosuch'"),
        ({}, {"which": "star"}, "layer to select is 'star'; allowed: 'ball'"),
        ({}, {"name": "a/b"}, "layer 'ball': name of its word is 'a/b'"),
        ({}, {"name": "a b"}, "layer 'ball': name of its word is 'a b'"),
        ({}, {"name": "ball"}, "layer 'ball': name of its word is 'ball'; allowed: a name that is no word already"),
        ({}, {"name": "krk, krk2"}, "name: number of names is 2; allowed: 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_is_named_before_anything_is_trained(
    host, folder, pack, monkeypatch, layer, values, said
):
    monkeypatch.setattr(pack("nodes.learning.learn_words"), "learn", None)
    assert error(host, layer, **values).startswith(said)


def test_a_layer_without_a_picture_is_named(host, folder):
    box = {**LOADER, "a": from_image(name="box", prompt="a ball", width=64, height=64)}
    text = host.error_of({**box, "l": learn(which="box")})
    assert text.startswith("layer 'box' has no picture to learn from")


@pytest.mark.parametrize(
    "values", [{"steps": -1}, {"batch": 0}, {"vectors": 5}, {"rate": 0.0}, {"form": "x"}]
)
def test_values_out_of_range_are_refused(host, folder, values):
    assert next(iter(values)) in error(host, **values)


def test_transformers_are_refused_with_a_way_out(host, folder):
    flux = {"loader": node("LD_LoadDemoModel", network="transformer")}
    text = host.error_of({**one_ball(), **flux, "l": learn()})
    assert text.startswith("model: to learn words with is 'Flux'; allowed: Stable Diffusion 1.x, 2.x or XL")
    assert "Train LoRA" in text


def test_encoders_of_sentences_are_refused_with_a_way_out(host, pack):
    class Encoder:
        def tokenize(self, text):
            return {"t5xxl": [[]]}

    check = pack("nodes.learning.learn_words").check_learnable
    with pytest.raises(
        pack("layered_core.errors").LayeredError, match="clip: to learn words with is 't5xxl'.*LoRA"
    ):
        check(host.value(LOADER, "loader", 0), Encoder())


def test_quantised_weights_are_refused_with_a_way_out(host, pack):
    check = pack("nodes.learning.learn_words").check_learnable
    model, clip = (host.value(LOADER, "loader", i) for i in range(2))
    with torch.inference_mode(False):
        own = pack("nodes.learning.copies").copied_model(model)
    linear = own.model.diffusion_model.time_embed[0]
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    said = "model: weights is 'quantised \\(float8_e4m3fn\\)'; allowed: float32.*Train a LoRA"
    with pytest.raises(pack("layered_core.errors").LayeredError, match=said):
        check(own, clip)
