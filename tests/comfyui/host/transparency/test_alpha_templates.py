"""The workflows for models that know alpha run on small random networks, in place of the files that their loaders
name."""

import json
from pathlib import Path

import comfy.sd
import folder_paths
import numpy as np
import pytest
import tiny
import tiny_transformers
import torch
from boot import PACK
from decompose_scene import rgba_vae
from graph import node
from PIL import Image
from safetensors.torch import save_file

import nodes as comfy_nodes

LOADERS = {"UNETLoader": 0, "CLIPLoader": 1, "DualCLIPLoader": 1, "VAELoader": 2}
"""The loaders of files, and the output of a small network that stands for each."""


class TinyFlux:
    """A node that outputs a small random FLUX.1 with its text encoder and VAE."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def load(self):
        return tiny_transformers.shared_model("flux"), tiny_transformers.clip("flux"), flux_vae()


def flux_vae():
    """Return a small random VAE with 16 latent channels."""
    shape = {
        "double_z": True, "z_channels": 16, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    with torch.inference_mode(False):
        vae = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": shape, "embed_dim": 16}})
        tiny_transformers.fill(vae.first_stage_model)
    vae.latent_channels = 16
    return vae


@pytest.fixture(autouse=True)
def files(host, pack, monkeypatch):
    """Write the files that stand for those of LayerDiffuse for Flux, and a picture."""
    networks = pack("layered_core.transparency.transparent_networks")
    parts = {
        "decoder": networks.TransparentDecoder((8, 8, 8, 8, 16, 16, 16), 16),
        "encoder": networks.TransparentEncoder((8, 8, 8, 8), 16),
    }
    weights = {}
    for part, network in parts.items():
        with torch.inference_mode(False):
            tiny_transformers.fill(network)
        weights |= {f"{part}.{k}": v.detach().clone() for k, v in network.state_dict().items()}
    weights["decoder.conv_out.bias"].fill_(0.5)
    tiny.FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(weights, tiny.FOLDER / "TransparentVAE.safetensors")
    loras = Path(folder_paths.get_folder_paths("loras")[0])
    loras.mkdir(parents=True, exist_ok=True)
    save_file(flux_lora(), loras / "layerlora.safetensors")
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(host.input / "example.png")
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "TestTinyFlux", TinyFlux)
    host.fresh()


def flux_lora():
    """Return a LoRA in the form of diffusers, for the attention of a small Flux."""
    random = torch.Generator().manual_seed(4)
    weights = {}
    for block in ("transformer_blocks.0", "single_transformer_blocks.1"):
        for part in ("to_q", "to_k", "to_v"):
            name = f"transformer.{block}.attn.{part}"
            weights[f"{name}.lora_A.weight"] = torch.randn(4, 64, generator=random)
            weights[f"{name}.lora_B.weight"] = torch.randn(64, 4, generator=random)
    return weights


def template(name, loader):
    """Return the prompt of a workflow with a small network for the loaders' files, and few small steps."""
    prompt = json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    loaders = {k: LOADERS[n["class_type"]] for k, n in prompt.items() if n["class_type"] in LOADERS}
    prompt = {k: n for k, n in prompt.items() if k not in loaders}
    for item in prompt.values():
        for key, value in item["inputs"].items():
            if isinstance(value, list) and value[0] in loaders:
                item["inputs"][key] = ["tiny", loaders[value[0]]]
            if key in ("width", "height", "long_side"):
                item["inputs"][key] = 64
            if key == "steps":
                item["inputs"][key] = 10  # fewer would make a denoise of 0.9 a full one
    return {**prompt, "tiny": node(loader)}


def kinds(prompt, kind):
    return [k for k, n in prompt.items() if n["class_type"] == kind]


def saved(host, prompt, pack):
    """Run a workflow and return the document of the PSD that it saves."""
    (saving,) = kinds(prompt, "LD_SaveLayers")
    (file,) = host.run(prompt)[saving]["layered_files"]
    path = host.output / file["subfolder"] / file["filename"]
    return pack("layered_core.files").read_layers(path).document


