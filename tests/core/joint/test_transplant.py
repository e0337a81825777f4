"""Transplanted layers: which cells, which steps, and where layers go."""

import pytest
import torch

from layered_core.joint.transplant import (
    around_layers,
    joined,
    last_step,
    layer_cells,
    moved,
    moves_apart,
    transplanted,
)


def block(top, left, height, width, size=8):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_nothing_is_transplanted_without_cells_and_exactly_the_donor_inside_them():
    latents, donor = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    assert torch.equal(transplanted(latents, donor, torch.zeros(2, 1, 8, 8, dtype=torch.bool)), latents)
    cells = torch.stack([block(0, 0, 3, 3), block(4, 4, 2, 2)])[:, None]
    found = transplanted(latents, donor, cells)
    inside = cells.expand_as(found)
    assert torch.equal(found[inside], donor[inside])
    assert torch.equal(found[~inside], latents[~inside])


@pytest.mark.parametrize(("until", "last"), [(0, -1), (0.01, 0), (0.5, 10), (0.75, 15), (1, 20)])
def test_layers_are_held_up_to_a_share_of_the_steps(until, last):
    assert last_step(until, 20) == last


def test_a_cell_belongs_to_the_layer_seen_most_in_it_and_to_none_where_all_are_thin():
    seen = torch.tensor([[[0.6, 0.5, 0.2, 0.0]], [[0.3, 0.5, 0.1, 0.9]]])
    assert layer_cells(seen).tolist() == [[[True, False, False, False]], [[False, True, False, True]]]
    assert layer_cells(torch.zeros(3, 2, 2)).sum() == 0


def test_latents_of_all_layers_are_joined_in_their_cells():
    own = [torch.full((3, 4, 8, 8), 1.0), torch.full((3, 4, 8, 8), 2.0)]
    found = joined(own, torch.stack([block(0, 0, 2, 2), block(5, 5, 1, 1)]))
    assert found[:, :, :2, :2].eq(1).all()
    assert found[:, :, 5, 5].eq(2).all()
    assert found[:, :, 3:5].eq(0).all()


def test_a_background_is_made_anew_a_cell_around_its_layers():
    found = around_layers(torch.stack([block(2, 2, 1, 1), block(6, 6, 2, 2)]))
    assert torch.equal(found, (block(1, 1, 3, 3) | block(5, 5, 3, 3))[None])


def test_what_is_moved_leaves_zeros_behind_and_nothing_comes_back_on_the_other_side():
    picture = torch.arange(1.0, 13.0).view(3, 4)
    assert moved(picture, 1, -2).tolist() == [[0, 0, 0, 0], [3, 4, 0, 0], [7, 8, 0, 0]]
    assert torch.equal(moved(picture, 0, 0), picture)
    assert moved(picture, -3, 0).eq(0).all()
    assert moved(picture, 0, 9).eq(0).all()


def test_layers_in_one_place_are_moved_apart_sideways_and_as_little_as_needed():
    present = torch.stack([block(3, 2, 2, 2), block(3, 2, 2, 2), block(3, 2, 2, 2)])
    moves = moves_apart(present)
    assert moves == [(0, 0), (0, -2), (0, 2)] or moves == [(0, 0), (0, 2), (0, -2)]
    assert moves_apart(torch.stack([block(0, 0, 2, 2), block(5, 5, 2, 2)])) == [(0, 0), (0, 0)]


def test_a_layer_that_finds_no_free_place_hides_as_little_as_it_can_and_stays_on_the_canvas():
    wide, tall = block(2, 0, 5, 8), block(1, 3, 4, 2)
    down, right = moves_apart(torch.stack([wide, tall]))[1]
    assert (down, right) == (-1, 0), "two rows are free above"
    placed = moved(tall, down, right)
    assert placed.sum() == tall.sum()
    assert (placed & wide).sum() == 4


def test_a_layer_without_a_cell_stays_and_takes_no_room():
    empty = torch.zeros(8, 8, dtype=torch.bool)
    assert moves_apart(torch.stack([empty, block(1, 1, 2, 2), empty])) == [(0, 0)] * 3
