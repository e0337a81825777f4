"""Methods that are laid out on the whole picture follow the part of it that is repainted."""

import pytest
import torch

from layered_core.attention.regional_plan import Settings
from layered_core.control.control_map import ControlMap
from layered_core.document import Control, Layer, LayerDocument
from layered_core.painting.repaint import plan_repaint
from layered_diffusers.methods.masked_control import InpaintControl, MaskedControl, load_controlnet
from layered_diffusers.methods.regional_attention import RegionalPrompts
from layered_diffusers.pipeline import LayeredDiffusionPipeline

SIDE = 160


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def net():
    return load_controlnet()


@pytest.fixture
def plan():
    """A plan that cuts out pixels 32..96, 48..112 and scales them by 2."""
    mask = torch.zeros(SIDE, SIDE)
    mask[64:96, 48:80] = 1
    return plan_repaint(torch.full((3, SIDE, SIDE), 0.4), mask, soften=0, side=128)


def test_a_nets_hint_and_weights_are_cut_and_its_own_stay(net, plan):
    hint, masks = torch.zeros(3, SIDE, SIDE), torch.zeros(1, SIDE, SIDE)
    hint[:, :, 64:], masks[:, :80] = 1, 1
    whole = MaskedControl(net, hint, ControlMap(masks, (Control("canny"),)))
    part = whole.cut_out(plan)
    assert part.hint[0, 0, 60:68].round().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]  # 64 lies at (64 - 32) * 2
    assert part.map.masks[0, 60:68, 0].round().tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert part.hint.shape[-2:] == part.map.masks.shape[-2:] == (128, 128)
    assert whole.hint.shape[-2:] == (SIDE, SIDE)
    assert InpaintControl(net, hint, masks[0]).cut_out(plan).mask.shape == (128, 128)


def test_a_plan_of_the_whole_picture_leaves_them_as_they_are(net):
    plan = plan_repaint(torch.zeros(3, SIDE, SIDE), torch.ones(SIDE, SIDE))
    hint = torch.rand(3, SIDE, SIDE)
    method = MaskedControl(net, hint, ControlMap(torch.ones(1, SIDE, SIDE), (Control("canny"),)))
    assert method.cut_out(plan).hint is hint


def halves(meet, side, left="a red ball", right="a blue star"):
    """Two layers side by side."""
    pair = (
        Layer("left", width=meet, height=side, prompt=left),
        Layer("right", x=meet, width=side - meet, height=side, prompt=right),
    )
    return LayerDocument(side, side, pair)


def words_of(pipeline, document):
    return RegionalPrompts(pipeline.model, [document], Settings(global_weight=0), prompts=["a meadow"])


def test_words_act_as_if_their_layers_were_laid_out_on_the_part(pipeline, plan):
    def sampled(method):
        return pipeline.generate(
            ["a meadow"], steps=2, start=plan.cut()[None], strength=0.8, methods=[method]
        )

    whole = words_of(pipeline, halves(64, SIDE))
    wanted = sampled(words_of(pipeline, halves(64, 128)))  # 64 lies at (64 - 32) * 2
    close, squeezed = (float((sampled(m) - wanted).abs().mean()) for m in (whole.cut_out(plan), whole))
    assert close < 0.2 * squeezed


def test_words_of_a_layer_that_is_not_redone_change_nothing(pipeline, plan):
    def after(**words):
        method = words_of(pipeline, halves(44, SIDE, **words))
        return pipeline.repaint(plan, "a meadow", steps=1, methods=[method])

    assert torch.equal(after(left="a yellow house"), after())
    assert not torch.equal(after(right="a yellow house"), after())
