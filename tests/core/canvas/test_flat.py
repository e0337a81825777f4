"""The picture that sampling starts from: one answer for one document, in every host."""

import pytest
import torch

from layered_core.canvas.compositing import GREY, composite, flat
from layered_core.document import Layer, LayerDocument


def plain(colour, alpha=1.0):
    return torch.tensor([*colour, alpha]).expand(4, 6, 4).clone()


def stack(*layers, background=None):
    return LayerDocument(6, 4, layers, background)


def test_an_empty_document_is_grey():
    assert torch.equal(flat(stack()), torch.tensor(GREY)[:, None, None].expand(3, 4, 6))


def test_a_translucent_layer_over_a_hole_is_mixed_with_grey_in_srgb():
    started = flat(stack(Layer("glass", plain((1.0, 0.0, 0.2), 0.25))))
    right = 0.25 * torch.tensor([1.0, 0.0, 0.2]) + 0.75 * torch.tensor(GREY)
    torch.testing.assert_close(started, right[:, None, None].expand(3, 4, 6))


def test_a_layer_that_multiplies_over_a_hole_multiplies_the_grey():
    started = flat(stack(Layer("shadow", plain((0.5, 1.0, 0.2)), blend_mode="multiply")))
    right = torch.tensor([0.5, 1.0, 0.2]) * torch.tensor(GREY)
    torch.testing.assert_close(started, right[:, None, None].expand(3, 4, 6))


def test_a_documents_own_background_is_used_and_grey_is_not():
    started = flat(stack(Layer("glass", plain((1.0, 1.0, 1.0), 0.5)), background=(0.0, 0.5, 1.0)))
    torch.testing.assert_close(started[:, 0, 0], torch.tensor([0.5, 0.75, 1.0]))


@pytest.mark.parametrize("mode", ["normal", "screen", "overlay", "difference", "color-burn", "luminosity"])
def test_it_is_the_composite_by_photoshops_rules_with_grey_as_background(mode):
    pixels = torch.rand(4, 6, 4, generator=torch.Generator().manual_seed(1))
    layers = (Layer("a", pixels[:2, :3], width=3, height=2), Layer("b", pixels, blend_mode=mode, opacity=0.7))
    shown = composite(stack(*layers, background=GREY), "photoshop")
    assert torch.equal(flat(stack(*layers)), shown[..., :3].permute(2, 0, 1))
    assert (shown[..., 3] == 1).all()
