"""Pictures and masks from files of any program."""

import pytest
import torch
from PIL import Image

from layered_core.formats.pictures import read_mask
from layered_core.formats.psd_masks import PixelMask


@pytest.mark.parametrize(
    ("mode", "colour", "value"),
    [
        ("RGB", (10, 200, 30), 200),
        ("L", 51, 51),
        ("RGBA", (255, 255, 255, 90), 90),
        ("RGBA", (7, 8, 9, 255), 9),
    ],
)
def test_a_mask_is_alpha_where_there_is_any_and_else_the_greatest_channel(tmp_path, mode, colour, value):
    Image.new(mode, (3, 2), colour).save(tmp_path / "mask.png")
    torch.testing.assert_close(read_mask(tmp_path / "mask.png"), torch.full((2, 3), value / 255))


@pytest.mark.parametrize(("density", "least"), [(255, 0.0), (None, 0.0), (51, 0.8), (0, 1.0)])
def test_a_mask_of_less_density_hides_as_much_less_inside_and_around_it(density, least):
    mask = PixelMask(1, 1, torch.tensor([[0.0, 1.0]]), 0.0).at(density)
    wanted = torch.tensor([[least] * 4, [least, least, 1.0, least]])
    torch.testing.assert_close(mask.over((0, 0, 4, 2)), wanted)
