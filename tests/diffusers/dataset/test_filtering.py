"""Which masks become layers, phrases and their nouns, and edges that are moved to where things end."""

import pytest
import torch

from layered_core.errors import LayeredError
from layered_diffusers.dataset.filtering import (
    Thresholds,
    at_size,
    border_share,
    chosen,
    names_noun,
    noun_of,
)
from layered_diffusers.dataset.hidden import hidden_part, hull
from layered_diffusers.dataset.phrases import phrases_of
from layered_diffusers.dataset.protocols import Found, Picture
from layered_diffusers.dataset.refining import refined


def box(left, top, right, bottom, size=40):
    mask = torch.zeros(size, size)
    mask[top:bottom, left:right] = 1
    return mask


def found(phrase, mask, score=0.9):
    return Found(phrase, mask, score)


def reasons(dropped):
    return {x.phrase: x.reason for x in dropped}


def test_every_reason_to_leave_a_mask_out_is_given():
    frame = torch.ones(40, 40)
    frame[6:-6, 6:-6] = 0
    items = [
        found("kept", box(5, 5, 17, 17)),
        found("uncertain", box(20, 5, 30, 15), 0.34),
        found("speck", box(20, 20, 25, 25)),
        found("all", torch.ones(40, 40)),
        found("frame", frame),
        found("kept again", box(5, 5, 17, 18), 0.8),
        found("part of it", box(7, 7, 14, 14)),
        found("second", box(20, 20, 34, 34)),
        found("third", box(2, 25, 12, 37)),
        found("smallest", box(25, 5, 32, 11)),
    ]
    kept, dropped = chosen(items, Thresholds(layers=3))
    assert [x.phrase for x in kept] == ["kept", "second", "third"]
    assert reasons(dropped) == {
        "uncertain": "score", "speck": "area", "all": "area", "frame": "border", "kept again": "duplicate",
        "part of it": "part", "smallest": "beyond",
    }  # fmt: skip


def test_thresholds_are_inclusive_where_they_say_least_and_most():
    quarter = box(0, 0, 20, 20)
    limits = {"least_area": 0.25, "most_area": 0.25, "score": 0.9, "border": 39 / 156}
    assert border_share(quarter) == pytest.approx(39 / 156)
    assert len(chosen([found("x", quarter)], Thresholds(**limits))[0]) == 1


def test_of_two_equal_masks_the_first_stays_and_of_a_chain_only_one():
    same = [found(x, box(5, 5, 20, 20)) for x in "abc"]
    kept, dropped = chosen(same, Thresholds())
    assert [x.phrase for x in kept] == ["a"]
    assert reasons(dropped) == {"b": "duplicate", "c": "duplicate"}


def test_neutral_thresholds_keep_everything():
    items = [found("a", torch.ones(40, 40), 0.0), found("b", box(5, 5, 6, 6), 0.0)]
    limits = Thresholds(score=0, least_area=0, most_area=1, border=1, duplicate=1, part=1)
    assert len(chosen(items, limits)[0]) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("layers", 0), ("layers", 50), ("score", 1.5), ("psnr", -1), ("least_area", 0.8), ("band", 2.5)],
)
def test_thresholds_out_of_range_are_named(name, value):
    with pytest.raises(LayeredError, match=name.replace("_", " ")):
        Thresholds(**{name: value})


def test_masks_of_other_sizes_are_scaled_to_the_picture():
    (item,) = at_size([found("a", box(0, 0, 20, 40))], Picture(torch.zeros(3, 80, 160)))
    assert item.mask.shape == (80, 160)
    assert bool((item.mask[:, :76] == 1).all())
    assert bool((item.mask[:, 84:] == 0).all())


@pytest.mark.parametrize(
    ("phrase", "noun"),
    [
        ("a red ball", "ball"),
        ("a black dog with a hat", "dog"),
        ("the roof of a house", "roof"),
        ("ball", "ball"),
        ("a man's hat", "hat"),
        ("", ""),
        ("42", ""),
        ("with", "with"),
    ],
)
def test_the_noun_of_a_phrase(phrase, noun):
    assert noun_of(phrase) == noun


