"""The network of layers made at once: with one layer it is LayerDiffuse's joint generator to the bit; layers are told
apart by their depth alone; what is absent is seen by nobody."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from demo.world.places import TRANSPARENT
from layered_core.attention.cross_attention import plain
from layered_core.errors import LayeredError
from layered_core.joint.enhancer import PromptEnhancer
from layered_core.joint.frames import MOST_LAYERS, SceneFrames
from layered_core.joint.network import JointNetwork, JointUnit, LayersAtOnce
from layered_core.transparency.layer_diffuse_frames import AttentionSharing, Base

HEADS, WIDTH, TEXT, POSITIONS = 2, 8, 6, 5


def random_unit(crossed, seed=0):
    torch.manual_seed(seed)
    context = TEXT if crossed else WIDTH
    unit = JointUnit(WIDTH, context, 4)
    for parameter in unit.parameters():
        nn.init.normal_(parameter, std=0.3)
    base = {
        p: nn.Linear(context if p in "kv" else WIDTH, WIDTH, bias=p == "out") for p in ("q", "k", "v", "out")
    }
    return unit.requires_grad_(False), Base(**base, attend=plain(HEADS))


def rows(scene, scenes, crossed, seed=1):
    torch.manual_seed(seed)
    h = torch.randn(scenes * scene.frames, POSITIONS, WIDTH)
    return h, [torch.randn(scenes, 7, TEXT) for _ in range(scene.frames)] if crossed else None


def by_scene(x, scene):
    return x.unflatten(0, (-1, scene.frames))


@pytest.fixture(scope="module")
def shipped():
    return load_file(TRANSPARENT / "joint.safetensors")


def test_one_layer_computes_what_the_joint_generator_does_bit_for_bit(shipped):
    sharing = AttentionSharing.from_weights(shipped, "joint").float()
    network = JointNetwork.from_sharing(sharing)
    at_once = LayersAtOnce(network, SceneFrames(1))
    torch.manual_seed(0)
    for i, (old, new) in enumerate(zip(sharing.units, at_once.units, strict=True)):
        width, context = old.widths
        base = {p: nn.Linear(context if p in "kv" else width, width) for p in ("q", "k", "v", "out")}
        h = torch.randn(6, 16, width)
        contexts = [torch.randn(2, 7, context) for _ in range(3)] if i % 2 else None
        before = old(h, contexts, Base(**base, attend=plain(HEADS)), None, 0.7)
        after = new(h, contexts and at_once.texts(contexts), Base(**base, attend=plain(HEADS)), None, 0.7)
        assert torch.equal(before, after)
        assert bool((before != 0).any())


@pytest.mark.parametrize("crossed", [False, True])
def test_without_depth_exchanged_layers_give_exchanged_outputs(crossed):
    unit, base = random_unit(crossed)
    scene = SceneFrames(3)
    h, contexts = rows(scene, 2, crossed)
    order = [2, 0, 1, 3, 4]
    moved = by_scene(h, scene)[:, order].flatten(0, 1)
    told = contexts and [contexts[i] for i in order]
    with_depth = [by_scene(unit.run(*x, base, scene), scene) for x in ((h, contexts), (moved, told))]
    assert not torch.allclose(with_depth[0][:, order], with_depth[1], atol=1e-3)
    unit.depth[-1].weight.zero_()
    plainly, exchanged = (by_scene(unit.run(*x, base, scene), scene) for x in ((h, contexts), (moved, told)))
    assert torch.allclose(plainly[:, order], exchanged, atol=1e-6)


@pytest.mark.parametrize("crossed", [False, True])
def test_a_scene_padded_to_more_layers_is_the_same(crossed):
    unit, base = random_unit(crossed)
    small, padded = SceneFrames(1), SceneFrames(3, (1, 3))
    h, contexts = rows(small, 1, crossed)
    others, their = rows(SceneFrames(3), 2, crossed, seed=5)
    large, texts = by_scene(others, padded).clone(), their
    large[0, [0, 3, 4]] = h
    if crossed:
        for place, words in zip((0, 3, 4), contexts, strict=True):
            texts[place][0] = words[0]
    alone = unit.run(h, contexts, base, small)
    together = by_scene(unit.run(large.flatten(0, 1), texts, base, padded), padded)
    assert torch.allclose(together[0, [0, 3, 4]], alone, atol=1e-6)
    full = unit.run(others[5:], their and [w[1:] for w in their], base, SceneFrames(3))
    assert torch.allclose(together[1], full, atol=1e-6)


@pytest.mark.parametrize("strange", [1e30, float("inf"), float("nan")])
def test_nothing_in_an_absent_frame_reaches_the_others(strange):
    unit, base = random_unit(crossed=False)
    scene = SceneFrames(2, (1,))
    h, _ = rows(scene, 2, crossed=False)
    planted = by_scene(h, scene).clone()
    planted[:, 1] = strange
    there = [0, 2, 3]
    before, after = (by_scene(unit.run(x, None, base, scene), scene) for x in (h, planted.flatten(0, 1)))
    assert torch.equal(before[:, there], after[:, there])
    present = by_scene(unit.run(planted.flatten(0, 1), None, base, SceneFrames(2)), scene)
    assert not torch.equal(before[:, there], present[:, there])


def test_a_new_enhancer_is_the_identity_and_at_0_every_enhancer_is():
    torch.manual_seed(0)
    words, scene = torch.randn(2, 7, TEXT), torch.randn(2, 9, TEXT)
    enhancer = PromptEnhancer(TEXT)
    assert torch.equal(enhancer(words, scene), words)
    nn.init.normal_(enhancer.o.weight)
    assert torch.equal(enhancer(words, scene, 0.0), words)
    full, half = enhancer(words, scene), enhancer(words, scene, 0.5)
    assert torch.allclose(half - words, (full - words) / 2, atol=1e-6)
    assert not torch.allclose(full, words, atol=0.1)


def test_the_enhancer_changes_the_layers_texts_alone_and_by_the_scenes_words():
    torch.manual_seed(0)
    enhancer = PromptEnhancer(TEXT)
    nn.init.normal_(enhancer.o.weight)
    network, scene = JointNetwork([], enhancer), SceneFrames(2)
    contexts = [torch.randn(1, 7, TEXT) for _ in range(4)]
    texts = network.texts(contexts, scene)
    assert torch.equal(texts[1], enhancer(contexts[1], contexts[3]))
    assert texts[2] is contexts[2]
    assert texts[3] is contexts[3]
    assert all(a is b for a, b in zip(network.texts(contexts, scene, enhance=0.0), contexts, strict=True))


def test_gradients_reach_the_network_and_nothing_else():
    torch.manual_seed(0)
    units = [JointUnit(WIDTH, WIDTH, 4), JointUnit(WIDTH, TEXT, 4)]
    network = JointNetwork(units, PromptEnhancer(TEXT))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    at_once = LayersAtOnce(network, SceneFrames(2))
    h, contexts = rows(at_once.scene, 2, crossed=True)
    bases = []
    for unit, words in zip(at_once.units, (None, at_once.texts(contexts)), strict=True):
        base = {
            p: nn.Linear(TEXT if words and p in "kv" else WIDTH, WIDTH).requires_grad_(False)
            for p in ("q", "k", "v", "out")
        }
        bases += base.values()
        h = unit(h, words, Base(**base, attend=plain(HEADS)))
    h.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
    assert all(p.grad is None for base in bases for p in base.parameters())
    assert "trained_layers" not in dict(network.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((0,), "layers: number is 0"),
        ((MOST_LAYERS + 1,), f"allowed: a whole number 1..{MOST_LAYERS}"),
        ((2, (3,)), "layers of a scene: number is 3"),
    ],
)
def test_numbers_of_layers_that_cannot_be_are_named(arguments, told):
    with pytest.raises(LayeredError, match=told):
        SceneFrames(*arguments)


def test_counts_that_do_not_fit_the_batch_are_named():
    with pytest.raises(LayeredError, match="scenes in the batch is 3; allowed: a multiple of 2"):
        SceneFrames(2, (1, 2)).absent(3)


def test_names_roles_and_absent_frames_follow_the_order_of_the_rows():
    scene = SceneFrames(3, (1, 3))
    assert scene.names == ("layer 1", "layer 2", "layer 3", "background", "blend")
    assert scene.roles == (0, 0, 0, 1, 2)
    assert scene.absent(4).int().tolist() == [[0, 1, 1, 0, 0], [0] * 5] * 2
    assert SceneFrames(3).absent(2) is None
    assert torch.allclose(scene.depths(2)[0, 0], SceneFrames(1).depths(1)[0, 0])
    assert torch.allclose(scene.depths(2)[1], SceneFrames(3).depths(1)[0])
