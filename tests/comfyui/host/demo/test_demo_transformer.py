"""The storybook transformer in ComfyUI's own Flux class computes what diffusers computes."""

import json
import os
import subprocess
from pathlib import Path

import comfy.model_detection
import comfy.supported_models
import torch
from safetensors.torch import load_file

PACK = Path(__file__).resolve().parents[4]
REFERENCE = Path(__file__).resolve().parents[2] / "reference_transformer.py"


def latents(tokens):
    """Return patches [B, 48, 16] as latents [B, 4, 16, 12]."""
    return tokens.reshape(2, 8, 6, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 16, 12)


@torch.no_grad()
def test_comfyuis_flux_computes_what_diffusers_computes(host, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(PACK)}
    command = [os.environ["LAYERED_PYTHON"], str(REFERENCE), str(tmp_path)]
    subprocess.run(command, check=True, cwd=PACK, env=environment)
    reference = load_file(tmp_path / "reference.safetensors")
    shape = json.loads((tmp_path / "config.json").read_text())
    heads, width = shape["num_attention_heads"], shape["attention_head_dim"]
    config = comfy.supported_models.FluxSchnell({
        "image_model": "flux", "in_channels": shape["in_channels"] // 4, "out_channels": shape["in_channels"] // 4,
        "patch_size": 2, "context_in_dim": shape["joint_attention_dim"], "vec_in_dim": shape["pooled_projection_dim"],
        "hidden_size": heads * width, "num_heads": heads, "mlp_ratio": 4.0, "depth": shape["num_layers"],
        "depth_single_blocks": shape["num_single_layers"], "axes_dim": shape["axes_dims_rope"], "theta": 10000,
        "qkv_bias": True, "guidance_embed": shape["guidance_embeds"], "txt_ids_dims": [],
    })  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    converted = comfy.model_detection.convert_diffusers_mmdit(weights)
    assert not weights  # every weight has a place
    model.diffusion_model.load_state_dict(converted)

    x, t = latents(reference["tokens"]), reference["t"]
    v = model.diffusion_model(x, t, reference["context"], reference["pooled"])
    torch.testing.assert_close(v, latents(reference["v"]), atol=1e-4, rtol=0)
    clean = model.apply_model(x, t, c_crossattn=reference["context"], y=reference["pooled"])
    torch.testing.assert_close(clean, x - t.view(-1, 1, 1, 1) * v, atol=1e-4, rtol=0)
