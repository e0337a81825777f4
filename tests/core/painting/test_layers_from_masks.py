"""Layers from masks: every pixel of the picture comes back, edges have no halo, nearer things cover others."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from layered_core.canvas.compositing import composite
from layered_core.document import MAX_LAYERS
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.painting.exact_mixing import mix_exactly
from layered_core.painting.layers_from_masks import layers_from_masks


def rounded(values):
    """Return values on the 8-bit grid, as 0..255."""
    return (values * 255).round()


def through_8_bits(document):
    """Return the document as files keep it."""
    return replace(document, layers=tuple(replace(x, image=rounded(x.image) / 255) for x in document))


def scene(seed, height=23, width=31, count=4, sharpness=3.0, eight_bit=True, channels=3):
    """Return a random picture and random masks, soft or hard by their sharpness."""
    noise = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 5, 6, generator=noise)
    picture = interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    picture = (picture + 0.3 * torch.randn(picture.shape, generator=noise)).clamp(0, 1)
    masks = interpolate(torch.rand(1, count, 4, 4, generator=noise), (height, width), mode="bilinear")[0]
    masks = (sharpness * (masks - 0.45) + 0.5).clamp(0, 1)
    return (rounded(picture) / 255 if eight_bit else picture), masks


def shown(picture):
    """Return a picture as a composite has it: without colour where it is transparent."""
    if picture.shape[-1] == 3:
        return torch.cat([picture, torch.ones_like(picture[..., :1])], -1)
    return torch.cat([torch.where(picture[..., 3:] > 0, picture[..., :3], 0.0), picture[..., 3:]], -1)


def on_canvas(layer, document):
    """Return a layer's picture on the whole canvas."""
    canvas = torch.zeros(document.height, document.width, 4)
    canvas[layer.y : layer.y + layer.height, layer.x : layer.x + layer.width] = layer.image
    return canvas


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sharpness=st.sampled_from([1.0, 4.0, 1e6]),
    eight_bit=st.booleans(),
    channels=st.sampled_from([3, 4]),
    band=st.sampled_from([0, 1, 3, 9]),
    with_depth=st.booleans(),
    with_background=st.booleans(),
    count=st.integers(0, 5),
)
def test_the_composite_is_the_picture_to_the_bit(
    seed, sharpness, eight_bit, channels, band, with_depth, with_background, count
):
    picture, masks = scene(
        seed, count=count or 1, sharpness=sharpness, eight_bit=eight_bit, channels=channels
    )
    picture[..., 3:] = (2 * picture[..., 3:] - 0.3).clamp(0, 1)  # opaque, transparent and between
    if eight_bit:
        picture = rounded(picture) / 255
    noise = torch.Generator().manual_seed(seed)
    found = layers_from_masks(
        picture,
        masks[:count],
        depth=torch.rand(23, 31, generator=noise) if with_depth else None,
        background=torch.rand(23, 31, 3, generator=noise) if with_background else None,
        band=band,
    )
    assert torch.equal(composite(found.document), shown(picture))
    if eight_bit:
        assert torch.equal(rounded(composite(through_8_bits(found.document))), rounded(shown(picture)))
    assert [x.recipe.noise for x in found.document] == [0.0] * len(found.document)
    assert len(found.kept) == len(found.document) - 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_two_colours_mix_to_the_picture_on_every_processor(seed, eight_bit, keep_back):
    """Some round between multiplying and adding and some do not: torch.lerp's arithmetic, written out both
    ways."""
    noise = torch.Generator().manual_seed(seed)
    seen, front, back = torch.rand(3, 500, 3, generator=noise)
    alpha = torch.randint(1, 255, (500,), generator=noise) / 255
    if eight_bit:
        seen = rounded(seen) / 255
    front, back, exact = mix_exactly(seen, front, back, alpha, keep_back=keep_back)
    assert float(exact.float().mean()) > 0.98
    a = alpha[:, None].expand(-1, 3)
    separate = torch.where(a < 0.5, back + a * (front - back), front - (front - back) * (1 - a))
    f, b, w = front.double(), back.double(), a.double()
    gap = (front - back).double()
    fused = torch.where(a < 0.5, b + w * gap, f - gap * (1 - a).double()).float()
    assert bool((separate == seen)[exact].all())
    assert bool((fused == seen)[exact].all())
    assert bool((torch.lerp(back, front, a) == seen)[exact].all())
    assert 0 <= float(torch.minimum(front, back).min()) <= float(torch.maximum(front, back).max()) <= 1
    assert float(((w * f + (1 - w) * b) - seen.double()).abs().max()) < 1e-5
    if eight_bit:
        mixed = torch.lerp(rounded(back) / 255, rounded(front) / 255, a)
        assert torch.equal(rounded(mixed)[exact], rounded(seen)[exact])


