"""Weights of a transformer's tokens: where they lie, padding, references, and changes that keep bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layered_core.control.token_weights import PictureTokens, patch_weights, weighed
from layered_core.errors import LayeredError


def by_hand(weight, cells, patch, per_cell=8):
    """Return the mean of every patch's pixels, where the last row and column are repeated to whole patches."""
    height, width = cells
    rows, columns = -(-height // patch), -(-width // patch)
    out = torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            cell = [
                weight[per_cell * y : per_cell * (y + 1), per_cell * x : per_cell * (x + 1)].mean()
                for y in (min(n, height - 1) for n in range(patch * i, patch * (i + 1)))
                for x in (min(n, width - 1) for n in range(patch * j, patch * (j + 1)))
            ]
            out[i, j] = sum(cell) / len(cell)
    return out


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.integers(0, 99))
def test_a_patchs_weight_is_the_mean_of_its_cells(height, width, patch, seed):
    weight = torch.rand(8 * height, 8 * width, generator=torch.Generator().manual_seed(seed))
    found = patch_weights(weight, (height, width), patch)
    torch.testing.assert_close(found, by_hand(weight, (height, width), patch), atol=1e-5, rtol=0)


def test_a_hard_edge_on_whole_patches_leaves_ones_and_zeros():
    weight = torch.zeros(120, 88)
    weight[:64] = 1
    found = patch_weights(weight, (15, 11), 2)
    assert found.shape == (8, 6)
    assert torch.equal(found[:4], torch.ones(4, 6))
    assert not found[4:].any()


def test_a_map_of_another_aspect_ratio_is_cropped_in_the_middle():
    weight = torch.zeros(64, 128)
    weight[:, 32:64], weight[:, :32] = 1, 9
    assert torch.equal(patch_weights(weight, (8, 8), 2), torch.tensor([[1.0, 1, 0, 0]] * 4))


def test_tokens_of_references_and_padding_have_the_mean_of_the_picture():
    weight = torch.zeros(16, 16)
    weight[:8] = 1
    found = PictureTokens.find(4 + 6, (4, 4), 2, after=6)
    assert found.weights(weight).tolist() == [1, 1, 0, 0] + [0.5] * 6
    found = PictureTokens.find(32, (4, 4), 2, multiple=32)
    assert found.weights(weight).tolist() == [1, 1, 0, 0] + [0.5] * 28
    found = PictureTokens.find(3 + 4 + 2, (4, 4), 2, before=3)
    assert found.weights(weight).tolist() == [0.5] * 3 + [1, 1, 0, 0] + [0.5] * 2


def test_references_may_stand_before_the_padded_picture():
    weight = torch.zeros(16, 16)
    weight[:8] = 1
    found = PictureTokens.find(64 + 32, (4, 4), 2, multiple=32, at_end=True)
    assert (found.start, found.patch) == (64, 2)
    assert found.weights(weight)[64:68].tolist() == [1, 1, 0, 0]


def test_every_frame_has_the_pictures_weights():
    weight = torch.zeros(16, 16)
    weight[:, 8:] = 1
    assert PictureTokens.find(12, (4, 4), 2, frames=3).weights(weight).tolist() == [0, 1, 0, 1] * 3


def test_fewer_tokens_than_patches_are_refused():
    with pytest.raises(
        LayeredError, match="number of image tokens is 3; allowed: 4 or more for a latent of 4x4"
    ):
        PictureTokens.find(3, (4, 4), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_of_zero_and_one_keep_the_bits(dtype):
    random = torch.Generator().manual_seed(0)
    before, after = (100 * torch.randn(2, 4, 8, generator=random) for _ in range(2))
    before, after = before.to(dtype), after.to(dtype)
    before[0, 0, 0], after[0, 0, 1] = -0.0, torch.inf
    weight = torch.tensor([0.0, 1.0, 0.25, 1.5])[None, :, None]
    out = weighed(before, after, weight)
    assert out.dtype == dtype
    assert torch.equal(out[:, 0].view(torch.uint8), before[:, 0].view(torch.uint8))
    assert torch.equal(out[:, 1].view(torch.uint8), after[:, 1].view(torch.uint8))
    for i, share in ((2, 0.25), (3, 1.5)):
        wanted = before[:, i].double() * (1 - share) + after[:, i].double() * share
        torch.testing.assert_close(out[:, i].double(), wanted, atol=4.0, rtol=0)
    assert torch.equal(weighed(before, after, 1.0), after)
    assert torch.equal(weighed(before, after, 0.0), before)
