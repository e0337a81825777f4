"""A layer's LoRA is found among ComfyUI's files by its name."""

from pathlib import Path

import folder_paths
import pytest


@pytest.fixture
def find(pack):
    """Return ``lora_file`` in a ComfyUI with some LoRAs, two of which have the same name."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    for file in (
        "ink.v2.safetensors",
        "people/anna.safetensors",
        "people/own.safetensors",
        "things/own.safetensors",
    ):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    folder_paths.cache_helper.clear()
    return pack("nodes.layers.lora_files").lora_file


@pytest.mark.parametrize(
    "name", ["people/anna.safetensors", "people/anna", "people\\anna.safetensors", "anna.safetensors", "anna"]
)
def test_a_lora_is_found_with_and_without_its_folder_and_ending(find, name):
    assert Path(find("anna", name)) == Path("people/anna.safetensors")


def test_a_dot_in_a_name_begins_no_ending(find):
    assert find("a", "ink.v2") == find("a", "ink.v2.safetensors") == "ink.v2.safetensors"


def test_a_lora_that_is_not_there_is_named_with_its_layer_and_those_there_are(find, pack):
    with pytest.raises(
        pack("layered_core.errors").LayeredError,
        match=r"layer 'anna': LoRA is 'ana'; allowed: .*people/anna.safetensors.*models/loras",
    ):
        find("anna", "ana")


def test_a_name_that_two_files_have_needs_its_folder(find, pack):
    assert Path(find("ball", "things/own")) == Path("things/own.safetensors")
    with pytest.raises(
        pack("layered_core.errors").LayeredError,
        match=r"'own'; allowed: people/own.safetensors, things/own.safetensors. Write the folder too",
    ):
        find("ball", "own")


def test_downloads_go_on_to_the_users_folder(find):
    assert Path(folder_paths.get_folder_paths("loras")[0]).parent == Path(folder_paths.models_dir)
