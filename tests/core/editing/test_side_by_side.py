"""Pictures in a row: same height, in order, each under its caption, over a checkerboard where they are transparent."""

import numpy as np
import pytest
import torch
from PIL import Image

from layered_core.editing.side_by_side import side_by_side
from layered_core.errors import LayeredError

RED = torch.tensor([1.0, 0.0, 0.0])


def test_tensors_and_images_of_any_size_stand_from_left_to_right_at_the_same_height():
    wide = Image.new("RGB", (60, 20), (0, 0, 255))
    row = np.asarray(side_by_side({"a": RED.expand(30, 30, 3), "b": wide, "c": torch.zeros(5, 5)}, height=40))
    assert row.shape == (20 + 40, 40 + 6 + 120 + 6 + 40, 3)
    assert (row[20:, :40] == (255, 0, 0)).all()
    assert (row[20:, 46:166] == (0, 0, 255)).all()
    assert (row[20:, 172:] == 0).all()
    assert (row[:, 40:46] == 255).all()


def test_each_caption_stands_over_its_picture_and_a_long_one_makes_room_for_itself():
    white = torch.ones(20, 20)
    row = np.asarray(side_by_side({"longer than its picture": white, "x": white}, height=20))
    dark = (row < 128).any(-1)
    second = row.shape[1] - 20
    assert second > 100
    assert not dark[20:].any()
    assert dark[:20, :5].any()
    assert dark[:20, second : second + 10].any()
    assert not dark[:20, second - 6 : second].any()


def test_a_checkerboard_is_seen_through_transparent_parts_alone():
    pixels = torch.cat([RED.expand(32, 32, 3), torch.ones(32, 32, 1)], -1).clone()
    pixels[:, 16:, 3] = 0
    row = np.asarray(side_by_side({"": pixels}, height=32))[20:]
    assert (row[:, :13] == (255, 0, 0)).all()
    assert {tuple(int(v) for v in x) for x in row[:, 20:].reshape(-1, 3)} == {(255,) * 3, (214,) * 3}
    assert (row[0, 24:] != row[8, 24:]).all()


def test_no_picture_and_an_absurd_height_are_refused():
    with pytest.raises(LayeredError, match="pictures is {}; allowed: at least one, by its caption"):
        side_by_side({})
    with pytest.raises(LayeredError, match="height is 0; allowed: a whole number 1..4096"):
        side_by_side({"": torch.ones(2, 2)}, height=0)
