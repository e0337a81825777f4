"""LoRAs and embeddings are read from the folder that the user named, whatever a recipe says."""

import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from layered_core.document import Lora, Recipe
from layered_core.errors import LayeredError
from layered_diffusers.models.adapters import adapted


class Model:
    """Notes which files it is told to load."""

    def __init__(self):
        self.loaded = []
        self.tokenizer, self.vocabulary = self, {}

    def get_added_vocab(self):
        return dict(self.vocabulary)

    def load_textual_inversion(self, folder, weight_name, token):
        self.loaded.append(os.path.realpath(folder / weight_name))
        self.vocabulary[token] = len(self.vocabulary)

    def unload_textual_inversion(self, tokens):
        for token in tokens:
            del self.vocabulary[token]


@pytest.fixture
def folders(tmp_path):
    own, secret = tmp_path / "own", tmp_path / "secret"
    for folder in (own, secret):
        folder.mkdir()
        save_file({"emb_params": torch.zeros(1, 4)}, folder / "evil.safetensors")
    return own, secret


def forged(name):
    """Return a recipe that names an embedding as no document can."""
    recipe = Recipe()
    object.__setattr__(recipe, "embedding", name)
    return recipe


def test_an_embedding_of_the_folder_is_loaded_with_and_without_its_ending(folders):
    own, _ = folders
    for name in ("evil", "evil.safetensors"):
        model = Model()
        with adapted(model, Recipe(embedding=name), own) as words:
            assert words == "<evil> "
        assert model.vocabulary == {}
        assert model.loaded == [str((own / "evil.safetensors").resolve())]


@pytest.mark.parametrize("name", ["../secret/evil", "{secret}/evil", "{secret}/evil.safetensors", "sub/evil"])
def test_no_file_outside_the_folder_is_read_even_if_a_recipe_names_it(folders, name):
    own, secret = folders
    (own / "sub").symlink_to(secret)
    model = Model()
    with (
        pytest.raises(LayeredError, match=r"LoRA or embedding is .*copy the file into it"),
        adapted(model, forged(name.format(secret=secret)), own),
    ):
        pass
    assert model.loaded == []


def test_a_link_out_of_the_folder_is_not_followed(folders):
    own, secret = folders
    (own / "link.safetensors").symlink_to(secret / "evil.safetensors")
    with (
        pytest.raises(LayeredError, match="'link'.*copy the file"),
        adapted(Model(), Recipe(embedding="link"), own),
    ):
        pass


def test_links_in_a_circle_and_impossible_names_are_named(folders):
    own, _ = folders
    (own / "loop.safetensors").symlink_to(own / "loop.safetensors")
    for name in ("loop", "n" * 250):
        with (
            pytest.raises(LayeredError, match=f"LoRA or embedding is '{name[:30]}"),
            adapted(Model(), Recipe(embedding=name), own),
        ):
            pass


@pytest.mark.parametrize("field", ["embedding", "lora.name"])
@pytest.mark.parametrize("name", ["../secret/evil", "/evil", "a/../b", "a\\b", ".hidden", "..", 5])
def test_a_recipe_names_no_files_outside_the_hosts_folder(field, name):
    with pytest.raises(LayeredError, match=rf"^{field} is .*allowed: a "):
        Recipe(embedding=name) if field == "embedding" else Recipe(loras=(Lora(name),))


def test_only_a_lora_may_lie_in_a_folder_below():
    assert Lora("people/anna").name == "people/anna"
    with pytest.raises(LayeredError, match="without folder"):
        Recipe(embedding="people/anna")


def test_names_that_hosts_list_are_allowed():
    for name in ("easynegative", "bad hands v4.pt", "Öl (1)", None, ""):
        assert replace(Recipe(), embedding=name).embedding == name


def test_a_file_without_tensors_is_refused(folders):
    own, _ = folders
    save_file({}, own / "none.safetensors")
    with (
        pytest.raises(LayeredError, match=r"file 'none.safetensors' has no tensors"),
        adapted(Model(), Recipe(embedding="none"), own),
    ):
        pass
