"""Run the demo model in diffusers and transformers: ``python reference.py MODEL OUT PROMPTS``. This script
runs in the repository's environment."""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer


@torch.no_grad()
def main(folder, out, prompts):
    random = torch.Generator().manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").float()
    vae = AutoencoderTiny.from_pretrained(folder / "vae").float()
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").float()
    tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer")(
        prompts, padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    latents = torch.randn(len(prompts), 4, 16, 24, generator=random)
    picture = torch.rand(1, 3, 64, 96, generator=random)
    tensors = {"latents": latents, "picture": picture, "context": text(tokens)[0]}
    for t in (999, 500, 20):
        tensors[f"v{t}"] = unet(latents, t, tensors["context"]).sample
    tensors["encoded"] = vae.encode(picture * 2 - 1).latents
    tensors["decoded"] = vae.decode(latents).sample
    save_file({k: v.contiguous() for k, v in tensors.items()}, out)


main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
