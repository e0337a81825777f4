"""The published LayerDiffuse files: their table, and the errors for missing, truncated and pickled ones."""

import pytest
import torch
from safetensors.torch import save_file

from layered_core.errors import LayeredError
from layered_core.transparency.layer_diffuse_files import (
    FAMILIES,
    FILES,
    TASKS,
    missing_file,
    mode_of,
    offset_scale_of,
    published,
    published_for,
    read_layer_model_file,
)


def test_every_file_is_named_once_with_its_source_size_base_model_and_task():
    assert len({f.name for f in FILES}) == len(FILES) == 24
    for file in FILES:
        assert file.name.endswith(".safetensors")
        assert file.repository.count("/") == 1
        assert file.megabytes > 1
        assert file.family in FAMILIES
        assert file.task in TASKS


def test_the_size_of_a_file_is_that_of_its_tensors_in_half_precision():
    # 560 linear layers of attention with rank 256; UNet1024; nine convolutions.
    parameters = {
        "layer_xl_transparent_attn": 371.6e6,
        "vae_transparent_decoder": 104_104_804,
        "vae_transparent_encoder": 1_181_764,
    }
    for name, count in parameters.items():
        assert published(f"{name}.safetensors").megabytes == pytest.approx(2 * count / 1e6, rel=0.01)


def test_only_the_diffusers_encoder_has_the_offset_scale_300():
    assert {f.name: f.offset_scale for f in FILES if f.offset_scale != 1} == {
        "ld_diffusers_sdxl_vae_transparent_encoder.safetensors": 300
    }


def test_a_file_is_known_in_any_folder_and_one_of_the_users_own_is_not():
    assert published("sdxl/layer_xl_fg2ble.safetensors").task == "fg2ble"
    assert published("mine.safetensors") is None
    assert {f.name for f in published_for("joint")} == {"layer_sd15_joint.safetensors"}
    with pytest.raises(LayeredError, match="task"):
        published_for("nothing")


def test_a_missing_file_is_named_with_its_source_its_size_and_its_folder(tmp_path):
    with pytest.raises(LayeredError) as error:
        read_layer_model_file(tmp_path / "layer_xl_transparent_conv.safetensors")
    for part in (
        "layer_xl_transparent_conv.safetensors",
        "3.62 GB",
        "SDXL",
        "https://huggingface.co/LayerDiffusion/layerdiffusion-v1",
        str(tmp_path),
    ):
        assert part in str(error.value)
    assert "own.safetensors" in str(missing_file("own.safetensors", tmp_path))


def test_a_pickle_is_refused_unopened_with_the_conversion(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('opened')",))

    torch.save({"x": Bomb()}, tmp_path / "TransparentVAE.pth")
    with pytest.raises(
        LayeredError, match=r"TransparentVAE\.pth.*save_file\(torch\.load\('x\.pth', weights_only=True\)"
    ):
        read_layer_model_file(tmp_path / "TransparentVAE.pth")


@pytest.mark.parametrize("kept", [0, 4, 60, 300])
def test_a_file_cut_anywhere_is_refused_and_its_source_named(tmp_path, kept):
    path = tmp_path / "layer_xl_fg2ble.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(LayeredError, match=r"layer_xl_fg2ble.*cut short.*huggingface\.co/LayerDiffusion"):
        read_layer_model_file(path)


def test_a_whole_file_comes_back_to_the_bit(tmp_path):
    weights = {"a": torch.randn(3, 4), "b": torch.randn(5).half()}
    save_file(weights, tmp_path / "own.safetensors")
    read = read_layer_model_file(tmp_path / "own.safetensors")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in weights.items())


def test_the_offset_scale_is_the_published_files_and_300_for_flux():
    assert offset_scale_of("vae_transparent_encoder.safetensors", 4) == 1
    assert offset_scale_of("ld_diffusers_sdxl_vae_transparent_encoder.safetensors", 4) == 300
    assert offset_scale_of("TransparentVAE.safetensors", 16) == 300
    assert offset_scale_of("mine.safetensors", 4) == 1


def test_a_file_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(LayeredError, match=r"file 'none.safetensors' has no tensors\. Copy it again"):
        read_layer_model_file(tmp_path / "none.safetensors")


def test_one_mode_makes_several_foregrounds_and_the_others_say_which():
    joint = mode_of("foreground, background and blend")
    assert joint.makes() == ("foreground", "background", "blend")
    assert joint.makes(3) == ("foreground",) * 3 + ("background", "blend")
    assert mode_of("background to foreground and blend").makes() == ("foreground", "blend")
    with pytest.raises(LayeredError, match="layer count is 2; allowed: 1 in the mode 'transparent layer'"):
        mode_of("transparent layer").makes(2)
