"""Attention limited to regions: the gathered result equals the dense one, masks have their meaning, and
faults of the authors' code are not repeated."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layered_core.attention.cross_attention import (
    CLOSED,
    SCHEDULES,
    collage,
    joint,
    paint_with_words,
    plain,
    scores,
    weigh,
    word_push,
    word_shares,
)
from layered_core.attention.tiles import LEAST_WEIGHT, attend_regions, region_weights, tile
from layered_core.canvas.masks import mask_pyramid, visible_masks

HEADS, CHANNELS = 2, 16


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stack(layers, seed, size=(9, 7), canvas=(40, 24)):
    """Return the visible masks of overlapping soft layers, one of them empty, at the size of a feature map,
    ``[L, N]``."""
    generator = torch.Generator().manual_seed(seed)
    alphas = torch.rand(layers, 5, 4, generator=generator)
    alphas = torch.nn.functional.interpolate(((alphas - 0.4) * 4).clamp(0, 1)[None], canvas, mode="nearest")[
        0
    ]
    if layers > 1:
        alphas[layers // 2] = 0
    return mask_pyramid(visible_masks(alphas)[0], [size])[0].flatten(1)


def dense(q, base, weights, keys, values, share=1.0, push=None, amount=0.0):
    """Compute the formula with every region evaluated everywhere."""
    out = base * (1 - share * weights.sum(0))[:, None]
    for i in range(len(weights)):
        k, v = (x[i].expand(len(q), *x[i].shape) for x in (keys, values))
        s = scores(q, k, HEADS)
        if push is not None:
            inside = weights[i] > 0
            peak = s[:, :, inside].amax((1, 2), keepdim=True) if inside.any() else torch.zeros(())
            s = s + amount * push[i] * peak.clamp_min(0)
        out = out + share * weights[i][:, None] * weigh(s, v, HEADS)
    return out


def prompts(tokens, seed=5, kind=torch.float32):
    return [some(t, CHANNELS, seed=seed + i).to(kind) for i, t in enumerate(tokens)]


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(0, 1000),
    st.sampled_from(list(TOLERANCE)),
    st.sampled_from([0.0, 0.8]),
    st.booleans(),
)
def test_gathered_equals_dense_for_any_masks_and_prompt_lengths(layers, seed, kind, amount, long):
    weights = region_weights(stack(layers, seed), [1, 0.5, 0, 0.9, 1, 1, 0.2, 1, 1][:layers])
    tokens = [6 if not long or i % 3 else 12 for i in range(layers)]
    q, base = some(2, 63, CHANNELS, seed=seed).to(kind), some(2, 63, CHANNELS, seed=seed + 1).to(kind)
    keys, values = prompts(tokens, kind=kind), prompts(tokens, seed=50, kind=kind)
    push = [some(t, seed=i).abs() for i, t in enumerate(tokens)]
    out = attend_regions(
        q, base, tile(weights, tokens), keys, values, HEADS, share=0.7, emphasis=push, amount=amount
    )
    assert out.dtype == kind
    exact = dense(
        q.float(),
        base.float(),
        weights,
        [x.float() for x in keys],
        [x.float() for x in values],
        0.7,
        push if amount else None,
        amount,
    )
    torch.testing.assert_close(out.float(), exact, atol=TOLERANCE[kind], rtol=TOLERANCE[kind])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 50), st.integers(0, 1000))
def test_tiles_hold_every_pixel_once_and_at_most_twice_the_slots(layers, seed):
    weights = region_weights(stack(layers, seed), [1.0] * layers)
    groups = tile(weights, [77] * layers)
    again = torch.zeros_like(weights)
    for group in groups:
        for owner, rows, weight in zip(group.owner, group.rows, group.weight, strict=True):
            again[group.layers[owner]].index_add_(0, rows, weight)
        used = sum(len(r) for r in group.rounds)
        assert used == int((weights > 0).sum())
        assert group.rows.numel() <= 2 * used + len(group.layers)
        for slots in group.rounds:
            assert len(group.rows.flatten()[slots].unique()) == len(slots)
    torch.testing.assert_close(again, weights, atol=0, rtol=0)


def test_no_region_or_no_share_is_the_plain_prompt_to_the_bit():
    q, base = some(1, 63, CHANNELS), some(1, 63, CHANNELS, seed=1)
    keys = prompts([6, 6])
    for weights, share in (
        (torch.zeros(2, 63), 1.0),
        (region_weights(stack(2, 0), [0, 0]), 1.0),
        (stack(2, 0), 0.0),
    ):
        assert torch.equal(
            attend_regions(q, base, tile(weights, [6, 6]), keys, keys, HEADS, share=share), base
        )


def test_holes_take_the_main_prompt_to_the_bit():
    weights = torch.zeros(1, 63)
    weights[0, 10:20] = 1
    q, base, keys = some(1, 63, CHANNELS), some(1, 63, CHANNELS, seed=1), prompts([6])
    out = attend_regions(q, base, tile(weights, [6]), keys, keys, HEADS)
    assert torch.equal(out[:, :10], base[:, :10])
    assert torch.equal(out[:, 20:], base[:, 20:])
    torch.testing.assert_close(out[:, 10:20], plain(HEADS)(q, keys[0][None], keys[0][None], None)[:, 10:20])


@pytest.mark.parametrize("seed", range(4))
def test_a_region_masked_everywhere_is_as_if_absent(seed):
    masks = stack(4, seed)
    masks[2] = 0
    q, base, keys, values = (
        some(2, 63, CHANNELS),
        some(2, 63, CHANNELS, seed=1),
        prompts([6] * 4),
        prompts([6] * 4, seed=9),
    )
    weights = region_weights(masks, [0.8] * 4)
    kept = [0, 1, 3]
    with_it = attend_regions(q, base, tile(weights, [6] * 4), keys, values, HEADS)
    without = attend_regions(
        q, base, tile(weights[kept], [6] * 3), [keys[i] for i in kept], [values[i] for i in kept], HEADS
    )
    torch.testing.assert_close(with_it, without)
    closed = joint(
        q,
        keys[0][None].expand(2, -1, -1),
        values[0][None].expand(2, -1, -1),
        _with_rest(weights),
        keys,
        values,
        HEADS,
    )
    gone = joint(
        q, keys[0][None].expand(2, -1, -1), values[0][None].expand(2, -1, -1), _with_rest(weights[kept]),
        [keys[i] for i in kept],
        [values[i] for i in kept], HEADS,
    )  # fmt: skip
    torch.testing.assert_close(closed, gone)


def _with_rest(weights):
    return torch.cat([1 - weights.sum(0, keepdim=True), weights])


def test_all_open_masks_are_the_concatenated_prompts_exactly():
    q, main = some(2, 63, CHANNELS), some(2, 6, CHANNELS, seed=1)
    keys, values = prompts([6, 12]), prompts([6, 12], seed=9)
    out = joint(q, main, main, torch.ones(3, 63), keys, values, HEADS)
    k, v = (torch.cat([main, *(y.expand(2, *y.shape) for y in more)], 1) for more in (keys, values))
    assert torch.equal(out, plain(HEADS)(q, k, v, torch.zeros(63, 24)))
    torch.testing.assert_close(out, plain(HEADS)(q, k, v, None))


def test_a_pixel_that_may_see_no_prompt_sees_all_of_them_alike():
    q, main, (own,) = some(1, 63, CHANNELS), some(1, 6, CHANNELS, seed=1), prompts([6])
    out = joint(q, main, main, torch.zeros(2, 63), [own], [own], HEADS)
    both = torch.cat([main, own[None]], 1)
    torch.testing.assert_close(out, plain(HEADS)(q, both, both, None), atol=5e-3, rtol=0)
    assert math.isfinite(CLOSED)


@pytest.mark.parametrize("kind", list(TOLERANCE))
def test_permuting_layers_that_do_not_overlap_changes_nothing(kind):
    masks = torch.zeros(3, 63)
    masks[0, :20], masks[1, 20:25], masks[2, 30:63] = 1, 0.5, 1
    q, base = some(2, 63, CHANNELS).to(kind), some(2, 63, CHANNELS, seed=1).to(kind)
    keys, values = prompts([6] * 3, kind=kind), prompts([6] * 3, seed=9, kind=kind)
    push = [some(6, seed=i).abs() for i in range(3)]
    order = [2, 0, 1]
    a = attend_regions(q, base, tile(masks, [6] * 3), keys, values, HEADS, emphasis=push, amount=1.0)
    b = attend_regions(
        q, base, tile(masks[order], [6] * 3), [keys[i] for i in order], [values[i] for i in order], HEADS,
        emphasis=[push[i] for i in order], amount=1.0,
    )  # fmt: skip
    torch.testing.assert_close(a, b, atol=TOLERANCE[kind] / 10, rtol=0)


def test_mirroring_the_scene_mirrors_the_result():
    def mirrored(x, axis):
        return x.unflatten(axis, (9, 7)).flip(axis + 1 if axis >= 0 else axis).flatten(axis, axis + 1)

    masks = region_weights(stack(3, 1), [1, 0.7, 1])
    q, base = some(2, 63, CHANNELS), some(2, 63, CHANNELS, seed=1)
    keys, values = prompts([6] * 3), prompts([6] * 3, seed=9)
    out = attend_regions(q, base, tile(masks, [6] * 3), keys, values, HEADS)
    back = attend_regions(
        mirrored(q, 1), mirrored(base, 1), tile(mirrored(masks, 1), [6] * 3), keys, values, HEADS
    )
    torch.testing.assert_close(mirrored(out, 1), back)
    push = word_push(masks, [[1, 2], [3], []], 6, [0.5] * 3, [1.0] * 3)
    s = collage(scores(q, keys[0].expand(2, -1, -1), HEADS), push, 1.0)
    s_back = collage(scores(mirrored(q, 1), keys[0].expand(2, -1, -1), HEADS), mirrored(push, 0), 1.0)
    torch.testing.assert_close(mirrored(s, 2), s_back)


def test_a_picture_does_not_depend_on_its_batch():
    weights = region_weights(stack(3, 2), [1, 1, 1])
    q, base, keys = some(3, 63, CHANNELS), some(3, 63, CHANNELS, seed=1), prompts([6] * 3)
    push = [some(6, seed=i).abs() for i in range(3)]
    groups = tile(weights, [6] * 3)
    together = attend_regions(q, base, groups, keys, keys, HEADS, emphasis=push, amount=1.0)
    alone = attend_regions(q[1:2], base[1:2], groups, keys, keys, HEADS, emphasis=push, amount=1.0)
    torch.testing.assert_close(together[1:2], alone)
    main = keys[0].expand(3, -1, -1)
    pushed = collage(scores(q, main, HEADS), word_push(weights, [[1], [2], [3]], 6, [1] * 3, [1] * 3), 1.0)
    torch.testing.assert_close(
        pushed[1:2],
        collage(
            scores(q[1:2], main[1:2], HEADS), word_push(weights, [[1], [2], [3]], 6, [1] * 3, [1] * 3), 1.0
        ),
    )


def test_keys_may_differ_from_picture_to_picture():
    """A host's patches may make them so; then every picture is as alone with its own keys."""
    weights = torch.rand(3, 63, generator=torch.Generator().manual_seed(2)) / 3
    q, base = some(2, 63, CHANNELS), some(2, 63, CHANNELS, seed=1)
    keys, values = ([some(2, n, CHANNELS, seed=s + n) for n in (6, 6, 9)] for s in (5, 50))
    push = [some(n, seed=n) for n in (6, 6, 9)]
    groups = tile(weights, [6, 6, 9])
    more = {"emphasis": push, "amount": 1.0}
    both = attend_regions(q, base, groups, keys, values, HEADS, **more)
    softmax = joint(q, base, base, _with_rest(weights), keys, values, HEADS)
    for i in range(2):
        at, own = slice(i, i + 1), ([x[i] for x in y] for y in (keys, values))
        k, v = own
        alone = attend_regions(q[at], base[at], groups, k, v, HEADS, **more)
        torch.testing.assert_close(both[at], alone)
        torch.testing.assert_close(
            softmax[at], joint(q[at], base[at], base[at], _with_rest(weights), k, v, HEADS)
        )


