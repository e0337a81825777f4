"""Holes: what is put behind layers changes no pixel of the composite."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from layered_core.canvas.compositing import composite
from layered_core.canvas.soft_masks import grow
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.painting.holes import fill_hole, hole_of, rim_of, smooth_fill
from layered_core.painting.layers_from_masks import layers_from_masks


def taken_apart(seed, size=24, band=3):
    """Return a random picture and its layers from three masks."""
    noise = torch.Generator().manual_seed(seed)
    picture = torch.rand(size, size, 3, generator=noise)
    masks = interpolate(torch.rand(1, 3, 4, 4, generator=noise), (size, size), mode="bilinear")[0]
    return picture, layers_from_masks(picture, (masks > 0.55).float(), ["a", "b", "c"], band=band)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), rules=st.sampled_from(["photoshop", "comfyui"]))
def test_filling_any_layer_keeps_the_composite_and_the_other_pixels_to_the_bit(seed, rules):
    picture, found = taken_apart(seed)
    before = composite(found.document, rules)
    rim = rim_of(found.document)
    for index, layer in enumerate(found.document.layers[:-1]):
        hole = hole_of(found.document, layer.name)
        filled = fill_hole(found.document, layer.name, torch.rand(24, 24, 3))
        free = torch.zeros_like(rim) if index else rim
        # Alpha is another thing in linear light.
        same = ~free if rules == "comfyui" else torch.ones_like(free)
        assert torch.equal(composite(filled, rules)[same], before[same])
        for other in found.document:
            if other is not layer:
                old, new = (_on_canvas(x) for x in (other, filled.layer(other.name)))
                assert torch.equal(old[~free], new[~free])
        old, new = (_on_canvas(document.layer(layer.name)) for document in (found.document, filled))
        assert torch.equal(old[~hole & ~free], new[~hole & ~free])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), smooth=st.booleans())
def test_an_8_bit_picture_comes_back_from_8_bit_layers_after_the_background_is_filled(seed, smooth):
    noise = torch.Generator().manual_seed(seed)
    side = 3 if smooth else 24
    picture = interpolate(torch.rand(1, 3, side, side, generator=noise), (24, 24), mode="bilinear")[0]
    picture = (picture.permute(1, 2, 0) * 255).round() / 255
    masks = interpolate(torch.rand(1, 3, 4, 4, generator=noise), (24, 24), mode="bilinear")[0]
    document = layers_from_masks(picture, (masks > 0.55).float(), band=2).document
    filled = fill_hole(document, "background", torch.rand(24, 24, 3, generator=noise))
    assert torch.equal(composite(filled)[..., :3], picture)
    rounded = tuple(replace(x, image=(x.image * 255).round() / 255) for x in filled)
    again = composite(replace(filled, layers=rounded))
    assert torch.equal((again[..., :3] * 255).round(), (picture * 255).round())


def disc(side=64, radius=18.0, colour=(0.8, 0.1, 0.1), outline=(0.1, 0.05, 0.1)):
    """Return a landscape that grows lighter, and a disc with a dark outline and soft edges, ``[H, W, 4]``."""
    at = torch.arange(side) + 0.5 - side / 2
    far = (at[:, None] ** 2 + at**2).sqrt()
    ground = torch.stack(
        [0.3 + 0.2 * (at[:, None] + 0 * at) / side, 0.6 + 0 * far, 0.4 + 0.3 * (at + 0 * far) / side], -1
    )
    line = (far > radius - 3)[..., None]
    pixels = torch.where(line, torch.tensor(outline), torch.tensor(colour))
    return ground, torch.cat([pixels, (radius + 0.5 - far).clamp(0, 1)[..., None]], -1)


@pytest.mark.parametrize(("smaller", "band"), [(1, 0), (1, 1)])
def test_the_filled_background_has_no_rim_of_what_was_in_front(smaller, band):
    """The mask leaves some pixels of the outline to the background."""
    ground, pixels = disc()
    share = pixels[..., 3:]
    picture = ((pixels[..., :3] * share + ground * (1 - share)) * 255).round() / 255
    mask = grow((share[None, ..., 0] > 0.5).float()[0], -smaller)[None]
    document = layers_from_masks(picture, mask, band=band).document
    filled = fill_hole(document, "background", ground)
    assert torch.equal(composite(filled), composite(document))
    back = filled.layers[0].image[..., :3]
    old = torch.where(hole_of(document, "background")[..., None], ground, document.layers[0].image[..., :3])
    assert float((old - ground).abs().max()) > 0.2
    assert float((back - ground).square().mean()) < float((old - ground).square().mean()) / 4
    for colour in ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 1.0)):
        wanted = pixels[..., :3] * share + torch.tensor(colour) * (1 - share)
        was, now = (
            composite(replace(x, layers=x.layers[1:], background=colour))[..., :3] for x in (document, filled)
        )
        assert float((now - wanted).square().mean()) <= float((was - wanted).square().mean())


def test_what_is_seen_through_something_transparent_is_no_rim():
    """Black glass with a solid frame: a line far from the frame stays."""
    ground, glass = square("ground", 0, 0, 40, (0.5, 0.5, 0.5)), square("glass", 4, 4, 32, (0.0, 0.0, 0.0))
    ground.image[20, 18:22, :3] = 1
    glass.image[2:-2, 2:-2, 3] = 0.5
    ground.image[4:36, 4:36, 3][glass.image[..., 3] == 1] = 0
    filled = fill_hole(LayerDocument(40, 40, (ground, glass)), "ground", torch.full((40, 40, 3), 0.5))
    assert torch.equal(filled.layers[0].image[15:25, 15:25], ground.image[15:25, 15:25])


def test_texture_beside_an_edge_is_no_rim():
    noise = torch.Generator().manual_seed(1)
    ground = ((0.3 + 0.4 * torch.rand(48, 48, 3, generator=noise)) * 255).round() / 255
    front = square("front", 12, 12, 24, (0.9, 0.1, 0.1))
    background = torch.cat([ground, torch.ones(48, 48, 1)], -1)
    background[12:36, 12:36] = 0
    document = LayerDocument(48, 48, (Layer("ground", background), front))
    rim = rim_of(document)
    assert int(rim.sum()) == 4 * 25
    filled = fill_hole(document, "ground", ground)
    assert torch.equal(filled.layers[0].image[..., :3], ground)
    assert torch.equal(filled.layers[1].image, front.image)


@pytest.mark.parametrize(
    "fields", [{"blend_mode": "screen"}, {"opacity": 0.9}, {"rotation": 3.0}, {"visible": False}]
)
def test_only_edges_of_plain_layers_are_a_rim(fields):
    ground, soft = square("ground", 0, 0, 16, (0.2, 0.2, 0.9)), square("soft", 4, 4, 6, (0.9, 0.1, 0.1))
    soft.image[..., 3] = 0.5
    assert int(rim_of(LayerDocument(16, 16, (ground, soft))).sum()) == 8 * 8
    assert not bool(rim_of(LayerDocument(16, 16, (ground, replace(soft, **fields)))).any())
    other = replace(soft, name="other", x=6)
    assert int(rim_of(LayerDocument(16, 16, (ground, soft, other))).sum()) == 8 * 10 - 4 * 6
    assert not bool(rim_of(LayerDocument(16, 16, (replace(ground, opacity=0.9), soft))).any())


def _on_canvas(layer, size=24):
    canvas = torch.zeros(size, size, 4)
    canvas[layer.y : layer.y + layer.height, layer.x : layer.x + layer.width] = layer.image
    return canvas


def test_the_background_is_whole_after_it_is_filled():
    picture, found = taken_apart(4)
    behind = torch.rand(24, 24, 3)
    hole = hole_of(found.document, "background")
    assert torch.equal(hole, found.holes == 1)
    below = fill_hole(found.document, "background", behind).layers[0].image
    assert bool((below[..., 3] == 1).all())
    assert torch.equal(below[hole][:, :3], behind[hole])


def square(name, x, y, side, colour, **fields):
    pixels = torch.tensor([*colour, 1.0]).expand(side, side, 4).clone()
    return Layer(name, pixels, x=x, y=y, **fields)


def test_the_hidden_part_of_a_covered_layer_is_what_the_picture_shows_of_it():
    """A green square of 8 pixels, the right half of which a red one hides."""
    ground = square("ground", 0, 0, 20, (0.2, 0.2, 0.9))
    seen = square("green", 4, 4, 8, (0.1, 0.8, 0.1))
    seen = replace(seen, image=seen.image[:, :4], width=4)
    document = LayerDocument(20, 20, (ground, seen, square("red", 8, 2, 12, (0.9, 0.1, 0.1))))
    picture = ground.image[..., :3].clone()
    picture[4:12, 4:12] = torch.tensor([0.1, 0.8, 0.1])
    filled = fill_hole(document, "green", picture)
    green = filled.layer("green")
    assert (green.x, green.y, green.width, green.height) == (4, 4, 8, 8)
    assert bool((green.image == torch.tensor([0.1, 0.8, 0.1, 1.0])).all())
    assert torch.equal(composite(filled), composite(document))
    assert bool(hole_of(document, "green")[4:12, 8:12].all())
    assert (
        fill_hole(document, "green", composite(replace(document, layers=(ground, seen)))[..., :3]) is document
    )


@pytest.mark.parametrize(
    "fields", [{"visible": False}, {"opacity": 0.5}, {"blend_mode": "screen"}, {"rotation": 3.0}, {"x": 1.5}]
)
def test_only_what_hides_everything_makes_a_hole(fields):
    ground = square("ground", 0, 0, 8, (0.2, 0.2, 0.9))
    ground.image[2:6, 2:6] = 0
    front = square("front", 2, 2, 4, (0.9, 0.1, 0.1))
    assert int(hole_of(LayerDocument(8, 8, (ground, front)), "ground").sum()) == 16
    other = LayerDocument(8, 8, (ground, replace(front, **fields)))
    assert int(hole_of(other, "ground").sum()) == 0
    assert fill_hole(other, "ground", torch.rand(8, 8, 3)) is other


def test_a_mirrored_masked_layer_that_hangs_over_the_canvas_keeps_all_its_pixels():
    noise = torch.Generator().manual_seed(3)
    ground = Layer(
        "ground",
        torch.rand(6, 10, 4, generator=noise),
        torch.rand(6, 10, generator=noise),
        x=-3,
        y=1,
        flip_h=True,
    )
    document = LayerDocument(8, 8, (ground, square("front", 2, 2, 6, (0.9, 0.1, 0.1))))
    filled = fill_hole(document, "ground", torch.rand(8, 8, 3))
    assert torch.equal(composite(filled), composite(document))
    alone, before = (
        composite(LayerDocument(20, 20, (replace(x.layers[0], x=x.layers[0].x + 5),)))
        for x in (filled, document)
    )
    hole = torch.zeros(20, 20, dtype=torch.bool)
    hole[:8, 5:13] = hole_of(document, "ground")
    assert torch.equal(alone[~hole], before[~hole])
    assert bool((alone[hole][:, 3] == 1).all())


def test_what_cannot_be_filled_is_named():
    ground, front = square("ground", 0, 0, 8, (0.2,) * 3), square("front", 0, 0, 8, (0.5,) * 3)
    document = LayerDocument(8, 8, (replace(ground, rotation=5.0), front))
    with pytest.raises(LayeredError, match="layer 'ground': it is scaled, turned"):
        fill_hole(document, "ground", torch.zeros(8, 8, 3))
    with pytest.raises(LayeredError, match="layer 'ground': shape of the picture behind"):
        fill_hole(document, "ground", torch.zeros(8, 9, 3))
    with pytest.raises(LayeredError, match="layer 'words': it has no picture"):
        hole_of(LayerDocument(8, 8, (Layer("words"),)), "words")
    with pytest.raises(LayeredError, match="'moon'"):
        hole_of(document, "moon")


def test_colours_spread_smoothly_into_a_hole():
    picture = torch.full((3, 17, 23), 0.25)
    picture[:, :, 12:] = 0.75
    hole = torch.zeros(17, 23, dtype=torch.bool)
    hole[3:14, 4:20] = True
    filled = smooth_fill(torch.where(hole, 0.0, picture), hole)
    assert torch.equal(filled[:, ~hole], picture[:, ~hole])
    assert 0.25 - 1e-5 <= float(filled.min()) <= float(filled.max()) <= 0.75 + 1e-5
    assert float(filled[0, 8, 4]) < 0.4 < 0.6 < float(filled[0, 8, 19])
    assert torch.equal(smooth_fill(picture, torch.ones_like(hole)), picture)
