"""ComfyUI and the headless host sample the same with a transformer, from the same weights, words and layers."""

import json

import comfy.model_detection
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from regional_scene import MODES, WIDGETS, encode, halves
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def reference(run_headless, tmp_path_factory):
    """The headless host's latents, the random transformer in ComfyUI, and the words."""
    folder = tmp_path_factory.mktemp("transformer")
    run_headless("regional_transformer_reference.py", folder)
    given = json.loads((folder / "given.json").read_text())
    return load_file(folder / "sampled.safetensors"), flux(folder), given


def flux(folder):
    shape = json.loads((folder / "config.json").read_text())
    heads, width = shape["num_attention_heads"], shape["attention_head_dim"]
    config = comfy.supported_models.FluxSchnell({
        "image_model": "flux", "in_channels": shape["in_channels"] // 4, "out_channels": shape["in_channels"] // 4,
        "patch_size": 2, "context_in_dim": shape["joint_attention_dim"], "vec_in_dim": shape["pooled_projection_dim"],
        "hidden_size": heads * width, "num_heads": heads, "mlp_ratio": 4.0, "depth": shape["num_layers"],
        "depth_single_blocks": shape["num_single_layers"], "axes_dim": shape["axes_dims_rope"], "theta": 10000,
        "qkv_bias": True, "guidance_embed": shape["guidance_embeds"], "txt_ids_dims": [],
    })  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = config.get_model({})
        weights = load_file(folder / "diffusion_pytorch_model.safetensors")
        model.diffusion_model.load_state_dict(comfy.model_detection.convert_diffusers_mmdit(weights))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def sampled(patcher, positive, negative, noise, sigmas, cfg):
    with torch.inference_mode():
        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        out = guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, seed=0,
            disable_pbar=True,
        )  # fmt: skip
        return patcher.model.process_latent_in(out)


@pytest.mark.parametrize("mode", ["plain", *MODES, "eligen"])
def test_both_hosts_sample_the_same(regions, loaded, reference, mode):
    tensors, model, given = reference
    _, clip = loaded
    positive, negative = encode(clip, given["prompt"]), encode(clip, given["negative"])
    if mode != "plain":
        values = {**WIDGETS, "mode": mode, "prompt": given["prompt"], "negative": given["negative"]}
        out = regions.node.execute(model, clip, halves(regions, negative="a white house"), **values)
        model, positive, negative = out.result
    ours = sampled(model, positive, negative, tensors["noise"], tensors["sigmas"], given["guidance"])
    theirs = tensors[mode]
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3
    if mode != "plain":
        assert float((theirs - tensors["plain"]).norm() / tensors["plain"].norm()) > 1e-2
