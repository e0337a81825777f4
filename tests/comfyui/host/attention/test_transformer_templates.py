"""The workflows for transformers run on small random networks of their families, in place of the files that their
loaders name; and the texts of Regional Prompt Attention name every family."""

import copy
import json

import pytest
import tiny_transformers as tiny
import torch
from boot import PACK
from graph import node

import nodes

FAMILIES = {
    "16_regions_flux": "flux",
    "17_regions_qwen_image": "qwen",
    "18_regions_z_image": "zimage",
    "23_layered_rendering_flux": "flux",
}
NEUTRAL = {
    "LD_RegionalPromptAttention": {"strength": 0.0},
    "LD_LayeredRendering": {"share": 0.0, "then": "prompt"},
}
SIDE = 192


class TinyTransformer:
    """A node that outputs a small transformer and its text encoder."""

    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"family": ("STRING",)}}

    def load(self, family):
        return tiny.shared_model(family), tiny.clip(family)


@pytest.fixture(autouse=True)
def tiny_transformer(host, monkeypatch):
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestTinyTransformer", TinyTransformer)
    host.fresh()


def one(prompt, kind):
    """Return the id of the only node of a kind."""
    (found,) = [k for k, n in prompt.items() if n["class_type"] == kind]
    return found


def template(name):
    """Return the prompt of a workflow up to its latents, with a small network for the loaders' files, and a small
    picture in few steps."""
    prompt = json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    loaders = {k: n["class_type"] for k, n in prompt.items() if n["class_type"].endswith("Loader")}
    for k in ("VAEDecode", "SaveImage"):
        del prompt[one(prompt, k)]
    for k in loaders:
        del prompt[k]
    prompt["tiny"] = node("TestTinyTransformer", family=FAMILIES[name])
    for item in prompt.values():
        for key, value in item["inputs"].items():
            if isinstance(value, list) and value[0] in loaders:
                item["inputs"][key] = ["tiny", 0 if loaders[value[0]] == "UNETLoader" else 1]
    prompt[one(prompt, "EmptySD3LatentImage")]["inputs"].update(width=SIDE, height=SIDE)
    prompt[one(prompt, "KSampler")]["inputs"]["steps"] = 2
    return prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layers_words_act_where_the_layer_is(host, name):
    prompt = template(name)
    *_, box = [k for k, n in prompt.items() if n["class_type"] == "LD_LayerFromImage"]
    other = copy.deepcopy(prompt)
    other[box]["inputs"]["prompt"] = "a tall white lighthouse"
    one_way, another = (host.value(p, one(p, "KSampler"))["samples"] for p in (prompt, other))
    assert one_way.shape[-2:] == (SIDE // 8, SIDE // 8)
    assert bool(torch.isfinite(one_way).all())
    changed = (another - one_way).abs().flatten(0, -3).amax(0)
    canvas = prompt["4"]["inputs"]["canvas_width"]
    left, top, width, height = (
        round(prompt[box]["inputs"][k] * SIDE / 8 / canvas) for k in ("x", "y", "width", "height")
    )
    inside = torch.zeros_like(changed, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    assert float(changed[inside].mean()) > 3 * float(changed[~inside].mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_with_neutral_values_it_is_the_plain_workflow_to_the_bit(host, name):
    prompt = template(name)
    ((regions, kind),) = [(k, n["class_type"]) for k, n in prompt.items() if n["class_type"] in NEUTRAL]
    inputs = prompt[regions]["inputs"]
    plain = copy.deepcopy(prompt)
    inputs.update(NEUTRAL[kind])
    places = {
        0: inputs["model"],
        **{i: [f"text {i}", 0] for i in (1, 2)},
    }
    for i, words in ((1, inputs["prompt"]), (2, inputs["negative"])):
        plain[f"text {i}"] = node("CLIPTextEncode", clip=inputs["clip"], text=words)
    for item in plain.values():
        for key, value in item["inputs"].items():
            if isinstance(value, list) and value[0] == regions:
                item["inputs"][key] = places[value[1]]
    del plain[regions]
    got, wanted = (host.value(p, one(p, "KSampler"))["samples"] for p in (prompt, plain))
    assert torch.equal(got, wanted)


def test_every_family_is_named_in_the_tooltip_and_in_the_help_page_with_its_limit(pack, regions):
    (model,) = [i for i in regions.node.define_schema().inputs if i.id == "model"]
    rows = (PACK / "web/docs/LD_RegionalPromptAttention/en.md").read_text(encoding="utf-8").splitlines()
    for family in pack("layered_core.attention.families").FAMILIES.values():
        assert family.name.replace("Stable Diffusion 3", "3 or 3.5") in model.tooltip
        (limit,) = [row for row in rows if row.startswith("|") and family.name in row.split("|")[1]][:1]
        assert str(family.limit) in limit.split("|")[2]