def test_weights_too_small_to_matter_cost_no_query():
    assert not tile(region_weights(torch.full((1, 5), LEAST_WEIGHT * 0.9), [1.0]), [77])
    # The least that an 8-bit mask can hold does matter.
    weights = region_weights(torch.tensor([[1 / 255, 0.9 / 255, 0.5]]), [1.0])
    assert weights.tolist() == [[pytest.approx(1 / 255), 0, 0.5]]


def test_collage_pushes_by_the_greatest_score_of_the_token():
    # One head, one pixel inside and one outside, two tokens; computed by hand.
    s = torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]])
    push = word_push(torch.tensor([[1.0, 0.0]]), [[1]], 2, [0.5], [0.25])
    assert push.tolist() == [[0.0, 0.5], [0.0, -0.25]]
    assert collage(s, push, 2.0).tolist() == [[[[1.0, 4.0 + 2 * 0.5 * 4], [3.0, 2.0 - 2 * 0.25 * 4]]]]


def test_a_negative_maximum_does_not_turn_inside_and_outside_around_unless_asked():
    s = torch.tensor([[[[1.0, -4.0], [3.0, -2.0]]]])
    push = word_push(torch.tensor([[1.0, 0.0]]), [[1]], 2, [1.0], [1.0])
    assert torch.equal(collage(s, push, 1.0), s)
    assert collage(s, push, 1.0, flip_negative=True).tolist() == [[[[1.0, -6.0], [3.0, 0.0]]]]


