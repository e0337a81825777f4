"""Pixels become whole numbers and come back; layers are known again by what they look like."""

import numpy as np
import pytest
import torch

from layered_core.formats.layer_look import look_of, look_of_values
from layered_core.formats.pixel_numbers import interleaved, pixel_type, to_numbers, to_values


@pytest.mark.parametrize(("kind", "white"), [("u1", 255), ("u2", 65535)])
def test_every_number_comes_back(kind, white):
    numbers = np.arange(white + 1, dtype=kind).reshape(16, -1)
    values = to_values(numbers)
    assert torch.equal(values, torch.from_numpy(numbers.astype(np.float32)) / white)
    assert (to_numbers(values, kind) == numbers).all()
    assert pixel_type(values) == kind


def test_big_endian_numbers_mean_the_same():
    numbers = np.array([[0, 1, 256, 65535]], ">u2")
    expected = torch.tensor([[0, 1, 256, 65535]]) / 65535
    assert torch.equal(to_values(numbers), expected)
    assert torch.equal(interleaved([numbers, None])[0], torch.stack([expected[0], torch.ones(4)], -1))


def test_one_value_in_the_last_row_decides_on_the_type():
    values = torch.full((700, 90, 4), 0.2)
    assert pixel_type(values) == "u1"
    values[-1, -1, -1] = 7 / 65535
    assert pixel_type(values) == "u2"
    values[-1, -1, -1] = 0.1234567
    assert pixel_type(values) == "f4"


def test_values_are_rounded_and_cut_to_what_the_type_holds():
    values = torch.tensor([[-1.0, 0.001, 0.003, 0.999, 2.0]])
    assert to_numbers(values, "u1").tolist() == [[0, 0, 1, 255, 255]]
    assert to_numbers(values, "f4").tolist() == values.tolist()


def pixels():
    """Return 5 x 6 pixels of 8 bits with a transparent row, column and pixel, and a mask."""
    made = (torch.arange(5 * 6 * 4).reshape(5, 6, 4) % 256).float() / 255
    made[0, :, 3] = made[:, 0, 3] = made[2, 2, 3] = 0
    mask = torch.zeros(5, 6)
    mask[1:3, 2:5], mask[1, 2] = 1, 0.2
    return made, mask


def test_checksums_of_earlier_versions_are_known_again():
    made, mask = pixels()
    eight = look_of_values(made, None)
    assert eight.corner == (1, 1)
    assert eight.has("d673402bea125f5996512991f8a9022597cb31d185d0a915d764b21d79c97e24")
    sixteen = look_of_values((made * 255 * 300 + 7) / 65535 * (made[..., 3:] > 0), None)
    assert sixteen.has("7b50b1671b1cef07387177e36693170ceaa254c166d3f038a44e7a39f038b5d0")
    made[..., 3] = 0
    masked = look_of_values(made, mask)
    assert masked.corner == (2, 1)
    assert masked.has("b2bb558f02b44789461a576fe722c00fe0c625137c0013f90ab819eab891c280")
    nothing = look_of_values(made, None)
    assert (nothing.checksum(), nothing.corner) == ("", None)
    assert nothing.has("")
    assert not nothing.has(masked.checksum())


def test_a_checksum_ignores_cropping_transparent_colours_and_16_bits():
    made, _ = pixels()
    look = look_of_values(made, None)
    changed = made.clone()
    changed[made[..., 3] == 0] = torch.tensor([0.123456, 0.5, 0.7, 0.0])
    for same in (made[1:, 1:], changed, to_values(to_numbers(made, "u1").astype("<u2") * 257)):
        assert look_of_values(same, None).checksum() == look.checksum()
    assert look.has(look.checksum())
    assert look_of(to_numbers(made, "u2"), None).checksum() == look.checksum()
    made[3, 3, 0] = 0
    assert not look_of_values(made, None).has(look.checksum())