def test_a_picture_is_taken_apart_and_its_psd_is_that_picture(host, pack):
    prompt = template("32_decompose_qwen_layered", "TestLayeredModel")
    (composite,) = kinds(prompt, "LD_LayerComposite")
    picture = host.value(prompt, kinds(prompt, "LoadImage")[0])
    assert torch.equal(host.value(prompt, composite), picture)
    document = saved(host, prompt, pack)
    again = pack("layered_core.canvas.compositing").composite(document)[..., :3]
    assert len(document) >= 2
    assert torch.equal((255 * again).round(), (255 * picture[0]).round())


def test_the_four_channels_of_vae_decode_become_a_layer_with_alpha(host, pack):
    prompt = template("35_alpha_qwen_image", "TestLayeredModel")
    (decode,) = kinds(prompt, "VAEDecode")
    pixels = host.value(prompt, decode)
    assert pixels.shape == (1, 64, 64, 4)
    assert 0 < float(pixels[..., 3].mean()) < 1
    stack = host.value(prompt, kinds(prompt, "LD_LayersFromPictures")[0])
    (layer,) = pack("nodes.layers.socket").read_stack(stack)
    x, y = int(layer.x), int(layer.y)
    cut = pixels[0, y : y + layer.height, x : x + layer.width]
    seen = cut[..., 3] >= 1 / 255
    assert torch.equal(layer.image[seen], cut.float()[seen])
    assert bool((layer.image[~seen] == 0).all())
    (there,) = saved(host, prompt, pack)
    assert there.name == layer.name
    assert float((there.image - layer.image)[seen].abs().max()) <= 0.51 / 255


def test_the_words_that_switch_the_alpha_on_are_around_the_prompt():
    prompt = json.loads((PACK / "workflows/api/35_alpha_qwen_image.json").read_text(encoding="utf-8"))
    (text,) = [n["inputs"]["text"] for n in prompt.values() if n["class_type"] == "CLIPTextEncode"]
    assert text.startswith("This is an RGBA format image with transparency. ")
    assert text.endswith(" The image has an alpha channel and a transparent background.")


def test_every_node_of_the_newer_models_template_is_in_this_comfyui():
    prompt = json.loads((PACK / "workflows/api/35_alpha_qwen_image.json").read_text(encoding="utf-8"))
    assert {n["class_type"] for n in prompt.values()} <= set(comfy_nodes.NODE_CLASS_MAPPINGS)


def test_flux_paints_a_layer_with_alpha_and_paints_it_over_with_its_alpha(host, pack):
    prompt = template("36_alpha_flux", "TestTinyFlux")
    document = saved(host, prompt, pack)
    assert [layer.name for layer in document] == ["bottle", "green bottle"]
    first, second = kinds(prompt, "LD_TransparentDecode")
    made, over = host.value(prompt, first), host.value(prompt, second)
    assert made.shape == over.shape == (1, 64, 64, 4)
    assert 0 < float(made[..., 3].mean()) < 1
    assert not torch.equal(made, over)


def test_the_lora_and_the_alpha_that_goes_back_in_count(host):
    prompt = template("36_alpha_flux", "TestTinyFlux")
    first, second = kinds(prompt, "LD_TransparentDecode")
    made, over = host.value(prompt, first), host.value(prompt, second)
    plain = json.loads(json.dumps(prompt))
    plain[kinds(plain, "LoraLoaderModelOnly")[0]]["inputs"]["strength_model"] = 0.0
    assert not torch.equal(host.value(plain, first), made)
    opaque = json.loads(json.dumps(prompt))
    opaque["clear"] = node("SolidMask", value=0.0, width=64, height=64)
    opaque[kinds(opaque, "LD_TransparentEncode")[0]]["inputs"]["mask"] = ["clear", 0]
    assert not torch.equal(host.value(opaque, second), over)


def test_a_vae_with_alpha_takes_a_picture_with_three_channels_as_opaque():
    vae = rgba_vae()
    with torch.inference_mode():
        picture = torch.rand(1, 32, 32, 3)
        opaque = torch.cat([picture, torch.ones(1, 32, 32, 1)], -1)
        assert torch.equal(vae.encode(picture), vae.encode(opaque))
