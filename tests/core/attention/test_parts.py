"""Parts of noisy latents are found again where they were taken."""

import torch

from layered_core.attention.parts import Part, find_part


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_part_is_found_where_it_was_taken():
    whole = noise(4, 12, 20)
    assert find_part(whole[:, 3:9, 8:16], whole) == Part(3, 9, 8, 16, 12, 20)
    assert find_part(whole, whole) == Part(0, 12, 0, 20, 12, 20)


def test_what_is_no_part_is_not_found():
    whole = noise(4, 12, 20)
    assert find_part(whole[:, 3:9, 8:16] + 1e-6, whole) is None
    assert find_part(whole[:, ::2, ::2], whole) is None
    assert find_part(noise(4, 16, 16), whole) is None


def test_masks_are_cut_as_the_part_is():
    masks = torch.arange(24.0 * 40).view(1, 24, 40)
    assert torch.equal(Part(3, 9, 8, 16, 12, 20).cut(masks), masks[:, 6:18, 16:32])
    assert Part(3, 4, 8, 9, 12, 20).cut(torch.ones(2, 1, 1)).shape == (2, 1, 1)