@pytest.mark.parametrize("end", [".psd", ".ora"])
def test_files_of_8_bits_give_the_picture_back(tmp_path, end):
    picture, masks = scene(5, 40, 52)
    path = write_layers(layers_from_masks(picture, masks).document, tmp_path / f"scene{end}")
    again = composite(read_layers(path).document)
    assert torch.equal(rounded(again), rounded(shown(picture)))


def disc(front, back, softness, size=64):
    """Return a picture of a soft-edged disc of one colour over another, its alpha, and a hard mask of it."""
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    alpha = ((18 - ((rows - 30) ** 2 + (columns - 33) ** 2).sqrt()) / softness + 0.5).clamp(0, 1)
    picture = alpha[..., None] * torch.tensor(front) + (1 - alpha[..., None]) * torch.tensor(back)
    return rounded(picture) / 255, alpha, (alpha >= 0.5).float()


@pytest.mark.parametrize(
    ("front", "back"),
    [
        ((0.9, 0.2, 0.1), (0.1, 0.3, 0.8)),
        ((0.95, 0.95, 0.9), (0.02, 0.05, 0.02)),
        ((0.5, 0.4, 0.3), (0.6, 0.5, 0.5)),
    ],
)
@pytest.mark.parametrize("softness", [1.0, 4.0])
def test_a_soft_edge_has_the_colours_of_the_thing_and_no_halo(front, back, softness):
    picture, alpha, mask = disc(front, back, softness)
    document = layers_from_masks(picture, mask[None]).document
    below, thing = (on_canvas(layer, document) for layer in document)
    for pixels, colour in ((thing, front), (below, back)):
        off = (pixels[..., :3] - torch.tensor(colour)).abs().amax(-1)[pixels[..., 3] > 0]
        assert float(off.max()) * 255 < 6
    assert float((thing[..., 3] - alpha).abs().max()) < 0.07


def test_a_binary_edge_keeps_the_mixed_colours():
    picture, _, mask = disc((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), 4.0)
    document = layers_from_masks(picture, mask[None], band=0).document
    below, thing = (on_canvas(layer, document) for layer in document)
    assert torch.equal(thing[..., 3], mask)
    assert torch.equal(below[..., 3], 1 - mask)
    assert torch.equal(thing[..., :3], picture * mask[..., None])
    assert torch.equal(rounded(composite(document, "comfyui")[..., :3]), rounded(picture))


def test_a_soft_mask_is_taken_for_alpha_where_colours_tell_nothing():
    _, alpha, _ = disc((0.0,) * 3, (1.0,) * 3, 8.0)
    picture = torch.full((64, 64, 3), 0.5)
    document = layers_from_masks(picture, alpha[None]).document
    off = (on_canvas(document.layers[1], document)[..., 3] - alpha).abs()
    assert float(off.max()) < 0.02 + 0.5 / 255


def overlapping():
    """Return a picture of 8 x 6 pixels and two squares that share a column: left 1..3, right 3..5."""
    picture = torch.arange(8 * 6 * 3).reshape(6, 8, 3) / 255
    masks = torch.zeros(2, 6, 8)
    masks[0, 1:5, 1:4] = 1
    masks[1, 2:4, 3:6] = 1
    return picture, masks