def test_a_caption_names_a_noun_as_a_word_and_as_a_plural():
    assert names_noun("Two Balls on the sand.", "a red ball")
    assert names_noun("two foxes", "a fox")
    assert not names_noun("a balloon", "a red ball")
    assert not names_noun("anything", "")
    assert not names_noun("a cat", "a c.t")


def test_phrases_of_a_caption_are_its_things():
    text = "The image shows a black cat sitting on a red mat, with two green balls and a view of the sea"
    assert phrases_of(text) == ("a black cat", "a red mat", "two green balls", "the sea")
    assert phrases_of("a painting of a tree") == ("a tree",)
    assert phrases_of("") == ()


def test_the_hull_is_convex_and_has_the_mask():
    mask = box(5, 5, 9, 30) + box(5, 26, 30, 30)
    full = hull(mask.clamp(0, 1) > 0)
    assert bool(full[mask > 0].all())
    assert bool(full[20, 10])
    assert not bool(full[8, 25])
    assert torch.equal(hull(full), full)
    assert not bool(hull(torch.zeros(8, 8) > 0).any())


def test_a_hidden_part_is_in_front_and_in_the_mask_or_its_hull():
    mask, front = box(5, 5, 25, 25), box(20, 10, 35, 20)
    part = hidden_part(mask, front)
    assert torch.equal(part.mask, box(20, 10, 25, 20) > 0)
    assert part.covered == pytest.approx(50 / 400)
    seen = mask * (1 - front)
    assert int((hidden_part(seen, front).mask & ~part.mask).sum()) == 0, "the hull of what is seen"
    assert hidden_part(seen, front).covered > 0.1
    assert hidden_part(mask, torch.zeros(40, 40)).covered == 0


def scene(level=0.0):
    """Return a picture of a grey square with a dark outline on white, its background, and its mask."""
    noise = level * torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    behind = torch.full((3, 40, 40), 0.9)
    whole = box(8, 8, 28, 28)
    picture = torch.where(whole > 0, torch.where(box(9, 9, 27, 27) > 0, 0.5, 0.1), behind)
    return picture, (behind - noise).clamp(0, 1), whole


@pytest.mark.parametrize(
    "wrong", [box(9, 9, 27, 27), box(6, 8, 28, 30), box(8, 8, 28, 28), box(10, 7, 30, 26)]
)
def test_edges_are_moved_to_where_the_picture_differs_from_the_background(wrong):
    picture, behind, whole = scene()
    assert torch.equal(refined(picture, wrong[None], behind, {}, 3, 8)[0], whole)


def test_no_edge_grows_where_the_background_was_painted_unlike_the_picture():
    picture, behind, _ = scene(level=0.9)
    mask = box(9, 9, 27, 27)
    assert torch.equal(refined(picture, mask[None], behind, {}, 3, 8)[0], mask)


def test_edges_move_by_no_more_than_the_band_and_not_at_all_without_one():
    picture, behind, whole = scene()
    plain, small = torch.where(whole > 0, 0.5, behind), box(11, 11, 25, 25)
    assert torch.equal(refined(plain, small[None], behind, {}, 2, 16)[0], box(9, 9, 27, 27))
    assert torch.equal(refined(picture, small[None], behind, {}, 0, 8)[0], small)
    assert torch.equal(refined(picture, whole[None], behind, {}, 3, 2)[0], whole)


def test_an_edge_before_another_thing_moves_only_where_it_is_known_what_is_behind():
    picture, behind, whole = scene()
    back = box(2, 2, 38, 20)
    without = torch.where(back > 0, 0.7, behind)
    picture = torch.where((back > 0) & (whole == 0), 0.7, picture)
    masks = torch.stack([back, box(9, 9, 27, 27)])
    assert torch.equal(refined(picture, masks, behind, {0: without}, 3, 8)[1], whole)
    unknown = refined(picture, masks, behind, {}, 3, 8)[1]
    assert torch.equal(unknown[:20], masks[1][:20])
    assert torch.equal(unknown[20:], whole[20:])
