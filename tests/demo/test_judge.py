"""How the judge makes objects of what its network sees per pixel."""

import torch

from demo.world.judge import LEAST_AREA, Found, Verdict, _objects
from demo.world.vocabulary import COLOURS, KINDS, Thing

NOWHERE = torch.zeros(64, 64, dtype=torch.bool)
RED, BLUE = list(COLOURS)[:2]
BALL, STAR = list(KINDS)[:2]


def label(colour, kind):
    """Its class: 0 is no object, then the kinds of every colour in turn."""
    return 1 + list(COLOURS).index(colour) * len(KINDS) + list(KINDS).index(kind)


def drawn(*boxes):
    """Labels ``[64, 64]`` with boxes of (thing, top, left, height, width)."""
    labels = torch.zeros(64, 64, dtype=torch.int64)
    for thing, top, left, height, width in boxes:
        labels[top : top + height, left : left + width] = label(*thing)
    return labels


def seen(labels, meeting=NOWHERE):
    return [(*f.thing, int(f.mask.sum())) for f in _objects(labels, meeting)]


def test_a_patch_of_fewer_than_24_pixels_is_no_object_and_the_largest_comes_first():
    assert LEAST_AREA == 24
    labels = drawn(((RED, BALL), 2, 2, 4, 6), ((BLUE, STAR), 20, 2, 23, 1), ((BLUE, BALL), 40, 40, 9, 9))
    assert seen(labels) == [(BLUE, BALL, 81), (RED, BALL, 24)]


def test_a_patch_that_touches_one_of_its_colour_more_than_twice_as_large_is_a_part_of_it():
    ball = ((RED, BALL), 10, 10, 10, 10)
    assert seen(drawn(ball, ((RED, STAR), 10, 20, 7, 7))) == [(RED, BALL, 149)]
    assert seen(drawn(ball, ((RED, STAR), 10, 20, 5, 10))) == [(RED, BALL, 100), (RED, STAR, 50)]
    assert seen(drawn(ball, ((BLUE, STAR), 10, 20, 7, 7))) == [(RED, BALL, 100), (BLUE, STAR, 49)]
    assert seen(drawn(ball, ((RED, STAR), 10, 22, 7, 7))) == [(RED, BALL, 100), (RED, STAR, 49)]


def test_likes_that_touch_are_cut_apart_where_they_meet_and_get_their_pixels_back():
    labels = drawn(((RED, BALL), 10, 10, 10, 20))
    meeting = NOWHERE.clone()
    meeting[:, 19:21] = True
    assert seen(labels) == [(RED, BALL, 200)]
    assert seen(labels, meeting) == [(RED, BALL, 100)] * 2


def verdict(*things):
    return Verdict("", tuple(Found(colour, kind, NOWHERE) for colour, kind in things))


def test_a_picture_shows_things_if_each_is_there_as_often_and_nothing_else_is():
    ball, star = Thing("solid", RED, BALL), Thing("glass", BLUE, STAR)
    both = verdict((BLUE, STAR), (RED, BALL))
    assert both.shows([ball, star])
    assert not both.shows([ball])
    assert not both.shows([ball, star, star])
    assert not verdict((RED, BALL), (RED, BALL)).shows([ball])
    assert not verdict((BLUE, BALL), (RED, STAR)).shows([ball, star])
    assert both.missing([ball, ball, star]) == [ball]
    assert verdict((RED, STAR)).missing([ball]) == [ball]
