"""A LoRA trained from a layer with ComfyUI's own nodes."""

from pathlib import Path

import comfy.sd
import comfy_extras.nodes_train
import folder_paths
import pytest
import safetensors.torch
import torch
from graph import from_image, node
from learning_scene import one_ball, train_lora, training_data
from regional_scene import WORDS, apply, everywhere, predicted
from sampling import LOADER


@pytest.fixture
def files():
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    yield folder
    for file in set(folder.iterdir()) - before:
        file.unlink()


def test_the_first_picture_is_the_layer_as_it_is_and_the_others_show_it_elsewhere(host, pack):
    prompt = {**one_ball(), "d": training_data(count=5)}
    pictures, positive = host.value(prompt, "d", 3), host.value(prompt, "d", 2)
    document = pack("nodes.layers.socket").read_stack(host.value(prompt, "a", 0))
    grey = pack("layered_core.canvas.compositing")
    lone = document.__class__(128, 128, document.layers, grey.GREY)
    assert torch.allclose(pictures[0], grey.flat(lone).permute(1, 2, 0), atol=1e-6)
    assert len({p.numpy().tobytes() for p in pictures}) == 5
    areas = [float(entry[1]["layered_diffusion_training"].mask.sum()) for entry in positive]
    assert all(0.4 * areas[0] < area < 1.1 * areas[0] for area in areas)


def test_the_same_seed_gives_the_same_places(host):
    first, again, other = (
        host.value({**one_ball(), "d": training_data(seed=seed)}, "d", 3) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_train_lora_learns_only_what_lies_inside_the_layer(host, monkeypatch):
    seen = []

    class Watched(torch.nn.MSELoss):
        def forward(self, said, wanted):
            seen.append((said.detach(), wanted.detach()))
            return super().forward(said, wanted)

    monkeypatch.setattr(comfy_extras.nodes_train, "_create_loss_function", lambda name: Watched())
    prompt = {**one_ball(), "d": training_data(count=1, context="composite"), "t": train_lora()}
    lora = host.value(prompt, "t", 0)
    (entry,) = host.value(prompt, "d", 2)
    mask = entry[1]["layered_diffusion_training"].mask[:, None].expand(1, 4, 16, 16)
    for said, wanted in seen:
        assert torch.equal(said[mask == 0], wanted[mask == 0])
        assert float((said - wanted)[mask == 1].abs().mean()) > 0.01
    assert any(
        float(tensor.abs().sum()) > 0 for key, tensor in lora.items() if key.endswith("lora_down.weight")
    )


def test_unmasked_data_pass_the_model_on_as_it_is(host):
    prompt = {**one_ball(), "d": training_data(masked=False)}
    assert host.value(prompt, "d", 0) is host.value(prompt, "loader", 0)


def test_the_trained_lora_is_saved_and_stands_in_the_recipe_of_its_layer_alone(host, pack, files):
    prompt = {
        **one_ball(), "d": training_data(count=1), "t": train_lora(steps=1),
        "b": from_image(name="other", prompt="a tree", width=16, height=16),
        "s": node("LD_SaveLayerLora", layers=["b", 0], layer="ball", lora=["t", 0], name="odd-ball", strength=0.7,
            overwrite=False),
    }  # fmt: skip
    prompt["b"]["inputs"]["layers"] = ["a", 0]
    ball, other = pack("nodes.layers.socket").read_stack(host.value(prompt, "s", 0))
    assert [(x.name, x.strength) for x in ball.recipe.loras] == [("odd-ball.safetensors", 0.7)]
    assert not other.recipe.loras
    written = safetensors.torch.load_file(files / "odd-ball.safetensors")
    trained = host.value(prompt, "t", 0)
    assert written.keys() == trained.keys()
    assert all(torch.equal(written[key], trained[key]) for key in written)


def test_on_a_layer_over_the_whole_picture_it_is_cores_lora_norms_included(host, regions, files):
    prompt = {**one_ball(), "d": training_data(count=1), "t": train_lora(steps=4, learning_rate=0.05)}
    lora, model, clip = (
        host.value(prompt, "t", 0),
        host.value(LOADER, "loader", 0),
        host.value(LOADER, "loader", 1),
    )
    assert any(key.endswith("out.0.diff") for key in lora)  # a GroupNorm
    safetensors.torch.save_file({k: v.contiguous() for k, v in lora.items()}, files / "odd.safetensors")
    folder_paths.cache_helper.clear()
    folder_paths.filename_list_cache.clear()
    recipe = regions.document.Recipe(loras=(regions.document.Lora("odd"),))
    stack = everywhere(regions, recipe=recipe)
    ours = predicted(*apply(regions, model, clip, stack, prompt=WORDS))
    whole, _ = comfy.sd.load_bypass_lora_for_models(model, None, lora, 1.0, 0)
    plain = everywhere(regions)
    cores = predicted(*apply(regions, whole, clip, plain, prompt=WORDS))
    without = predicted(*apply(regions, model, clip, plain, prompt=WORDS))
    for own, core, off in zip(ours[1:], cores[1:], without[1:], strict=True):
        assert float((core - off).abs().mean()) > 0.01
        assert float((own - core).abs().max()) < 1e-3 * float((core - off).abs().max())


def test_a_second_lora_of_a_name_gets_a_number_unless_it_may_overwrite(pack, files, host):
    saving = pack("nodes.learning.save_layer_lora").SaveLayerLora
    stack = host.value(one_ball(), "a", 0)
    lora = {"diffusion_model.x.lora_up.weight": torch.zeros(2, 2)}
    names = [saving.execute(stack, "ball", lora, "odd", 1.0, more).result[1] for more in (False, False, True)]
    assert names == ["odd.safetensors", "odd-2.safetensors", "odd.safetensors"]
    for strength in (1.0, 0.5):
        stack = saving.execute(stack, "ball", lora, "odd", strength, True).result[0]
    recipe = pack("nodes.layers.socket").read_stack(stack).layers[0].recipe
    assert [(x.name, x.strength) for x in recipe.loras] == [("odd.safetensors", 0.5)]


@pytest.mark.parametrize(
    ("layer", "values", "said"),
    [
        ({}, {"layer": "star"}, "layer name is 'star'; allowed: 'ball'"),
        ({"prompt": ""}, {}, "layer 'ball': words is ''"),
        ({"visible": False}, {}, "layer 'ball': visible is False"),
        ({"x": 125}, {}, "layer 'ball': visible area"),
    ],
)
def test_a_layer_that_cannot_be_learnt_from_is_named(host, layer, values, said):
    prompt = {**one_ball(**layer), "d": training_data(**values)}
    assert said in host.error_of({**prompt, "end": node("TestCatch", value=["d", 0])})


@pytest.mark.parametrize("name", ["", "a/b", "a b", "../a", "x" * 65])
def test_odd_names_of_a_file_are_refused(host, pack, files, name):
    before = set(files.rglob("*"))
    with pytest.raises(pack("layered_core.errors").LayeredError, match="^name is"):
        pack("nodes.learning.save_layer_lora").SaveLayerLora.execute(
            host.value(one_ball(), "a", 0), "ball", {"a": torch.zeros(1)}, name, 1.0, False
        )
    assert set(files.rglob("*")) == before
