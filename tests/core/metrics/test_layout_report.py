"""How a document's layers are paired with what a detector found, and what is said of them."""

import math

import pytest
import torch

from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.metrics.layout_report import FOUND, WANTED, compare_layout, layout_overlay, layout_table


def box(name, x, width, **more):
    return Layer(name, x=x, y=0, width=width, height=32, **more)


def strip(left, right):
    mask = torch.zeros(32, 64)
    mask[:, left:right] = 1
    return mask


PAIR = LayerDocument(64, 32, (box("ball", 0, 24), box("star", 40, 24)))


def test_what_is_found_of_a_layer_and_lies_on_another_leaks():
    found = torch.stack([strip(40, 64), strip(0, 24) + strip(40, 46)])
    layout = compare_layout(PAIR, found, ["a star", "a ball"])
    ball, star = layout.layers
    assert (ball.name, ball.found, star.name, star.found) == ("ball", "a ball", "star", "a star")
    assert (ball.iou, ball.box_iou, ball.leakage) == pytest.approx((24 / 30, 24 / 46, 6 / 30))
    assert (star.iou, star.box_iou, star.leakage) == (1, 1, 0)
    assert torch.equal(layout.found, found[[1, 0]])
    assert layout.extra == ()


def test_what_belongs_to_no_layer_is_named_and_a_layer_of_which_nothing_is_found_has_no_leakage():
    layout = compare_layout(PAIR, torch.stack([strip(26, 38), strip(0, 24)]), ["a cloud", "a ball"])
    _, star = layout.layers
    assert (star.found, star.iou, star.box_iou) == ("", 0, 0)
    assert math.isnan(star.leakage)
    assert not layout.found[1].any()
    assert layout.extra == ("a cloud",)
    assert layout_table(layout).splitlines()[2:] == [
        "| ball | a ball | 1.00 | 1.00 | 0.00 |",
        "| star | – | 0.00 | 0.00 | – |",
        "| mean of 2 | 1 of 2 | 0.50 | 0.50 | 0.00 |",
        "",
        "Found and not asked for: a cloud.",
    ]


@pytest.mark.parametrize(("width", "objects"), [(64, ["ball"]), (58, ["ball"]), (57, ["meadow", "ball"])])
def test_a_background_is_what_covers_nine_tenths_before_others_are_laid_over_it(width, objects):
    document = LayerDocument(64, 32, (box("meadow", 0, width), box("ball", 0, 24)))
    layout = compare_layout(document, torch.zeros(0, 32, 64))
    assert [x.name for x in layout.layers] == objects


def test_detections_of_another_size_are_scaled_to_the_canvas():
    found = torch.zeros(1, 16, 32)
    found[0, :, :12] = 1
    ball, _ = compare_layout(PAIR, found).layers
    assert (ball.found, ball.iou) == ("1", 1)
    with pytest.raises(LayeredError, match="names of detections is 2"):
        compare_layout(PAIR, found, ["a", "b"])


def test_the_drawing_fills_what_was_found_and_outlines_what_was_wanted():
    layout = compare_layout(PAIR, strip(4, 24)[None])
    drawn = layout_overlay(torch.full((32, 64, 3), 0.5), layout, side=64)
    assert drawn.shape == (32, 64, 3)
    torch.testing.assert_close(drawn[16, 0], torch.tensor(WANTED))
    torch.testing.assert_close(drawn[16, 12], 0.55 * torch.full((3,), 0.5) + 0.45 * torch.tensor(FOUND))
    torch.testing.assert_close(drawn[16, 32], torch.full((3,), 0.5))
