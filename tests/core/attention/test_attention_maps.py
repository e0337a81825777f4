"""Maps of what words attended to: brought together, as masks, and as pictures."""

from dataclasses import replace

import pytest
import torch

from layered_core.attention.attention_maps import (
    AttentionMaps,
    heat_map,
    heat_pictures,
    largest_patch,
    mask_from_attention,
    masks_from_attention,
)
from layered_core.document import Layer, LayerDocument


def box(name, x, prompt="", **more):
    return Layer(name, x=x, y=0, width=16, height=32, prompt=prompt, **more)


def pair(**more):
    return LayerDocument(32, 32, (box("ball", 0, "a red ball"), box("star", 16, "a blue star")), **more)


def test_maps_of_other_sizes_are_brought_together():
    maps = AttentionMaps(["a"])
    maps.add((2, 2), torch.full((1, 1, 4), 0.5))
    maps.add((4, 4), torch.full((1, 1, 16), 0.25))
    maps.add((4, 4), torch.full((1, 1, 16), 0.75))
    torch.testing.assert_close(maps.mean((8, 8)), torch.full((1, 1, 8, 8), 0.5))


def test_maps_of_a_part_are_laid_onto_the_whole():
    maps = AttentionMaps(["a"])
    maps.add((2, 2), torch.full((1, 1, 4), 0.5))
    whole = maps.laid_out((2, 2), lambda part: torch.nn.functional.pad(part, (1, 0, 0, 2)))
    wanted = torch.tensor([[0, 0.5, 0.5]] * 2 + [[0, 0, 0]] * 2)
    assert torch.equal(whole.mean((4, 3))[0, 0], wanted)
    assert whole.names == ("a",)


def test_a_mask_of_a_map_keeps_its_largest_patch():
    share = torch.zeros(6, 6)
    share[0, 0] = 1.0
    share[3:5, 3:5] = 0.8
    share[5, 0] = 0.1
    everywhere = torch.ones(6, 6, dtype=torch.bool)
    assert mask_from_attention(share, everywhere, 0.5, largest=False).sum() == 5
    mask = mask_from_attention(share, everywhere, 0.5, largest=True)
    assert mask.sum() == 4
    assert bool((mask[3:5, 3:5] == 1).all())


def test_a_threshold_lies_between_the_least_and_the_greatest_in_the_box():
    share = torch.arange(36.0).view(6, 6)
    box = torch.zeros(6, 6, dtype=torch.bool)
    box[3:5, 1:5] = True  # 19 to 22 and 25 to 28
    for threshold, count in ((0.0, 8), (0.5, 4), (0.99, 1), (1.0, 1)):
        mask = mask_from_attention(share, box, threshold, largest=False)
        assert mask.sum() == count
        assert not bool(mask[~box].any())
    assert torch.equal(mask_from_attention(torch.full((6, 6), 0.2), box, 0.5, largest=True), box.float()), (
        "no cell is better than another"
    )
    assert not bool(mask_from_attention(share, torch.zeros(6, 6, dtype=torch.bool), 0.0, largest=True).any())


@pytest.mark.parametrize(
    "change",
    [{"opacity": 0.1}, {"width": 8, "height": 8}, {"x": 4, "width": 8}, {"x": 12, "width": 3, "height": 3}],
)
def test_a_faint_or_small_layer_gets_a_mask_too(change):
    maps = AttentionMaps(["ball"])
    maps.add((4, 4), torch.rand(1, 1, 16, generator=torch.Generator().manual_seed(0)))
    document = LayerDocument(32, 32, (replace(box("ball", 0, "a red ball"), **change),))
    _, (mask,) = masks_from_attention(document, maps, (4, 4), 0.5, largest=True)
    layer = document.layers[0]
    touched = mask[:, int(layer.x) // 8 : int(layer.x + layer.width - 1) // 8 + 1]
    assert float(mask.sum()) == float(touched.sum()) > 0


def test_the_largest_patch_of_a_winding_shape_is_whole():
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[::2] = True
    mask[1::4, 8] = True
    mask[3::4, 0] = True
    assert torch.equal(largest_patch(mask), mask)


def test_a_heat_map_is_brightest_where_the_words_are():
    share = torch.zeros(4, 4)
    share[1, 2] = 0.01
    picture = heat_map(share, torch.full((4, 4, 3), 0.5))
    assert picture.shape == (4, 4, 3)
    assert bool((picture[1, 2] == 1).all())
    torch.testing.assert_close(picture[0, 0], torch.full((3,), 0.3))


def test_masks_are_found_inside_boxes_for_layers_that_need_one():
    maps = AttentionMaps(["ball", "star"])
    shares = torch.zeros(1, 2, 8, 8)
    shares[0, 0, 2:4, 1:3], shares[0, 0, 6, 6], shares[0, 1, 1, 6] = 0.5, 0.9, 0.3
    maps.add((8, 8), shares.flatten(2))
    document = LayerDocument(
        32, 32, (*pair(), box("drawn", 0, "a tree", mask=torch.ones(2, 2)), box("mute", 0))
    )
    found, masks = masks_from_attention(document, maps, (8, 8), 0.5, largest=True)
    assert masks.shape == (2, 8, 8)
    assert masks[0].nonzero().tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]
    assert masks[1].nonzero().tolist() == [[1, 6]]
    assert [(x.x, x.width, x.height) for x in found][:2] == [(0, 32, 32)] * 2
    assert list(found)[2:] == list(document)[2:]


def test_heat_pictures_come_picture_by_picture_and_keep_the_aspect():
    maps = AttentionMaps(["a", "b"])
    maps.add((2, 4), torch.rand(3, 2, 8))
    shown = heat_pictures(maps, torch.rand(3, 40, 80, 3), 120)
    assert shown.shape == (6, 60, 120, 3)
    assert bool(((shown >= 0) & (shown <= 1)).all())
