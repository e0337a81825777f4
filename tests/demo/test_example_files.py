"""The example file that Load Layers offers."""

import torch

from demo.example_files import storybook
from demo.world.places import EXAMPLES
from layered_core.files import read_layers


def test_the_example_is_what_its_script_makes():
    read = read_layers(EXAMPLES / "storybook.psd").document
    made = storybook()
    assert [layer.name for layer in read] == [layer.name for layer in made]
    assert all(torch.equal(a.image, b.image) for a, b in zip(read, made, strict=True))
