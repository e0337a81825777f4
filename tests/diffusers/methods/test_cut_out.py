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


def test_words_act_where_their_layer_lies_in_the_part(pipeline, plan):
    def after(left="a red ball", right="a blue star", meet=64):
        document = LayerDocument(
            SIDE,
            SIDE,
            (
                Layer("left", width=meet, height=SIDE, prompt=left),
                Layer("right", x=meet, width=SIDE - meet, height=SIDE, prompt=right),
            ),
        )
        method = RegionalPrompts(pipeline.model, [document], Settings(global_weight=0), prompts=["a meadow"])
        return pipeline.repaint(plan, "a meadow", steps=1, blend="feather", methods=[method])

    def left_over_right(**words):
        changed = (after(**words) - after()).abs()[:, 64:96]
        return float(changed[..., 48:64].mean() / changed[..., 64:80].mean())

    assert left_over_right(left="a yellow house") > 1.2 > 0.8 > left_over_right(right="a yellow house")
    assert torch.equal(after(left="a yellow house", meet=44), after(meet=44)), "the left layer is not redone"
    assert not torch.equal(after(right="a yellow house", meet=44), after(meet=44))
