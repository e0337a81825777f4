"""The outlines of layers on the canvas, and the drawing that shows them."""

import math

import pytest
import torch

from layered_core.canvas.placement import canvas_extent, corners, is_off_canvas
from layered_core.document import Layer, LayerDocument, Lora, Recipe
from layered_core.editing import stack_preview as outline
from layered_core.editing.stack_preview import outlined


def box(name="box", **place):
    return Layer(name, **place)


def test_a_right_turn_brings_the_top_left_corner_to_the_top_right():
    (x, y), *_ = corners(box(x=10, y=20, width=40, height=40, rotation=90.0))
    assert (x, y) == pytest.approx((50, 20))


def test_the_canvas_holds_every_corner_and_never_vanishes():
    assert canvas_extent([]) == (1, 1)
    assert canvas_extent([box(x=-50, y=-50, width=10, height=10)]) == (1, 1)
    assert canvas_extent([box(x=5, y=6, width=10, height=20), box(x=0.5, y=0, width=20, height=3)]) == (
        21,
        26,
    )
    turned = box(x=0, y=0, width=100, height=100, rotation=45.0)
    assert canvas_extent([turned]) == (math.ceil(50 + 50 * math.sqrt(2)),) * 2


@pytest.mark.parametrize(
    ("place", "off"),
    [
        ({"x": 0, "y": 0}, False), ({"x": 99, "y": 0}, False), ({"x": 100, "y": 0}, True),
        ({"x": -10, "y": 0}, True), ({"x": -9, "y": 0}, False),
        ({"x": 0, "y": 50}, True), ({"x": 0, "y": -10}, True), ({"x": -11, "y": 0, "rotation": 45.0}, False),
    ],
)  # fmt: skip
def test_a_layer_is_off_the_canvas_when_no_pixel_of_its_bounds_is_on_it(place, off):
    assert is_off_canvas(box(width=10, height=10, **place), 100, 50) is off


def test_the_drawing_enlarges_small_canvases_and_reduces_large_ones():
    for width, height, side, want in (
        (128, 64, 256, (128, 256)),
        (100, 100, 256, (300, 300)),
        (1000, 500, 100, (50, 100)),
        (3, 2, 2, (1, 2)),
    ):
        assert outlined(LayerDocument(width, height), side).shape[:2] == want


def test_the_drawing_leaves_hidden_layers_out_and_keeps_the_pixels_between_lines():
    red = Layer("red", torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(64, 64, 4))
    plain = outlined(LayerDocument(64, 64, (red,)), 512)
    hidden = outlined(
        LayerDocument(64, 64, (red, box("hidden", x=8, y=8, width=40, height=40, visible=False))), 512
    )
    shown = outlined(LayerDocument(64, 64, (red, box("shown", x=8, y=8, width=40, height=40))), 512)
    assert torch.equal(plain, hidden)
    assert not torch.equal(plain, shown)
    assert torch.equal(shown[300, 200], torch.tensor([1.0, 0.0, 0.0]))


def test_a_bare_box_is_dashed_where_a_picture_has_a_whole_line():
    def coloured(image):
        layer = Layer("a", image, x=8, y=16, width=40, height=40)
        bottom = (outlined(LayerDocument(64, 64, (layer,)), 512)[448, 70:380] * 255).round()
        return float((bottom == torch.tensor([255.0, 82.0, 82.0])).all(-1).float().mean())

    assert coloured(torch.zeros(4, 4, 4)) == 1
    assert 0.3 < coloured(None) < 0.7


def test_a_label_stays_on_the_canvas():
    below = LayerDocument(64, 64, (box("a name that is long", x=60, y=60, width=40, height=40),))
    marked = (outlined(below, 512) * 255).round() == torch.tensor([255.0, 82.0, 82.0])
    rows, columns = marked.all(-1).nonzero(as_tuple=True)
    assert int(columns.min()) < 480
    assert len(rows) > 500


def named(name):
    return outlined(LayerDocument(64, 64, (box(name, x=8, y=8, width=50, height=40),)), 512)


def test_the_label_names_the_layers_loras_without_folder_and_ending():
    def drawn(*loras):
        it = box("ball", x=8, y=8, width=50, height=40, recipe=Recipe(loras=loras))
        return outlined(LayerDocument(64, 64, (it,)), 512)

    ink = drawn(Lora("people/ink.safetensors", 0.5))
    assert torch.equal(ink, drawn(Lora("ink", 0.5)))
    assert len({tuple(x.flatten().tolist()) for x in (ink, drawn(), drawn(Lora("ink", 0.6)))}) == 3
    assert torch.equal(drawn(), named("ball"))


def test_letters_that_no_font_has_are_left_out(monkeypatch):
    """Otherwise all of them would be drawn as the same box."""
    monkeypatch.setattr(outline, "_system_fonts", list)
    assert torch.equal(named("球"), named("红色的球"))
    assert torch.equal(named("球 ball"), named("ball"))
    assert not torch.equal(named("ball"), named("red ball"))


def test_names_are_written_in_a_font_of_the_system_that_has_their_letters():
    if "DejaVuSans.ttf" not in outline._system_fonts():
        pytest.skip("needs DejaVu Sans")
    assert not torch.equal(named("Ж"), named("Д"))
