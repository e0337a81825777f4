"""Neutral values change no bit, neither of a picture that passes through nor of a patched model's samples."""

import numpy as np
import torch
from graph import (
    from_image,
    layer_diffuse,
    load,
    masked_patch,
    node,
    per_layer_sdedit,
    regenerate,
    regional,
    rendering,
)
from learning_scene import one_ball, training_data
from PIL import Image
from sampling import LOADER, models, of_ours, sample

import nodes as comfy_nodes

NEUTRAL: dict[str, dict] = {
    "LD_LayerDiffuseApply": {"it": layer_diffuse("layer_xl_transparent_attn.safetensors", weight=0.0)},
    "LD_MaskedModelPatch": {
        "patched": node("TestPatchedModel", model=["loader", 0]),
        "it": masked_patch(strength=0.0),
    },
    "LD_PerLayerSDEdit": {"a": from_image(width=128, height=128, noise=1.0), "it": per_layer_sdedit("a")},
    "LD_RegenerateLayers": {
        "a": from_image(name="box", width=128, height=128),
        "it": regenerate("a", "box", grow=0, feather=0),
    },
    "LD_RegionalPromptAttention": {
        "a": from_image(width=64, height=128, prompt="a red ball"),
        "it": regional("a", strength=0.0),
    },
    "LD_LayeredRendering": {
        "a": from_image(width=64, height=128, prompt="a red ball"),
        "it": rendering("a", share=0.0),
    },
    "LD_LayerTrainingData": {**one_ball(), "it": training_data(masked=False)},
}
"""For every node of ours with a MODEL as input and output: a prompt in which it is called "it" and has its
neutral values."""


def method_nodes():
    def has_model(puts):
        return any(p.get_io_type() == "MODEL" for p in puts)

    schemas = {k: comfy_nodes.NODE_CLASS_MAPPINGS[k].GET_SCHEMA() for k in of_ours()}
    return sorted(k for k, s in schemas.items() if has_model(s.inputs) and has_model(s.outputs))


def test_every_method_at_its_neutral_values_samples_the_same_bits(host):
    assert sorted(NEUTRAL) == method_nodes()
    for node_id, prompt in NEUTRAL.items():
        host.fresh()
        model, positive, negative = models(host)
        patched = host.value({**LOADER, **prompt}, "it", 0)
        assert torch.equal(sample(patched, positive, negative), sample(model, positive, negative)), node_id


def test_a_layer_at_its_neutral_values_is_the_file_to_the_bit(host):
    pixels = np.random.default_rng(0).integers(0, 256, (11, 17, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(host.input / "noise.png")
    prompt = {
        "a": load("noise.png"),
        "it": node("LD_LayerComposite", layers=["a", 0], backdrop="transparent"),
    }
    image = host.value(prompt, "it", 0)
    assert torch.equal(
        (image[0, ..., :3] * 255).round().to(torch.uint8), torch.from_numpy(pixels[..., :3].copy())
    )


def test_a_hidden_layer_or_one_of_no_opacity_changes_no_bit(host):
    Image.new("RGBA", (16, 16), (255, 0, 0, 255)).save(host.input / "red.png")
    alone = host.value(
        {"a": load("red.png"), "it": node("LD_LayerComposite", layers=["a", 0], backdrop="transparent")},
        "it",
        0,
    )
    for change in ({"visible": False}, {"opacity": 0.0}):
        above = from_image(width=8, height=8, **change)
        above["inputs"]["layers"] = ["a", 0]
        stacked = host.value(
            {
                "a": load("red.png"),
                "b": above,
                "it": node("LD_LayerComposite", layers=["b", 0], backdrop="transparent"),
            },
            "it",
            0,
        )
        assert torch.equal(stacked, alone)