def test_paint_with_words_pushes_by_the_greatest_score_of_all():
    s = torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]])
    assert paint_with_words(s, torch.tensor([[0.0, 0.5], [0.0, 0.0]]), 2.0).tolist() == [
        [[[1.0, 8.0], [3.0, 2.0]]]
    ]


def test_layers_that_share_a_word_are_not_pushed_out_of_each_other():
    masks = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert word_push(masks, [[0], [0]], 1, [1.0, 0.5], [1.0, 1.0])[:, 0].tolist() == [1.0, 0.5, -1.0]


def test_schedules_are_the_published_ones():
    # algorithm notes on the authors' code: at sigma 14.6 they are 1.32 and 2.75, and near 0 they vanish
    assert SCHEDULES["log log"](14.6) == pytest.approx(1.32, abs=0.005)
    assert SCHEDULES["log"](14.6) == pytest.approx(2.75, abs=0.005)
    assert SCHEDULES["log log"](0.0) == pytest.approx(0.00990, abs=1e-4)
    assert SCHEDULES["constant"](3.0) == 1.0


def test_shares_of_words_sum_to_one_over_all_words():
    s = scores(some(2, 63, CHANNELS), some(2, 6, CHANNELS, seed=1), HEADS)
    parts = [word_shares(s, torch.eye(6)[i]) for i in range(6)]
    torch.testing.assert_close(sum(parts), torch.ones(2, 63))


@pytest.mark.parametrize("push_words", [collage, paint_with_words])
def test_the_greatest_score_is_that_of_the_picture_and_not_of_the_batch(push_words):
    s, push = some(2, HEADS, 63, 6), some(63, 6, seed=1).abs()
    s[1] *= 3
    together = push_words(s, push, 0.7)
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], push_words(s[i : i + 1], push, 0.7))


def test_words_of_several_layers_are_pushed_out_of_the_rest_by_the_strongest_of_them():
    masks = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    push = word_push(masks, [(1, 2), (1, 2)], 4, [0.5, 1.0], [0.2, 0.7])
    assert push[:, 1].tolist() == pytest.approx([0.5, 1.0, -0.7])
    assert torch.equal(push[:, 1], push[:, 2])
    assert not push[:, [0, 3]].any()
