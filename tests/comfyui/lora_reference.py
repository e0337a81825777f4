"""Write what the headless host samples with the storybook and LoRAs of layers: ``python lora_reference.py FOLDER``.
This script runs in the repository's environment."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from demo.world.places import LORAS, MODEL
from layered_core.attention.regional_plan import Settings
from layered_core.document import Layer, LayerDocument, Lora, Recipe
from layered_diffusers.pipeline import LayeredDiffusionPipeline

PROMPT, NEGATIVE = "a red ball and a blue star in a meadow", "dark"
STEPS = 4
CASES = {
    "shipped": {"ball": [["pink", 1.0]], "star": [["striped", 0.8]]},
    "one on two": {"ball": [["pink", 1.0]], "star": [["pink", -0.5]]},
    "everything": {"back": [["all", 0.7]]},
    "all kinds": {"ball": [["all", 1.0]]},
    "two on one": {"ball": [["all", 0.5], ["pink", 1.0]]},
}
"""By name: the LoRAs of the layers, each with its strength. ``all`` changes every layer of UNet and text encoder."""
RANK = 2


def stack(loras):
    """A landscape, and two things on it, one before the other."""
    layers = [
        ("back", "a meadow", 0, 0, 128, ""),
        ("ball", "a red ball", 6, 40, 70, "a white house"),
        ("star", "a blue star", 60, 58, 61, ""),
    ]
    return LayerDocument(
        128, 128,
        tuple(
            Layer(
                name, prompt=words, negative=negative, x=x, y=y, width=side, height=side,
                recipe=Recipe(loras=tuple(Lora(*lora) for lora in loras.get(name, ()))),
            )
            for name, words, x, y, side, negative in layers
        ),
    )  # fmt: skip


def matrices(part, prefix, skipped=()):
    """Return random matrices for every linear layer and convolution of a part, by kohya's names."""
    random, tensors = torch.Generator().manual_seed(1), {}
    for name, module in part.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or any(s in name for s in skipped):
            continue
        weight, key = module.weight, f"{prefix}_{name.replace('.', '_')}"
        scale = (0.1 * float(weight.detach().std()) / RANK**0.5) ** 0.5
        down = torch.randn(RANK, *weight.shape[1:], generator=random)
        up = torch.randn(weight.shape[0], RANK, *[1] * (weight.ndim - 2), generator=random)
        tensors |= {f"{key}.lora_down.weight": down * scale, f"{key}.lora_up.weight": up * scale}
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    return tensors


@torch.no_grad()
def main(folder):
    pipeline = LayeredDiffusionPipeline.from_pretrained(MODEL, sampler="euler")
    loras = folder / "loras"
    loras.mkdir()
    for file in LORAS.glob("*.safetensors"):
        (loras / file.name).write_bytes(file.read_bytes())
    encoder = pipeline.model.text_encoder
    spoken = matrices(getattr(encoder, "text_model", encoder), "lora_te_text_model")
    save_file(matrices(pipeline.model.unet, "lora_unet") | spoken, loras / "all.safetensors")
    tensors = {}
    for name, owned in {**CASES, "none": {}}.items():
        method = pipeline.regional_prompts(
            [stack(owned)], Settings(growth=0.1), prompts=[PROMPT], negative=NEGATIVE, adapters=loras
        )
        tensors[name] = pipeline.sample_latents(
            method.prompts, seeds=[3], steps=STEPS, guidance=3.0, negative=NEGATIVE, methods=[method]
        )[0]  # fmt: skip
    scheduler = type(pipeline.model.scheduler).from_config(pipeline.model.scheduler.config)
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    tensors["start"], tensors["sigmas"] = noise * scheduler.init_noise_sigma, scheduler.sigmas
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sampled.safetensors")
    layers = [
        {k: getattr(layer, k) for k in ("name", "x", "y", "width", "height", "prompt", "negative")}
        for layer in stack({})
    ]
    (folder / "given.json").write_text(
        json.dumps({"prompt": PROMPT, "negative": NEGATIVE, "cases": CASES, "layers": layers})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
