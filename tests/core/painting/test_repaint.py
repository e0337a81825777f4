"""Repainting a region: its plan, its change map in cells, and the paste that keeps the rest."""

from dataclasses import replace

import pytest
import torch

from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError
from layered_core.metrics.picture_metrics import seam_gradient_ratio
from layered_core.painting.cropping import plan_crop
from layered_core.painting.pasting import BLENDS
from layered_core.painting.repaint import Repaint, plan_document, plan_repaint, region_of, tighten


def picture(height=64, width=64, seed=0):
    small = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic")[0].clamp(0, 1)


def box(height=64, width=64, at=(20, 16, 44, 48)):
    mask = torch.zeros(height, width)
    mask[at[1] : at[3], at[0] : at[2]] = 1
    return mask


@pytest.mark.parametrize("size", [(64, 64), (61, 67), (40, 90)])
@pytest.mark.parametrize("side", [0, 128])
@pytest.mark.parametrize("blend", BLENDS)
def test_pixels_outside_the_soft_mask_are_equal_to_the_bit_whatever_was_sampled(size, side, blend):
    before = picture(*size)
    plan = plan_repaint(before, box(*size, at=(10, 8, 30, 28)), soften=5, side=side, unit=8)
    sampled = torch.rand(2, *plan.cut().shape, generator=torch.Generator().manual_seed(1))
    after = plan.paste(sampled, blend)
    assert after.shape == (2, 3, *size)
    assert torch.equal(after[..., plan.mask == 0], before[:, plan.mask == 0].expand(2, -1, -1))
    assert not torch.equal(after[0], after[1])


@pytest.mark.parametrize("blend", BLENDS)
def test_a_repaint_in_slightly_other_colours_leaves_no_seam(blend):
    before = 0.2 + 0.6 * picture()
    plan = plan_repaint(before, box(), widen=-8, soften=8)
    after = plan.paste((plan.cut() * 0.9 + 0.1)[None], blend)[0]
    assert seam_gradient_ratio(after, (plan.mask > 0).float()) <= 1.2
    assert seam_gradient_ratio(after, plan.mask) <= 1.2


def test_the_change_of_a_cell_is_the_mean_of_its_pixels():
    plan = plan_repaint(picture(), box(at=(16, 16, 44, 48)), noise=0.5, soften=0)
    cells = plan.cells(8, 8)
    assert cells.shape == (8, 8)
    assert cells[3].tolist() == [0, 0, 0.5, 0.5, 0.5, 0.25, 0, 0]


