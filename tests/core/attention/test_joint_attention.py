"""Joint attention with regions: three ways, one result; and what must not change."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from layered_core.attention.cross_attention import collage_push
from layered_core.attention.joint_attention import WAYS, attend_jointly, cheapest_way, reading
from layered_core.attention.log_sum_exp import fused_with_lse, merge, scores_of, scores_with_lse
from layered_core.attention.spans import Spans, patch_masks, tokens
from layered_core.errors import LayeredError

GRID = (4, 6)
PIXELS = 24
# The order of tokens is a host's own matter: here references, main, a region, picture, another region, padding.
SPANS = Spans(
    60, main=range(5, 12), texts=(range(12, 15), range(39, 44)), image=range(15, 39), grid=GRID,
    pads=range(44, 46), closed=range(46, 50),
)  # fmt: skip


def attend(q, k, v, bias):
    return scaled_dot_product_attention(q, k, v, attn_mask=bias)


def tensors(seed=0, length=60):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, length, 8, generator=generator) for _ in range(3)]


def hard(main_too=False):
    """Left half: region 0; right third: region 1; the rest is the main prompt's."""
    weights = torch.zeros(2, *GRID)
    weights[0, :, :3], weights[1, :, 4:] = 1, 1
    main = torch.ones(PIXELS) if main_too else 1 - weights.sum(0).flatten()
    return weights.flatten(1), main


def soft():
    weights = torch.rand(2, PIXELS, generator=torch.Generator().manual_seed(5)) / 2
    return weights, 1 - weights.sum(0)


def computed(q, k, v, read, way, **more):
    return attend_jointly(q, k, v, read, way, attend, **more)


@pytest.mark.parametrize("one_softmax", [False, True])
@pytest.mark.parametrize("weights", ["hard", "soft"])
def test_the_three_ways_give_one_result(weights, one_softmax):
    read = reading(SPANS, *(hard() if weights == "hard" else soft()), one_softmax=one_softmax)
    q, k, v = tensors()
    found = {way: computed(q, k, v, read, way) for way in WAYS}
    for way in ("gather", "lse"):
        torch.testing.assert_close(found[way], found["bias"], atol=2e-6, rtol=1e-5)
    assert float(found["bias"].std()) > 0.1


@pytest.mark.parametrize("one_softmax", [False, True])
def test_the_three_ways_give_one_result_with_pushed_words(one_softmax):
    read = reading(SPANS, *soft(), one_softmax=one_softmax)
    generator = torch.Generator().manual_seed(3)
    amounts = [torch.rand(len(s.rows), len(s.text), generator=generator) for s in read.sources]
    pushes = [lambda s, a=a: collage_push(s, a, 0.7) for a in amounts]
    q, k, v = tensors()
    found = {way: computed(q, k, v, read, way, pushes=pushes) for way in WAYS}
    plain = computed(q, k, v, read, "bias")
    for way in ("gather", "lse"):
        torch.testing.assert_close(found[way], found["bias"], atol=2e-6, rtol=1e-5)
    assert float((found["bias"] - plain).abs().max()) > 1e-2


def test_a_mixture_has_exact_shares_of_what_each_text_alone_gives():
    weights, main = soft()
    read = reading(SPANS, weights, main, one_softmax=False)
    q, k, v = tensors()
    picture = torch.cat([tokens(SPANS.image), SPANS.others()])
    image = tokens(SPANS.image)
    wanted = 0
    for share, text in zip(
        [main, *weights], [tokens(SPANS.main, SPANS.pads), *(tokens(t) for t in SPANS.texts)], strict=True
    ):
        keys = torch.cat([text, picture])
        wanted = wanted + share[:, None] * attend(q[:, :, image], k[:, :, keys], v[:, :, keys], None)
    for way in WAYS:
        torch.testing.assert_close(computed(q, k, v, read, way)[:, :, image], wanted, atol=2e-6, rtol=1e-5)


