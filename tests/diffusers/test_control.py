"""Masked ControlNets on the storybook UNet, with random weights that act."""

import pytest
import torch
from diffusers import ControlNetModel

from layered_core.control import ControlMap
from layered_core.document import Control
from layered_core.errors import LayeredError
from layered_diffusers.control import MaskedControl, load_controlnet
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import add_residuals


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def net(pipeline):
    torch.manual_seed(0)
    model = ControlNetModel.from_unet(pipeline.model.unet)
    for block in [*model.controlnet_down_blocks, model.controlnet_mid_block, model.controlnet_cond_embedding.conv_out]:
        torch.nn.init.normal_(block.weight, std=0.03)
    return model.eval()


def edges(seed=0):
    return (torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(seed)) > 0.8).float()


def control(net, masks, *controls, mode="balanced"):
    return MaskedControl(net, edges(), ControlMap(masks, controls or (Control(hint="canny"),) * len(masks), mode))


def picture(pipeline, *methods):
    return pipeline.generate(["a red ball"], seeds=[1], steps=3, methods=methods)[0]


def test_zeros_are_no_control_to_the_bit_and_ones_are_not(pipeline, net):
    plain = picture(pipeline)
    assert torch.equal(picture(pipeline, control(net, torch.zeros(1, 128, 128))), plain)
    assert not torch.allclose(picture(pipeline, control(net, torch.ones(1, 128, 128))), plain, atol=0.01)


def test_complementary_masks_are_the_plain_net_as_layers_and_as_two_methods(pipeline, net):
    mask = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(2))
    plain = picture(pipeline, control(net, torch.ones(1, 128, 128)))
    torch.testing.assert_close(picture(pipeline, control(net, torch.cat([mask, 1 - mask]))), plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(picture(pipeline, control(net, mask), control(net, 1 - mask)), plain, atol=1e-4, rtol=0)


def test_layers_share_one_evaluation_and_none_is_made_out_of_range(pipeline, net):
    calls = []
    hook = net.register_forward_hook(lambda *_: calls.append(1))
    picture(pipeline, control(net, torch.ones(2, 128, 128) / 2))
    assert len(calls) == 3
    picture(pipeline, control(net, torch.ones(1, 128, 128), Control(hint="canny", end=0.4)))
    hook.remove()
    assert len(calls) == 4, "only the first of three steps is within the first 40 %"


def test_a_control_that_leads_acts_on_the_conditional_half_alone(pipeline, net):
    method = control(net, torch.ones(1, 128, 128), mode="control")
    seen = {}

    class Spy(MaskedControl):
        def model_inputs(self, run, model_input, index):
            seen.update(super().model_inputs(run, model_input, index))
            return seen

    picture(pipeline, Spy(method.net, method.hint, method.map))
    for residual in (*seen["down_block_additional_residuals"], seen["mid_block_additional_residual"]):
        assert not residual[:1].any()
        assert residual[1:].any()


def test_residuals_of_several_methods_add_up():
    one, two = torch.ones(1), torch.full((1,), 2.0)
    first = {"down_block_additional_residuals": (one,), "mid_block_additional_residual": two, "other": 1}
    merged = add_residuals([first, {}, {"down_block_additional_residuals": (two,), "mid_block_additional_residual": two}])
    assert merged["down_block_additional_residuals"][0].item() == 3
    assert merged["mid_block_additional_residual"].item() == 4
    assert merged["other"] == 1


def test_a_net_of_another_family_and_a_missing_one_are_named(pipeline, tmp_path):
    other = ControlNetModel(block_out_channels=(32, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
                            cross_attention_dim=48, attention_head_dim=2, norm_num_groups=8)  # fmt: skip
    with pytest.raises(LayeredError, match=r"ControlNet's cross_attention_dim is 48; allowed: 64"):
        picture(pipeline, control(other, torch.ones(1, 128, 128)))
    with pytest.raises(LayeredError, match="cannot be loaded"):
        load_controlnet(tmp_path)
