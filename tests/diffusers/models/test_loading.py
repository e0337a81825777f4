"""Models on disk: errors name missing and broken files before anything is loaded."""

import json
import shutil
import socket

import pytest
import torch
from diffusers import StableDiffusionPipeline

from layered_core.errors import LayeredError
from layered_diffusers.models.loading import STORYBOOK, check_model, find_model, load_model
from layered_diffusers.pipeline import LayeredDiffusionPipeline

CPU = torch.device("cpu")


@pytest.fixture
def broken(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(STORYBOOK, folder)
    return folder


def test_the_shipped_model_is_whole_and_small():
    check_model(STORYBOOK)
    sizes = {f.relative_to(STORYBOOK).parts[0]: 0 for f in STORYBOOK.rglob("*.safetensors")}
    for file in STORYBOOK.rglob("*.safetensors"):
        sizes[file.relative_to(STORYBOOK).parts[0]] += file.stat().st_size
    assert sizes.pop("controlnet") <= 8e6
    several = (STORYBOOK / "transparent" / "joint_layers.safetensors").stat().st_size
    assert several <= 5e6
    assert sizes.pop("transparent") - several <= 10e6
    assert sizes.pop("transformer", 0) <= 12e6
    assert sizes.pop("loras") <= 2e6
    assert sum(sizes.values()) <= 25e6


def test_the_shipped_model_is_an_ordinary_diffusers_model():
    model = StableDiffusionPipeline.from_pretrained(STORYBOOK, local_files_only=True)
    assert model.unet.config.in_channels == model.vae.config.latent_channels == 4
    assert model.tokenizer.model_max_length == 77
    assert model.tokenizer("a photo of a cat")["input_ids"] == [
        49406,
        320,
        1125,
        539,
        320,
        2368,
        49407,
    ]  # the token ids of Stable Diffusion 1.5
    assert model.text_encoder.config.vocab_size == 49408
    assert model.scheduler.config.beta_start == 0.00085
    assert model.scheduler.config.beta_schedule == "scaled_linear"


def test_words_the_storybook_does_not_know_share_one_vector():
    table = load_model(None, CPU, torch.float32).text_encoder.get_input_embeddings().weight
    known = {736, 1069}  # red, ball
    assert torch.equal(table[2368], table[1125])
    assert not any(torch.equal(table[2368], table[i]) for i in known)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_missing_weight_file_is_named(broken, part):
    for file in (broken / part).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(LayeredError, match=rf"model.{part}.\*.safetensors' is missing"):
        LayeredDiffusionPipeline.from_pretrained(broken)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_cut_weight_file_is_named(broken, part):
    (file,) = (broken / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LayeredError, match=file.name) as caught:
        LayeredDiffusionPipeline.from_pretrained(broken)
    assert "is broken" in str(caught.value)
    assert "again" in str(caught.value)


def test_pickled_weights_are_refused_with_a_hint(broken):
    (file,) = (broken / "unet").glob("*.safetensors")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(LayeredError, match="is a pickle, which is not loaded: convert it to safetensors"):
        LayeredDiffusionPipeline.from_pretrained(broken)


def test_weights_of_another_shape_are_named(broken):
    path = broken / "unet" / "config.json"
    config = json.loads(path.read_text())
    config["cross_attention_dim"] = 32
    path.write_text(json.dumps(config))
    with pytest.raises(LayeredError, match="cannot be loaded"):
        LayeredDiffusionPipeline.from_pretrained(broken)


def test_the_hint_for_the_shipped_model_says_how_to_restore_it(monkeypatch, broken):
    monkeypatch.setattr("layered_diffusers.models.loading.STORYBOOK", broken)
    (broken / "model_index.json").unlink()
    with pytest.raises(LayeredError, match="git checkout -- demo/model"):
        check_model(broken)


def test_a_model_that_is_not_on_disk_is_an_error_at_once_and_without_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(LayeredError, match="Nothing is downloaded at run time"):
        find_model("stable-diffusion-v1-5/stable-diffusion-v1-5")


def test_a_single_file_is_refused_with_the_command_that_makes_a_folder_of_it(tmp_path):
    file = tmp_path / "sd_xl.safetensors"
    file.touch()
    with pytest.raises(LayeredError, match="not a single file") as error:
        find_model(file)
    assert f"P.from_single_file('{file}').save_pretrained('{tmp_path / 'sd_xl'}')" in str(error.value)


def test_a_model_of_another_family_is_named(broken):
    path = broken / "model_index.json"
    index = json.loads(path.read_text())
    index["_class_name"] = "StableDiffusionImg2ImgPipeline"
    path.write_text(json.dumps(index))
    with pytest.raises(
        LayeredError,
        match="model family is 'StableDiffusionImg2ImgPipeline'; allowed: StableDiffusionPipeline",
    ):
        LayeredDiffusionPipeline.from_pretrained(broken)
