"""What the network for several layers is trained on: places, words and shares of drawn layers, and its objective."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from demo.train.diffusion import Objective
from demo.train.joint_layers import CONSISTENT_BELOW, inconsistency, new_network
from demo.train.layered_scenes import OVERLAP, Batch, boxes, draw_layers, frame_words, seen, weakened
from demo.train.tokenizer import END, START
from demo.train.words import encode, pad, word_ids
from demo.world.places import MODEL, TRANSPARENT
from demo.world.vocabulary import CANVAS, Thing
from layered_core.canvas.masks import visible_masks

BALL, GLASS, STAR = (
    Thing("solid", "red", "ball"),
    Thing("glass", "blue", "ball"),
    Thing("glass", "blue", "star"),
)


@pytest.fixture(scope="module")
def ids():
    return word_ids(MODEL / "tokenizer")


def overlap(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_boxes_lie_on_the_canvas_apart_or_one_pair_overlapping(count):
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(40):
        found = boxes(rng, count)
        assert all(min(x, y) >= 2 and max(x + w, y + h) <= CANVAS - 2 for x, y, w, h in found)
        shared = sorted(overlap(a, b) for i, a in enumerate(found) for b in found[i + 1 :])
        kinds.add(OVERLAP[0] <= shared[-1] <= OVERLAP[1])
        assert shared[-1] <= 0.03 or OVERLAP[0] <= shared[-1] <= OVERLAP[1]
        assert all(x <= 0.03 for x in shared[:-1])
    assert kinds == {True, False}


def test_layers_are_whole_differ_in_kind_or_colour_and_make_the_blend():
    rng = np.random.default_rng(1)
    for count in (1, 2, 3, 4):
        scene = draw_layers(rng, count)
        assert len({t[1:] for t in scene.things}) == len(scene.sprites) == count
        alpha = torch.from_numpy(np.stack([s[..., 3] for s in scene.sprites])).float() / 255
        shares = seen(alpha)
        assert torch.allclose(shares.sum(0), torch.ones(CANVAS, CANVAS), atol=1e-5)
        assert torch.allclose(shares[:-1], visible_masks(alpha)[0], atol=1e-5)
        colours = np.stack([*(s[..., :3] for s in scene.sprites), scene.background]).astype(np.float32)
        flat = (shares[..., None].numpy() * colours).sum(0)
        assert np.abs(flat - scene.blend()).max() <= count + 1


def test_weak_words_leave_out_only_what_the_scenes_words_say_of_one_thing():
    rng = np.random.default_rng(2)
    said = {weakened(rng, STAR, [BALL, STAR]) for _ in range(60)}
    assert said == {"a star", "a blue star", "a glass star"}
    assert {weakened(rng, BALL, [BALL, STAR]) for _ in range(60)} == {"a ball", "a red ball"}
    assert {weakened(rng, BALL, [BALL, GLASS]) for _ in range(60)} == {"a red ball"}


def test_each_frame_has_its_own_words_usually_and_nouns_are_found_in_the_scenes(ids):
    rng = np.random.default_rng(3)
    own = [pad(encode(t.words, ids)) for t in (BALL, STAR)]
    empty, common, strong = 0, 0, 0
    for _ in range(200):
        rows, nouns = frame_words(rng, "sea", [BALL, STAR], ids)
        assert [len(r) for r in rows] == [77] * 4
        assert all(r[0] == START and r[-1] == END for r in rows)
        if rows[3] == pad([]):
            assert nouns == [0, 0]
            empty += 1
            continue
        assert [rows[3][n] for n in nouns] == [ids["ball"], ids["star"]]
        common += rows[0] == rows[1] == rows[2] == rows[3]
        strong += rows[:2] == own
    assert 8 <= empty <= 35
    assert 8 <= common <= 35
    assert 90 <= strong <= 160


def test_the_new_network_is_the_joint_generator_and_an_enhancer_and_all_of_it_learns():
    network = new_network(TRANSPARENT / "joint.safetensors")
    before = load_file(TRANSPARENT / "joint.safetensors")
    state = network.state_dict()
    for key, value in before.items():
        assert torch.equal(state[key.removeprefix("hookers.")].half(), value)
    assert not network.enhancer.o.weight.any()
    assert all(p.requires_grad for p in network.parameters())


def test_the_composite_agrees_with_the_blend_where_every_frame_is_right_or_wrong_alike():
    objective = Objective()
    torch.manual_seed(0)
    latents = torch.randn(8, 4, 16, 16)
    shares = torch.zeros(2, 3, 16, 16)
    shares[:, 0, :8], shares[:, 2, 8:] = 1, 1
    batch = Batch(latents, torch.zeros(8, 77), torch.zeros(2, 2, 16, 16), torch.zeros(2, 2), shares)
    noised = objective.noised(latents, 4)
    low, high = (
        noised._replace(t=torch.full((8,), t)) for t in (CONSISTENT_BELOW - 100, CONSISTENT_BELOW + 1)
    )
    alpha = objective.alphas[low.t].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    low = low._replace(noisy=alpha.sqrt() * latents + (1 - alpha).sqrt() * noise)
    right = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    assert float(inconsistency(objective, right, low, batch)) < 1e-8
    assert float(inconsistency(objective, right + 0.3, low, batch)) < 1e-8
    wrong = right.clone()
    wrong[::4] += 0.3
    assert float(inconsistency(objective, wrong, low, batch)) > 1e-3
    wrong = right.clone()
    wrong[1::4] += 0.3
    assert float(inconsistency(objective, wrong, low, batch)) < 1e-8, "the second layer is not seen"
    assert float(inconsistency(objective, torch.randn_like(right), high, batch)) == 0.0
