"""Pictures for stages, and a function that reads a stack of them."""

import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def pictures(host):
    small = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    for name, size in (("back.png", (128, 96)), ("odd.png", (101, 67))):
        pixels = torch.nn.functional.interpolate(small, (size[1], size[0]), mode="bicubic")[0].clamp(0, 1)
        Image.fromarray((pixels.permute(1, 2, 0) * 255).byte().numpy()).save(host.input / name)


@pytest.fixture
def read(host, pack):
    return lambda prompt, name="house": pack("nodes.layers.socket").read_stack(host.value(prompt, name))
