"""LoRAs of layers act in their layers, and nowhere else."""

import comfy.sd
import comfy.utils
import lora_scene as scene
import pytest
from lora_scene import KINDS, layer, path_of, stack_of, unet_shapes, write_lora
from regional_scene import apply, predicted

PLAIN = {"prompt": "a meadow at noon", "negative": "dark"}


@pytest.fixture
def seen(regions, loaded):
    """Return the predictions of a stack of layers, on the storybook model."""

    def predict(*layers, model=None, **values):
        out = apply(regions, model or loaded[0], loaded[1], stack_of(regions, *layers), **{**PLAIN, **values})
        return predicted(*out)[1:]

    return predict


def bypassed(model, clip, name, strength=1.0):
    """Return model and clip with a LoRA for the whole picture, as ComfyUI's bypass loader gives them."""
    file = comfy.utils.load_torch_file(str(path_of(name)))
    return comfy.sd.load_bypass_lora_for_models(model, clip, file, strength, strength)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_over_everything_is_cores_bypass_lora(kind, regions, loaded):
    model, clip = loaded
    shapes = {**unet_shapes(model), **scene.text_shapes(clip)}
    if kind == "diff":
        shapes = unet_shapes(model, lambda name: not name.startswith(("time_embed", "label_emb")))
    name = write_lora(f"whole_{kind}", shapes, kind, std=0.5)
    whole = stack_of(regions, layer(regions, "all", (name, 0.7)))
    mine = predicted(*apply(regions, model, clip, whole, **PLAIN))
    if kind == "diff":  # of which the bypass loader changes the weights
        file = comfy.utils.load_torch_file(str(path_of(name)))
        changed = comfy.sd.load_lora_for_models(model, clip, file, 0.7, 0.7)
    else:
        changed = bypassed(model, clip, name, 0.7)
    core = predicted(*apply(regions, *changed, stack_of(regions, layer(regions, "all")), **PLAIN))
    without = predicted(*apply(regions, model, clip, stack_of(regions, layer(regions, "all")), **PLAIN))
    for got, want, plain in zip(mine[1:], core[1:], without[1:], strict=True):
        scale = float(want.abs().max())
        assert float((want - plain).abs().max()) > 0.02 * scale
        assert float((got - want).abs().max()) < 1e-4 * scale
