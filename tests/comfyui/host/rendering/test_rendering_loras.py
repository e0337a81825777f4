"""LoRAs of layers while every layer is rendered by itself."""

import comfy.sd
import comfy.utils
import lora_scene as scene
import pytest
import tiny
import torch
from lora_scene import layer, path_of, stack_of, unet_shapes, write_lora
from regional_scene import predicted
from rendering_scene import PLAIN, render


@pytest.fixture(scope="module")
def sd15(loaded, tmp_path_factory):
    return tiny.build("sd15", tmp_path_factory.mktemp("sd15")), loaded[1]


@pytest.fixture(scope="module")
def name(sd15):
    return write_lora("rendered", {**unet_shapes(sd15[0]), **scene.text_shapes(sd15[1])}, std=0.4)


def halves(regions, left=()):
    return stack_of(
        regions,
        layer(regions, "left", *left, width=64, prompt="a red ball"),
        layer(regions, "right", x=64, width=64, prompt="a blue star"),
    )


def seen(regions, model, clip, stack, **values):
    return predicted(*render(regions, model, clip, stack, **{**PLAIN, "prompt": "a meadow", **values}))[1]


def test_a_layers_pass_has_its_lora_whole_and_the_others_have_nothing_of_it(regions, sd15, name):
    model, clip = sd15
    file = comfy.utils.load_torch_file(str(path_of(name)))
    everywhere = comfy.sd.load_bypass_lora_for_models(model, clip, file, 1.0, 1.0)
    plain = seen(regions, model, clip, halves(regions))
    mine = seen(regions, model, clip, halves(regions, [name]))
    wanted = seen(regions, *everywhere, halves(regions))
    torch.testing.assert_close(mine[..., :8], wanted[..., :8], atol=1e-4, rtol=1e-3)
    assert float((wanted - plain)[..., :8].abs().max()) > 0.01
    assert float((mine - plain)[..., 8:].abs().max()) < 1e-5


def test_after_the_share_the_lora_acts_in_its_place(regions, sd15):
    model, clip = sd15
    last = write_lora("rendered_last", unet_shapes(model, lambda n: n == "out.2"))
    for then in ("prompt", "regions"):
        plain, mine = (
            seen(regions, model, clip, halves(regions, own), share=0.0, then=then) for own in ((), [last])
        )
        changed = (mine - plain).abs().amax((0, 1, 2))
        assert float(changed[:8].min()) > 0
        assert float(changed[8:].max()) == 0
