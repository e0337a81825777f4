"""Source-over, placement and resampling of the plain composite."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from layered_core.compositing import composite, over_colour, straight
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.pictures import to_image
from layered_core.placement import bounds, place


def picture(height, width, seed):
    return (torch.rand(height, width, 4, generator=torch.Generator().manual_seed(seed)) * 255).round() / 255


def test_the_composite_equals_pillow_alpha_composite():
    canvas = Image.new("RGBA", (20, 16))
    layers = []
    for i, (x, y) in enumerate([(0, 0), (3, 4), (-2, 7), (14, -3)]):
        pixels = picture(12, 10, i)
        layers.append(Layer(str(i), pixels, x=x, y=y))
        sheet = Image.new("RGBA", canvas.size)
        sheet.paste(to_image(pixels), (x, y))
        canvas = Image.alpha_composite(canvas, sheet)
    ours = over_colour(composite(LayerDocument(20, 16, tuple(layers))), (0.2, 0.4, 0.6)) * 255
    theirs = np.asarray(canvas, np.float32)
    theirs = theirs[..., :3] * (theirs[..., 3:] / 255) + np.array([0.2, 0.4, 0.6]) * (255 - theirs[..., 3:])
    assert np.abs(ours.numpy() - theirs).max() < 2.5  # Pillow rounds to 8 bits after every layer


def test_opaque_pixels_come_through_exactly():
    pixels = picture(5, 7, 0)
    pixels[..., 3] = 1
    assert torch.equal(composite(LayerDocument(7, 5, (Layer("a", pixels),))), pixels)


def test_opacity_and_background():
    white = torch.ones(2, 2, 4)
    out = composite(LayerDocument(2, 2, (Layer("a", white, opacity=0.25),), background=(0.0, 0.0, 0.0)))
    torch.testing.assert_close(out, torch.tensor([0.25, 0.25, 0.25, 1.0]).expand(2, 2, 4))


def test_an_empty_document_is_transparent():
    assert not composite(LayerDocument(3, 2)).any()


def test_flips_move_pixels_exactly():
    pixels = picture(4, 6, 1)
    pixels[..., 3] = 1
    for flip_h, flip_v, dims in [(True, False, [1]), (False, True, [0]), (True, True, [0, 1])]:
        out = composite(LayerDocument(6, 4, (Layer("a", pixels, flip_h=flip_h, flip_v=flip_v),)))
        assert torch.equal(out, pixels.flip(dims))


def test_rotation_is_clockwise_about_the_centre():
    pixels = torch.zeros(9, 9, 4)
    pixels[0, 4] = 1  # top middle
    out = place(pixels, Layer("a", pixels, rotation=90), 9, 9)[..., 3]
    assert out.argmax() == 4 * 9 + 8  # right middle
    torch.testing.assert_close(out[4, 8], torch.tensor(1.0), atol=1e-4, rtol=0)


def test_four_quarter_turns_are_the_picture():
    pixels = picture(8, 8, 2)
    turned = pixels
    for _ in range(4):
        turned = place(turned, Layer("a", pixels, rotation=90), 8, 8)
    torch.testing.assert_close(turned, pixels, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(5, 5), (40, 40), (3, 17)])
@pytest.mark.parametrize("rotation", [0, 33])
def test_resampling_never_lets_hidden_colour_into_an_edge(size, rotation):
    pixels = torch.zeros(16, 16, 4)
    pixels[..., 1] = 1  # green where transparent
    pixels[4:12, 4:12] = torch.tensor([1.0, 0.0, 0.0, 1.0])  # a red square
    out = composite(LayerDocument(48, 48, (Layer("a", pixels, x=4, y=4, width=size[0], height=size[1], rotation=rotation),)))
    seen = out[out[..., 3] > 1e-3]
    assert len(seen)
    assert float(seen[:, 1].max()) < 1e-3


@pytest.mark.parametrize(("x", "y"), [(-100, 0), (100, 0), (0, 100), (0.5, -100)])
def test_a_layer_wholly_off_the_canvas_changes_nothing(x, y):
    back = Layer("back", picture(8, 8, 3))
    front = Layer("front", picture(8, 8, 4), x=x, y=y)
    assert torch.equal(composite(LayerDocument(8, 8, (back, front))), composite(LayerDocument(8, 8, (back,))))


@pytest.mark.parametrize("rotation", [0, 45, 90, 200])
def test_bounds_hold_every_pixel_of_the_placed_layer(rotation):
    layer = Layer("a", torch.ones(6, 14, 4), x=20.5, y=17, rotation=rotation)
    seen = place(torch.ones(6, 14, 1), layer, 60, 50)[..., 0] > 0
    left, top, right, bottom = bounds(layer)
    rows, columns = torch.nonzero(seen, as_tuple=True)
    assert left <= int(columns.min())
    assert int(columns.max()) < right
    assert top <= int(rows.min())
    assert int(rows.max()) < bottom
    assert right - left <= math.hypot(6, 14) + 4


def test_an_area_is_kept_under_rotation():
    seen = place(torch.ones(20, 30, 1), Layer("a", torch.ones(20, 30, 4), x=30, y=30, rotation=37), 100, 100)
    assert abs(float(seen.sum()) - 600) < 6


def test_a_blend_mode_that_is_not_composited_is_said_not_ignored():
    with pytest.raises(LayeredError, match="layer 'a': blend_mode is 'multiply'"):
        composite(LayerDocument(2, 2, (Layer("a", torch.ones(2, 2, 4), blend_mode="multiply"),)))


def test_straight_undoes_premultiplication():
    pixels = picture(5, 5, 6).clamp(0.02, 1)
    multiplied = torch.cat([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
    torch.testing.assert_close(straight(multiplied), pixels)