def test_open_weights_in_one_softmax_are_the_plain_attention_of_joined_texts():
    """Pixels and references read everything that is not closed, as without regions."""
    spans = Spans(40, main=range(7), texts=(range(7, 10), range(10, 16)), image=range(16, 40), grid=GRID)
    read = reading(spans, torch.ones(2, PIXELS), torch.ones(PIXELS), one_softmax=True)
    q, k, v = tensors(length=40)
    plain = attend(q, k, v, None)[:, :, 16:]
    assert torch.equal(
        computed(q, k, v, read, "bias")[:, :, 16:], attend(q, k, v, torch.zeros(40, 40))[:, :, 16:]
    )
    torch.testing.assert_close(computed(q, k, v, read, "gather")[:, :, 16:], plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("one_softmax", [False, True])
def test_a_region_that_is_seen_nowhere_is_as_if_absent(way, one_softmax):
    weights = torch.zeros(2, PIXELS)
    weights[0, :8] = 1
    main = 1 - weights[0]
    q, k, v = tensors()
    with_it = computed(q, k, v, reading(SPANS, weights, main, one_softmax=one_softmax), way)
    q2, k2, v2 = (x.clone() for x in (q, k, v))
    for x in (q2, k2, v2):
        x[:, :, 39:44] = 100  # the unseen region's tokens
        x[:, :, 46:50] = -50  # closed tokens
    without = computed(q2, k2, v2, reading(SPANS, weights, main, one_softmax=one_softmax), way)
    assert torch.equal(with_it, without)
    assert not bool(with_it[:, :, 39:44].any())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("one_softmax", [False, True])
def test_another_text_changes_its_own_pixels_only(way, one_softmax):
    read = reading(SPANS, *hard(), one_softmax=one_softmax)
    q, k, v = tensors()
    before = computed(q, k, v, read, way)
    k[:, :, 12:15] += 1
    v[:, :, 12:15] += 1
    changed = (computed(q, k, v, read, way) - before).abs().amax((0, 1, 3))
    inside = hard()[0][0].bool()
    assert bool((changed[15:39][inside] > 1e-3).all())
    assert not bool(changed[15:39][~inside].any())
    assert not bool(changed[:12].any())  # references and the main text
    assert not bool(changed[39:].any())


def test_references_read_the_main_text_and_are_read_by_all():
    read = reading(SPANS, *hard(), one_softmax=False)
    q, k, v = tensors()
    others = SPANS.others()
    assert others.tolist() == [0, 1, 2, 3, 4, *range(50, 60)]
    keys = torch.cat([tokens(SPANS.main, SPANS.pads), tokens(SPANS.image), others])
    wanted = attend(q[:, :, others], k[:, :, keys], v[:, :, keys], None)
    torch.testing.assert_close(computed(q, k, v, read, "gather")[:, :, others], wanted, atol=1e-6, rtol=1e-5)


def test_eligen_repeats_its_masks_over_references_of_the_pictures_size():
    spans = Spans(58, main=range(4), texts=(range(4, 10),), image=range(10, 34), grid=GRID)
    weights = torch.zeros(1, PIXELS)
    weights[0, :6] = 1
    read = reading(spans, weights, torch.ones(PIXELS), one_softmax=True, repeat=True)
    assert read.sources[1].rows.tolist() == [*range(6), *range(24, 30)]
    assert read.sources[0].rows.tolist() == list(range(48))


def test_frames_of_a_picture_share_the_masks():
    spans = Spans(56, main=range(4), texts=(range(4, 8),), image=range(8, 56), grid=GRID)
    weights = torch.zeros(1, PIXELS)
    weights[0, 3] = 0.5
    read = reading(spans, weights, 1 - weights[0], one_softmax=False)
    assert read.sources[1].rows.tolist() == [3, 27]
    assert read.sources[1].share.tolist() == [0.5, 0.5]


def test_the_hosts_own_mask_stays():
    read = reading(SPANS, *soft(), one_softmax=False)
    q, k, v = tensors()
    mask = torch.zeros(1, 1, 60, 60)
    mask[..., 20] = -1e4  # nobody reads this pixel
    found = {way: computed(q, k, v, read, way, mask=mask) for way in ("bias", "gather")}
    torch.testing.assert_close(found["gather"], found["bias"], atol=2e-6, rtol=1e-5)
    k[:, :, 20] += 3
    v[:, :, 20] += 3
    again = computed(q, k, v, read, "gather", mask=mask)
    torch.testing.assert_close(again, found["gather"], atol=2e-6, rtol=1e-5)


def test_the_cheapest_exact_way_is_chosen():
    q = tensors()[0]
    mixture_hard = reading(SPANS, *hard(), one_softmax=False)
    mixture_soft = reading(SPANS, *soft(), one_softmax=False)
    softmax_hard = reading(SPANS, *hard(main_too=True), one_softmax=True)
    softmax_soft = reading(SPANS, *soft(), one_softmax=True)
    free = {"pushed": False, "masked": False}
    assert cheapest_way(mixture_hard, q, **free) == "gather"
    assert cheapest_way(mixture_soft, q, **free) == "lse"
    assert cheapest_way(mixture_soft, q, pushed=False, masked=True) == "gather"
    assert cheapest_way(mixture_soft, q, fused=False, **free) == "gather"
    assert cheapest_way(mixture_hard, q, pushed=True, masked=False) == "lse"
    assert cheapest_way(softmax_hard, q, **free) == "gather"
    assert cheapest_way(softmax_soft, q, **free) == "lse"
    assert cheapest_way(softmax_soft, q, fused=False, **free) == "bias"


def test_parts_of_an_attention_merge_to_the_whole():
    q, k, v = tensors(length=30)
    out, lse = fused_with_lse(q, k[:, :, :11], v[:, :, :11])
    more, more_lse = scores_with_lse(scores_of(q, k[:, :, 11:]), v[:, :, 11:])
    merged, merged_lse = merge(out, lse, more, more_lse)
    torch.testing.assert_close(merged, attend(q, k, v, None), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(merged_lse, scores_of(q, k).logsumexp(-1), atol=1e-5, rtol=1e-5)


def test_masks_lie_on_the_grid_of_patches_at_odd_sizes_too():
    masks = torch.zeros(1, 56, 72)
    masks[0, :16, :16] = 1
    grid = patch_masks(masks, (7, 9), 2)
    assert tuple(grid.shape) == (1, 4, 5)
    assert grid[0, 0, 0] == 1
    assert float(grid.sum()) == 1
    masks[0, 48:, 64:] = 1  # the last latent cell, which fills up the last patch
    assert patch_masks(masks, (7, 9), 2)[0, 3, 4] == 1


def test_spans_that_overlap_or_do_not_fit_are_refused():
    with pytest.raises(LayeredError, match="overlap"):
        Spans(40, main=range(8), texts=(range(7, 10),), image=range(16, 40), grid=GRID)
    with pytest.raises(LayeredError, match="outside"):
        Spans(39, main=range(8), texts=(), image=range(16, 40), grid=GRID)
    with pytest.raises(LayeredError, match="no multiple of 4 x 6"):
        Spans(40, main=range(8), texts=(), image=range(17, 40), grid=GRID)