@pytest.mark.parametrize(("near", "order"), [(None, (0, 1)), (0, (1, 0)), (1, (0, 1))])
def test_shared_pixels_go_to_the_nearer_thing_and_are_holes_of_the_other(near, order):
    picture, masks = overlapping()
    depth = None
    if near is not None:
        depth = torch.zeros(6, 8)
        depth[1:5, 1:3] = 0.9 if near == 0 else 0.4
        depth[2:4, 4:6] = 0.5
    found = layers_from_masks(picture, masks, ["left", "right"], ["a tree", "a dog"], depth=depth, band=0)
    assert found.kept == order
    assert [x.name for x in found.document] == ["background", *(("left", "right")[i] for i in order)]
    assert [x.prompt for x in found.document] == ["", *(("a tree", "a dog")[i] for i in order)]
    front, behind = masks[order[1]], masks[order[0]] * (1 - masks[order[1]])
    below, far, close = (on_canvas(x, found.document) for x in found.document)
    assert torch.equal(close[..., 3], front)
    assert torch.equal(far[..., 3], behind)
    assert torch.equal(found.holes, masks.amax(0))
    assert torch.equal(below[..., 3], 1 - found.holes)
    assert torch.equal(composite(found.document)[..., :3], picture)
    boxes = {x.name: (x.x, x.y, x.width, x.height) for x in found.document}
    assert boxes["left"] == (1, 1, 3, 4)
    assert boxes["right"] == ((3, 2, 3, 2) if order[1] == 1 else (4, 2, 2, 2))


def test_a_given_background_fills_what_the_layers_cover():
    picture, masks = overlapping()
    behind = torch.rand(6, 8, 3, generator=torch.Generator().manual_seed(1))
    found = layers_from_masks(picture, masks, background=behind, band=0)
    covered = masks.amax(0) > 0
    below = found.document.layers[0].image
    assert torch.equal(below[..., :3][covered], behind[covered])
    assert torch.equal(below[..., :3][~covered], picture[~covered])
    assert bool((below[..., 3] == 1).all())
    assert not bool(found.holes.any())


def test_masks_and_depth_of_another_size_are_scaled_and_of_another_shape_refused():
    picture, masks = scene(3, 32, 48, sharpness=1e6)
    small = interpolate(masks[None], (16, 24), mode="area")[0]
    found = layers_from_masks(picture, small, depth=torch.rand(8, 12))
    assert torch.equal(composite(found.document)[..., :3], picture)
    with pytest.raises(LayeredError, match="masks: size is '24x24'; allowed: the picture's, 48x32"):
        layers_from_masks(picture, torch.zeros(1, 24, 24))
    with pytest.raises(LayeredError, match="depth: size"):
        layers_from_masks(picture, masks, depth=torch.rand(32, 32))
    with pytest.raises(LayeredError, match="background: size"):
        layers_from_masks(picture, masks, background=torch.rand(64, 48, 3))


def test_bad_masks_are_left_out_and_told():
    picture, masks = overlapping()
    twin = masks[0].clone()
    hidden = torch.zeros(6, 8)
    hidden[2, 4] = 1
    many = torch.stack([torch.zeros(6, 8), masks[0], masks[1], twin, hidden])
    depth = torch.zeros(6, 8)
    depth[:, 5:] = 1
    found = layers_from_masks(picture, many, ["none", "left", "right", "again", "spot"], depth=depth, band=0)
    assert found.kept == (1, 2, 4)
    assert "Mask 1 ('none') is empty and was left out." in found.told
    assert "Mask 4 ('again') is the same thing as mask 2 ('left') and was left out." in found.told


def test_a_thing_that_nearer_ones_cover_is_left_out_and_told():
    picture, masks = overlapping()
    masks[1] = 0
    masks[1, 2:4, 1:3] = 1
    depth = torch.zeros(6, 8)
    depth[1, 1:4] = depth[4, 1:4] = depth[2:4, 3] = 1
    found = layers_from_masks(picture, masks, ["wall", "door"], depth=depth, band=0)
    assert found.kept == (0,)
    assert found.told == ("Mask 2 ('door') is wholly covered by nearer ones and was left out.",)


def test_no_mask_gives_the_picture_as_one_layer():
    picture, masks = overlapping()
    found = layers_from_masks(picture, masks[:0])
    assert [x.name for x in found.document] == ["background"]
    assert torch.equal(found.document.layers[0].image[..., :3], picture)
    assert found.told == ("There is no mask: the picture is one layer.",)


def test_a_mask_that_covers_all_leaves_nothing_of_the_background():
    picture, masks = overlapping()
    found = layers_from_masks(picture, torch.ones_like(masks[:1]), ["all"])
    assert torch.equal(composite(found.document)[..., :3], picture)
    assert bool((found.holes == 1).all())
    assert not bool(found.document.layers[0].image.any())
    assert "nothing of the background is known" in found.told[0]


