"""Files of joint networks: the own format comes back as written, older files are read as one layer, and what is wrong
with a file is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.world.places import TRANSPARENT
from layered_core.errors import LayeredError
from layered_core.joint.enhancer import PromptEnhancer
from layered_core.joint.frames import SceneFrames
from layered_core.joint.joint_files import fitting_joint, is_joint, read_joint, untrained
from layered_core.joint.network import JointNetwork, JointUnit

PUBLISHED = json.loads((Path(__file__).parents[2] / "data" / "sd15_attention_sharing_keys.json").read_text())
MODULES = [(8, 8), (8, 6)]


@pytest.fixture
def weights():
    torch.manual_seed(0)
    network = JointNetwork([JointUnit(w, c, 4) for w, c in MODULES], PromptEnhancer(6), trained_layers=3)
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in network.state_dict().items()}


def test_a_file_comes_back_as_it_was_written(weights, tmp_path):
    save_file(weights, tmp_path / "joint_layers.safetensors")
    read = load_file(tmp_path / "joint_layers.safetensors")
    network = fitting_joint(read, MODULES, "joint_layers", "tiny")
    assert is_joint(read)
    assert int(network.trained_layers) == 3
    assert all(torch.equal(v, weights[k]) for k, v in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())


def test_a_missing_role_is_named(weights):
    left = {k: v for k, v in weights.items() if "_lora.1." not in k}
    with pytest.raises(LayeredError, match=r"'cut.safetensors' has no weights for the role 'background'"):
        read_joint(left, "cut.safetensors")


def test_missing_and_strange_tensors_are_listed(weights):
    del weights["layers.1.role"]
    weights["layers.0.other"] = torch.zeros(1)
    with pytest.raises(LayeredError, match=r"missing keys: layers.1.role; unexpected keys: layers.0.other"):
        read_joint(weights, "cut")


def test_files_for_other_things_are_refused():
    with pytest.raises(LayeredError, match="'trained_layers' is missing"):
        read_joint({"blocks.0.weight": torch.zeros(1)}, "encoder")
    shapes = PUBLISHED["layer_sd15_transparent_attn"]
    one = {k: torch.empty(s, device="meta") for k, s in shapes.items()}
    with pytest.raises(LayeredError, match="does not make foreground, background and blend at once"):
        read_joint(one, "layer_sd15_transparent_attn.safetensors")


def test_a_file_for_another_model_is_refused(weights):
    with pytest.raises(LayeredError, match="2 attentions instead of 4"):
        fitting_joint(weights, MODULES * 2, "own", "tiny")
    with pytest.raises(LayeredError, match=r"attention 1 reads \(8, 6\), not \(8, 7\)"):
        fitting_joint(weights, [(8, 8), (8, 7)], "own", "tiny")
    other = {k: v for k, v in weights.items() if not k.startswith("enhancer.")}
    other |= {f"enhancer.{k}": v for k, v in PromptEnhancer(10).state_dict().items()}
    with pytest.raises(LayeredError, match="enhancer reads texts of width 10, not 6"):
        fitting_joint(other, MODULES, "own", "tiny")


def test_the_published_joint_file_is_read_as_one_layer_and_more_are_told_to_be_untrained():
    shapes = PUBLISHED["layer_sd15_joint"]
    published = {k: torch.empty(s, dtype=torch.float16, device="meta") for k, s in shapes.items()}
    sharing_rank = published["hookers.layers.0.to_q_lora.0.down.weight"].shape[0]
    network = read_joint(published, "layer_sd15_joint.safetensors")
    assert len(network.units) == 32
    assert network.units[0].to_q_lora[0].down.weight.shape[0] == sharing_rank
    assert network.enhancer is None
    assert untrained(network, SceneFrames(1), "joint") is None
    told = untrained(network, SceneFrames(2), "layer_sd15_joint.safetensors")
    assert "trained to make 1 layer at once, and 2 are asked for" in told
    own = read_joint(load_file(TRANSPARENT / "joint.safetensors"), "joint.safetensors")
    assert untrained(own, SceneFrames(3), "joint.safetensors") is not None


def test_a_network_trained_for_several_layers_warns_only_beyond_them(weights):
    network = read_joint(weights, "own")
    assert untrained(network, SceneFrames(3), "own") is None
    assert "trained to make 3 layers at once, and 4" in untrained(network, SceneFrames(4), "own")


def test_the_shipped_file_is_small_trained_for_three_layers_and_has_learnt_in_every_part():
    file = TRANSPARENT / "joint_layers.safetensors"
    assert file.stat().st_size <= 5e6
    network = read_joint(load_file(file), file.name)
    assert untrained(network, SceneFrames(3), file.name) is None
    assert untrained(network, SceneFrames(4), file.name) is not None
    assert len(network.units) == 14
    assert bool(network.enhancer.o.weight.any())
    assert all(bool(u.role.any()) and bool(u.depth[-1].weight.any()) for u in network.units)