def test_cells_follow_the_latents_whatever_the_vae_divides_by():
    plan = plan_repaint(picture(96, 64), box(96, 64), side=128, unit=32)
    height, width = plan.cut().shape[-2:]
    for divisor in (4, 8, 16, 32):
        assert plan.cells(height // divisor, width // divisor).shape == (height // divisor, width // divisor)


def test_with_no_noise_the_picture_stays_as_it_is():
    before = picture()
    plan = plan_repaint(before, box(), noise=0.0)
    assert bool((plan.cells(8, 8) == 0).all())
    assert torch.equal(plan.paste(torch.rand(1, 3, 64, 64))[0], before)


def test_colours_are_matched_by_what_may_not_change_alone_and_not_by_a_soft_border():
    """The soft part, made brighter on purpose, is no reason to darken the whole."""
    before = 0.3 + 0.4 * picture()
    mask = torch.zeros(64, 64)
    mask[:, 32:] = 0.5
    plan = Repaint(before, mask, 0.5 * mask, plan_crop(mask))
    after = plan.paste((before + 0.1 * (mask > 0))[None], "feather")[0]
    torch.testing.assert_close(after, before + 0.05 * (mask > 0), atol=1e-3, rtol=0)


def test_a_mask_of_all_pixels_gives_what_was_sampled():
    plan = plan_repaint(picture(), torch.ones(64, 64))
    sampled = torch.rand(1, 3, 64, 64)
    assert torch.equal(plan.paste(sampled), sampled)


def test_a_documents_frozen_layer_is_kept_its_edge_is_mixed_and_the_rest_padded():
    soft = torch.ones(61, 30, 4)
    soft[:, 29, 3] = 0.25
    back, front = (
        Layer("back", torch.ones(61, 67, 4), recipe=Recipe(noise=0.4)),
        Layer("front", soft, recipe=Recipe(noise=0.0)),
    )
    document = LayerDocument(67, 61, (back, front))
    plan = plan_document(picture(61, 67), document, unit=8)
    assert plan.cut().shape == (3, 64, 72)
    torch.testing.assert_close(plan.mask[0], torch.tensor([0.0] * 29 + [0.75] + [1.0] * 37))
    after = plan.paste(torch.rand(1, 3, 64, 72))[0]
    assert torch.equal(after[:, :, :29], picture(61, 67)[:, :, :29])


@pytest.mark.parametrize(("noise", "mask"), [(0.0, 0.0), (0.3, 1.0), (1.0, 1.0)])
def test_where_all_layers_have_one_noise_all_or_nothing_is_new(noise, mask):
    document = LayerDocument(
        16, 16, tuple(Layer(str(i), torch.rand(16, 16, 4), recipe=Recipe(noise=noise)) for i in range(3))
    )
    assert bool((plan_document(picture(16, 16), document, background=noise).mask == mask).all())


def test_the_noise_of_what_is_not_seen_does_not_say_how_much_of_the_new_shows():
    soft = torch.ones(16, 16, 4)
    soft[..., 3] = torch.linspace(0, 1, 16)
    frozen = Layer("frozen", soft, recipe=Recipe(noise=0.0))
    back = Layer("back", torch.ones(16, 16, 4), recipe=Recipe(noise=0.6))
    faint = {"recipe": Recipe(noise=0.02)}
    unseen = (
        Layer("covered", torch.ones(16, 16, 4), **faint), Layer("hidden", soft, visible=False, **faint),
        Layer("far", soft, x=99, **faint)
    )  # fmt: skip
    plain = plan_document(picture(16, 16), LayerDocument(16, 16, (back, frozen)), background=0.01).mask
    torch.testing.assert_close(plain[0], 1 - soft[0, :, 3])
    more = LayerDocument(16, 16, (unseen[0], back, *unseen[1:], frozen))
    assert torch.equal(plan_document(picture(16, 16), more, background=0.01).mask, plain)


def layers(**second):
    opaque = torch.ones(16, 16, 4)
    back, front = Layer("back", opaque), Layer("front", opaque[:, :8], **second)
    return LayerDocument(16, 16, (back, front))


def test_the_region_of_layers_is_where_they_are_seen():
    assert region_of(layers(), ["back"])[0].tolist() == [0.0] * 8 + [1.0] * 8
    assert bool((region_of(layers(), ["back", "front"]) == 1).all())


def test_a_name_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(LayeredError, match="layer name is 'middle'; allowed: 'back', 'front'"):
        region_of(layers(), ["middle"])
    with pytest.raises(LayeredError, match="names of layers to redo: none was given.*'back', 'front'"):
        region_of(layers(), [])


def test_a_layer_that_is_not_seen_cannot_be_redone():
    covered = LayerDocument(16, 16, (layers().layers[1], layers().layers[0]))
    for document, name in ((layers(visible=False), "front"), (covered, "front")):
        covered_or_hidden = replace(
            document,
            layers=tuple(
                replace(x, name="front") if i == 0 and document is covered else x
                for i, x in enumerate(document)
            ),
        )
        with pytest.raises(LayeredError, match=f"layer '{name}' has no visible pixel.*covered"):
            region_of(covered_or_hidden, [name])


@pytest.mark.parametrize(
    ("mask", "values", "says"),
    [
        (torch.ones(32, 64), {}, "mask size is '64x32'; allowed: the picture's, 64x64"),
        (torch.zeros(64, 64), {}, "mask is 0 everywhere"),
        (torch.full((64, 64), 2.0), {}, "mask values is"),
        (torch.full((64, 64), torch.nan), {}, "mask values is"),
        (box(), {"noise": 1.1}, "noise is 1.1; allowed: a number 0..1"),
        (box(), {"noise": float("nan")}, "noise is nan"),
        (box(), {"soften": -1}, "feather is -1"),
        (box(), {"widen": 5000}, "grow is 5000"),
        (box(), {"widen": -64}, "mask is 0 everywhere"),
    ],
)
def test_bad_input_is_named(mask, values, says):
    with pytest.raises(LayeredError) as caught:
        plan_repaint(picture(), mask, **values)
    assert says in str(caught.value)


def test_an_unknown_blend_is_named():
    with pytest.raises(LayeredError, match="blend is 'glue'; allowed: gradient, multi-band, feather"):
        plan_repaint(picture(), box()).paste(torch.zeros(1, 3, 64, 64), "glue")


def test_a_soft_border_stays_inside_a_region_and_narrows_for_a_small_one():
    assert tighten(box(), 8) == (-8, 8)
    widen, soften = tighten(box(at=(20, 20, 27, 27)), 8)
    assert (widen, soften) == (-2, 2)
    plan = plan_repaint(picture(), box(), widen=-8, soften=8)
    assert bool((plan.mask[box() == 0] == 0).all())
    assert float(plan.mask.max()) == 1
