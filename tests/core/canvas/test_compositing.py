"""Compositing: placement, resampling, alpha, and the order of operations of each set of rules.
test_blend_modes.py tests the blend modes."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from layered_core.canvas import compositing
from layered_core.canvas.compositing import composite, over_colour, straight
from layered_core.canvas.placement import bounds, layer_window, place
from layered_core.document import BLEND_MODES, Layer, LayerDocument
from layered_core.formats.pictures import to_image


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


@pytest.mark.parametrize(("x", "y"), [(-2, -1), (4, 2), (-3, 2)])
@pytest.mark.parametrize(("flip_h", "flip_v"), [(True, False), (False, True), (True, True)])
def test_a_flipped_layer_that_hangs_over_the_canvas_shows_the_flipped_pixels_that_lie_on_it(
    x, y, flip_h, flip_v
):
    pixels = picture(4, 6, 1)
    pixels[..., 3] = 1
    flipped = pixels.flip([axis for axis, flip in ((0, flip_v), (1, flip_h)) if flip])
    flips = composite(LayerDocument(6, 4, (Layer("a", pixels, x=x, y=y, flip_h=flip_h, flip_v=flip_v),)))
    assert torch.equal(flips, composite(LayerDocument(6, 4, (Layer("a", flipped, x=x, y=y),))))
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + 6, 6), min(y + 4, 4)
    assert torch.equal(flips[top:bottom, left:right], flipped[top - y : bottom - y, left - x : right - x])


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
    out = composite(
        LayerDocument(
            48, 48, (Layer("a", pixels, x=4, y=4, width=size[0], height=size[1], rotation=rotation),)
        )
    )
    seen = out[out[..., 3] > 1e-3]
    assert len(seen)
    assert float(seen[:, 1].max()) < 1e-3


@pytest.mark.parametrize(("x", "y"), [(-100, 0), (100, 0), (0, 100), (0.5, -100)])
def test_a_layer_wholly_off_the_canvas_changes_nothing(x, y):
    back = Layer("back", picture(8, 8, 3))
    front = Layer("front", picture(8, 8, 4), x=x, y=y)
    assert torch.equal(composite(LayerDocument(8, 8, (back, front))), composite(LayerDocument(8, 8, (back,))))


@pytest.mark.parametrize("rotation", [0, 30, 45, 90, 135, 200])
@pytest.mark.parametrize(("x", "y"), [(20.5, 17), (20, 17.25), (20.97, 17.5)])
def test_bounds_hold_every_pixel_of_the_placed_layer(rotation, x, y):
    layer = Layer("a", torch.ones(6, 14, 4), x=x, y=y, rotation=rotation)
    # Looked for on the whole canvas: place() itself looks nowhere else than in the bounds.
    seen = layer_window(torch.ones(1, 6, 14), layer, (0, 0, 60, 50))[0] > 0
    left, top, right, bottom = bounds(layer)
    rows, columns = torch.nonzero(seen, as_tuple=True)
    assert left <= int(columns.min())
    assert int(columns.max()) < right
    assert top <= int(rows.min())
    assert int(rows.max()) < bottom
    assert right - left <= math.hypot(6, 14) + 4


def test_bounds_hold_the_soft_corner_of_a_layer_that_ends_at_a_pixels_edge():
    layer = Layer("a", torch.ones(8, 8, 4), x=16 - 32**0.5, y=11.5, rotation=45)
    seen = layer_window(torch.ones(1, 8, 8), layer, (0, 0, 40, 40))[0]
    assert 0.01 < float(seen[15, 20]) < 0.05
    assert bounds(layer)[2] == 21


def test_an_area_is_kept_under_rotation():
    seen = place(torch.ones(20, 30, 1), Layer("a", torch.ones(20, 30, 4), x=30, y=30, rotation=37), 100, 100)
    assert abs(float(seen.sum()) - 600) < 6


def solid(*rgba, height=2, width=3):
    return torch.tensor(rgba, dtype=torch.float32).expand(height, width, 4).clone()


def one(name, *rgba, **fields):
    return Layer(name, solid(*rgba), **fields)


def test_photoshop_rules_lay_any_mode_where_nothing_is_and_comfyui_rules_only_normal():
    document = LayerDocument(3, 2, (one("a", 0.2, 0.4, 0.6, 0.5, blend_mode="multiply"),))
    torch.testing.assert_close(composite(document, "photoshop"), solid(0.2, 0.4, 0.6, 0.5))
    assert not composite(document, "comfyui").any()


def test_half_of_white_on_black_is_half_the_light_by_comfyui_rules_and_half_the_number_by_photoshops():
    document = LayerDocument(3, 2, (one("white", 1, 1, 1, 1, opacity=0.5),), background=(0.0, 0.0, 0.0))
    torch.testing.assert_close(composite(document, "photoshop")[0, 0, :3], torch.full((3,), 0.5))
    torch.testing.assert_close(
        composite(document, "comfyui")[0, 0, :3], torch.full((3,), 0.735357), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("rules", ["comfyui", "photoshop"])
def test_what_is_laid_on_nothing_comes_through_to_the_bit(rules):
    pixels = picture(9, 11, 4)
    pixels[..., 3] = 1
    assert torch.equal(composite(LayerDocument(11, 9, (Layer("a", pixels),)), rules), pixels)


@pytest.mark.parametrize("rules", ["comfyui", "photoshop"])
def test_the_background_is_an_opaque_layer_under_all(rules):
    layers = Layer("a", picture(5, 6, 1), blend_mode="multiply"), Layer("b", picture(5, 6, 2))
    sheet = Layer("sheet", torch.tensor([[[0.1, 0.5, 0.9, 1.0]]]), width=6, height=5)
    with_colour = composite(LayerDocument(6, 5, layers, background=(0.1, 0.5, 0.9)), rules)
    torch.testing.assert_close(
        with_colour, composite(LayerDocument(6, 5, (sheet, *layers)), rules), atol=1e-6, rtol=0
    )
    assert bool((with_colour[..., 3] == 1).all())


@pytest.mark.parametrize("rules", ["comfyui", "photoshop"])
def test_a_mask_is_the_same_as_alpha(rules):
    pixels, mask = picture(8, 8, 1), picture(8, 8, 2)[..., 0]
    baked = torch.cat([pixels[..., :3], pixels[..., 3:] * mask[..., None]], -1)
    back = Layer("back", picture(12, 12, 3))
    for blend_mode in ("normal", "screen"):
        a, b = (
            composite(
                LayerDocument(
                    12, 12, (back, Layer("front", p, m, x=2, y=3, flip_h=True, blend_mode=blend_mode))
                ),
                rules,
            )
            for p, m in ((pixels, mask), (baked, None))
        )
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_mask_of_another_size_is_fitted_to_the_picture():
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    out = composite(LayerDocument(8, 8, (Layer("a", torch.ones(8, 8, 4), mask),)))
    assert out[0, 0, 3] == out[7, 7, 3] == 1
    assert out[0, 7, 3] == out[7, 0, 3] == 0


@pytest.mark.parametrize("rules", ["comfyui", "photoshop"])
@pytest.mark.parametrize("mode", BLEND_MODES)
def test_a_layer_of_no_opacity_or_no_visibility_changes_no_bit(rules, mode):
    back = Layer("back", picture(6, 6, 0))
    alone = composite(LayerDocument(6, 6, (back,)), rules)
    clear = torch.cat([picture(6, 6, 1)[..., :3], torch.zeros(6, 6, 1)], -1)
    for layer in (
        Layer("a", picture(6, 6, 1), opacity=0.0, blend_mode=mode),
        Layer("a", picture(6, 6, 1), visible=False, blend_mode=mode),
        Layer("a", clear, blend_mode=mode),
        Layer("a", width=6, height=6, blend_mode=mode),
    ):
        assert torch.equal(composite(LayerDocument(6, 6, (back, layer)), rules), alone)


@pytest.mark.parametrize("rules", ["comfyui", "photoshop"])
def test_bands_leave_no_seam(rules, monkeypatch):
    layers = [
        Layer(str(i), picture(40, 50, i), x=3 * i, y=2 * i, rotation=17 * i, blend_mode=m)
        for i, m in enumerate(("normal", "screen", "hue"))
    ]
    document = LayerDocument(60, 50, layers)
    whole = composite(document, rules)
    monkeypatch.setattr(compositing, "_band_pixels", lambda device: 1)
    torch.testing.assert_close(composite(document, rules), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_type_gives_the_picture_in_float32_or_better(dtype):
    layers = [
        Layer(str(i), picture(9, 9, i).to(dtype), rotation=5.0 * i, blend_mode=m)
        for i, m in enumerate(("normal", "overlay", "color"))
    ]
    exact = [Layer(x.name, x.image.double(), rotation=x.rotation, blend_mode=x.blend_mode) for x in layers]
    for rules in ("comfyui", "photoshop"):
        out = composite(LayerDocument(9, 9, layers), rules)
        assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(
            out.double(), composite(LayerDocument(9, 9, exact), rules), atol=1e-4, rtol=0
        )


def test_what_an_opaque_layer_covers_is_not_worked_on(monkeypatch):
    looked = []
    monkeypatch.setattr(
        compositing,
        "layer_window",
        lambda pixels, layer, box: looked.append(layer.name) or layer_window(pixels, layer, box),
    )
    cover = Layer("cover", torch.ones(4, 4, 4))
    front = Layer("front", picture(4, 4, 1), blend_mode="screen")
    composite(LayerDocument(4, 4, (Layer("back", picture(4, 4, 0)), cover, front)))
    assert set(looked) == {"cover", "front"}
    for change in ({"opacity": 0.9}, {"blend_mode": "multiply"}, {"x": 1}):
        looked.clear()
        composite(LayerDocument(4, 4, (Layer("back", picture(4, 4, 0)), replace(cover, **change), front)))
        assert set(looked) == {"back", "cover", "front"}


def test_a_hole_in_a_layer_as_large_as_the_canvas_shows_what_lies_behind():
    back, front = picture(4, 6, 0), torch.ones(4, 6, 4)
    back[..., 3], front[1, 2:4, 3] = 1, 0
    out = composite(LayerDocument(6, 4, (Layer("back", back), Layer("front", front))))
    assert torch.equal(out[1, 2:4], back[1, 2:4])
    assert bool((out[front[..., 3] == 1] == 1).all())


@pytest.mark.parametrize("inference", [False, True])
def test_threads_make_the_same_picture_and_leave_no_trace(inference, monkeypatch):
    layers = [
        Layer(str(i), picture(30, 20, i), blend_mode=m)
        for i, m in enumerate(("normal", "soft-light", "color"))
    ]
    monkeypatch.setattr(compositing, "_band_pixels", lambda device: 40)
    before, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(1)
        alone = composite(LayerDocument(20, 30, layers), "comfyui")
        torch.set_num_threads(3)
        with torch.inference_mode(inference):
            together = composite(LayerDocument(20, 30, layers), "comfyui")
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [3]
    assert torch.equal(together, alone)
    assert together.is_inference() == inference


def test_what_goes_wrong_in_a_band_is_raised(monkeypatch):
    def broken(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(compositing.Compositor, "_band", broken)
    with pytest.raises(MemoryError, match="no room"):
        composite(LayerDocument(3, 2, (one("a", 1, 1, 1, 1),)))


def test_compositing_changes_no_layer():
    layers = [
        Layer(str(i), picture(7, 7, i), picture(7, 7, 9)[..., 0], blend_mode=m)
        for i, m in enumerate(("normal", "color-burn", "hue"))
    ]
    kept = [(x.image.clone(), x.mask.clone()) for x in layers]
    for rules in ("comfyui", "photoshop"):
        composite(LayerDocument(7, 7, layers), rules)
    for layer, (image, mask) in zip(layers, kept, strict=True):
        assert torch.equal(layer.image, image)
        assert torch.equal(layer.mask, mask)


@pytest.mark.parametrize("rotation", [0.0, 30.0])
def test_an_enlarged_layer_has_sharp_edges(rotation):
    """The layer's edge is one canvas pixel wide, however coarse its own pixels are."""
    alpha = composite(
        LayerDocument(
            80, 80, (Layer("a", torch.ones(2, 2, 4), x=20, y=20, width=40, height=40, rotation=rotation),)
        )
    )[..., 3]
    soft = int(((alpha > 0.01) & (alpha < 0.99)).sum())
    assert soft == 0 if rotation == 0 else soft < 2 * 160
    assert float(alpha.sum()) == pytest.approx(1600, rel=0.005)


def test_an_unaligned_layer_covers_its_edge_pixels_in_part():
    alpha = composite(LayerDocument(8, 3, (Layer("a", torch.ones(1, 4, 4), x=1.25, y=1),)))[1, :, 3]
    torch.testing.assert_close(alpha, torch.tensor([0, 0.75, 1, 1, 1, 0.25, 0, 0]), atol=1e-6, rtol=0)


def test_shrinking_averages_all_pixels():
    stripes = torch.ones(4, 64, 4)
    stripes[:, ::2, :3] = 0
    out = composite(LayerDocument(8, 4, (Layer("a", stripes, width=8, height=4),)))
    torch.testing.assert_close(out[:, 1:-1, :3], torch.full((4, 6, 3), 0.5), atol=0.03, rtol=0)


def test_straight_undoes_premultiplication():
    pixels = picture(5, 5, 6).clamp(0.02, 1)
    multiplied = torch.cat([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
    torch.testing.assert_close(straight(multiplied), pixels)
