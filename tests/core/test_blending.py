"""A part changes, the rest stays equal to the bit."""

import torch

from layered_core.blending import keep_outside
from layered_core.guidance import classifier_free


def test_zero_keeps_and_one_changes_to_the_bit_and_between_is_linear():
    generator = torch.Generator().manual_seed(0)
    changed, kept = torch.randn(2, 3, 4, 6, generator=generator) * 1e3, torch.randn(2, 3, 4, 6, generator=generator) / 3
    mask = torch.zeros(4, 6)
    mask[:, 2:4] = 0.25
    mask[:, 4:] = 1
    out = keep_outside(changed, kept, mask)
    assert torch.equal(out[..., :2], kept[..., :2])
    assert torch.equal(out[..., 4:], changed[..., 4:])
    torch.testing.assert_close(out[..., 2:4], 0.25 * changed[..., 2:4] + 0.75 * kept[..., 2:4])


def test_what_is_kept_survives_even_when_the_change_is_not_a_number():
    out = keep_outside(torch.full((1, 2), torch.nan), torch.ones(1, 2), torch.tensor([[0.0, 1.0]]))
    assert out[0, 0] == 1
    assert out[0, 1].isnan()


def test_guidance_one_is_the_conditional_prediction_and_zero_the_other():
    uncond, cond = torch.tensor([1.0]), torch.tensor([3.0])
    assert [float(classifier_free(uncond, cond, s)) for s in (0, 1, 3)] == [1, 3, 7]
