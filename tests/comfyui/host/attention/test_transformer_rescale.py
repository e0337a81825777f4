"""Regional Prompt Attention's rescale on every family of transformers, against ComfyUI's RescaleCFG."""

import pytest
import tiny_transformers as tiny
import torch
from comfy_extras.nodes_model_advanced import RescaleCFG
from regional_scene import WIDGETS, everywhere, halves


def apply(regions, family, stack, **values):
    """Return model, positive and negative."""
    widgets = {**WIDGETS, "prompt": "a meadow at noon", "negative": "dark", **values}
    return regions.node.execute(tiny.shared_model(family), tiny.clip(family), stack, **widgets).result


@pytest.mark.parametrize("family", list(tiny.MODELS))
def test_a_layer_over_the_whole_canvas_is_rescaled_as_by_comfyuis_own_node(family, regions):
    stack, how = everywhere(regions), {"cfg": 4.0, "size": None}
    model, *words = apply(regions, family, stack)
    wanted = tiny.sampled(RescaleCFG().patch(model, 0.7)[0], family, *words, **how)
    plain = tiny.sampled(model, family, *words, **how)
    assert float((wanted - plain).abs().max()) > 1e-4
    model, *words = apply(regions, family, stack, rescale=0.7)
    torch.testing.assert_close(tiny.sampled(model, family, *words, **how), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["flux", "anima"])
def test_neutral_values_and_cfg_1_change_no_bit(family, regions):
    stack = halves(regions)

    def made(cfg, **values):
        model, *words = apply(regions, family, stack, **values)
        return tiny.sampled(model, family, *words, cfg=cfg)

    assert torch.equal(made(4.0, rescale=0.0), made(4.0))
    assert torch.equal(made(1.0, rescale=1.0), made(1.0))
    assert not torch.equal(made(4.0, rescale=1.0), made(4.0))