def test_of_too_many_masks_the_largest_are_kept_and_the_others_named():
    picture = torch.rand(20, 40, 3, generator=torch.Generator().manual_seed(2))
    masks = torch.zeros(60, 20, 40)
    for i in range(60):  # the later, the larger
        row, column = divmod(i, 10)
        masks[i, 3 * row : 3 * row + 1 + i // 30, 4 * column : 4 * column + 1 + i % 30 // 10] = 1
    found = layers_from_masks(picture, masks, [f"thing {i}" for i in range(60)], band=0)
    assert len(found.document) == MAX_LAYERS
    dropped = set(range(60)) - set(found.kept)
    area = masks.sum((1, 2))
    assert max(area[i] for i in dropped) <= min(area[i] for i in found.kept)
    assert all(f"'thing {i}'" in found.told[0] for i in dropped)
    assert torch.equal(composite(found.document)[..., :3], picture)


@pytest.mark.parametrize(
    ("names", "prompts", "wanted"),
    [
        ((), (), ["layer 1", "layer 2"]),
        (("cat",), (), ["cat", "cat 2"]),
        (("background", "  a\ndog\x00 "), (), ["background 2", "a dog"]),
        ((), ("a red ball\non grass", "a very long sentence that says what the layer shows"),
         ["a red ball on grass", "a very long sentence that says what the"]),
        (("x", "y", "z"), (), ["x", "y"]),
        (("\ud800x", ""), (), ["x", "layer 2"]),
    ],
)  # fmt: skip
def test_names_are_unique_and_clean(names, prompts, wanted):
    picture, masks = overlapping()
    found = layers_from_masks(picture, masks, names, prompts, band=0)
    assert [x.name for x in found.document] == ["background", *wanted]
    assert bool(found.told) == (len(names) > 2 or wanted[0] == "background 2" or wanted[1] == "cat 2")


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ({"picture": torch.zeros(6, 8)}, "picture's shape"),
        ({"picture": torch.full((6, 8, 3), 2.0)}, "picture's values"),
        ({"picture": torch.full((6, 8, 3), torch.nan)}, "picture's values"),
        ({"masks": torch.zeros(6, 8)}, "masks's shape"),
        ({"masks": torch.full((1, 6, 8), -1.0)}, "masks's values"),
        ({"depth": torch.zeros(1, 6, 8)}, "depth's shape"),
        ({"depth": torch.full((6, 8), torch.inf)}, "depth's values"),
        ({"background": torch.zeros(6, 8, 4)}, "background's shape"),
        ({"band": -1}, "edge band"),
        ({"band": 65}, "edge band"),
    ],
)
def test_wrong_tensors_are_named(what, error):
    picture, masks = overlapping()
    with pytest.raises(LayeredError, match=error):
        layers_from_masks(**{"picture": picture, "masks": masks, **what})


def test_edges_beside_transparent_pixels_keep_the_pictures_alpha():
    picture, masks = scene(9, channels=4, sharpness=1e6)
    picture[..., 3] = 1
    picture[:, :6, 3] = 0
    picture[:, 6:9, 3] = 0.4
    document = layers_from_masks(picture, masks).document
    assert torch.equal(composite(document), shown(picture))
    for layer in document:
        assert not bool(on_canvas(layer, document)[:, :6].any())


def test_an_outline_goes_with_its_thing_and_several_colours_behind_stay_as_they_are():
    """A yellow square with a dark outline of two pixels, on a border between blue and green, without mixed
    pixels: every pixel is of the one or of the other."""
    ground = torch.tensor([0.2, 0.4, 0.9]).expand(40, 40, 3).clone()
    ground[21:] = torch.tensor([0.3, 0.7, 0.2])
    picture, mask = ground.clone(), torch.zeros(40, 40)
    picture[8:30, 10:32] = torch.tensor([0.15, 0.1, 0.1])
    picture[10:28, 12:30] = torch.tensor([0.9, 0.8, 0.1])
    mask[8:30, 10:32] = 1
    document = layers_from_masks(picture, mask[None]).document
    below, thing = (on_canvas(layer, document) for layer in document)
    inside, outside = mask > 0, mask == 0
    assert not bool(thing[outside].any())
    assert torch.equal(below[outside][:, :3], ground[outside])
    assert float(thing[inside][:, 3].min()) > 0.9
    assert float((thing[inside][:, :3] - picture[inside]).abs().max()) < 0.06
