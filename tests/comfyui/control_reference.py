"""Compute the weighted residuals of the headless host: ``python control_reference.py MODEL NET DOCUMENT
OUT``. It runs in the repository's environment."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from layered_core.control.control_map import CONTROL_MODES, ControlMap
from layered_core.control.hints import document_hint
from layered_core.files import read_layers
from layered_diffusers.methods.masked_control import MaskedControl, load_controlnet
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Run


@torch.no_grad()
def main(model, net, document, out):
    given = load_file(document / "inputs.safetensors")
    pipeline = LayeredDiffusionPipeline.from_pretrained(model, device="cpu")
    layers = read_layers(document / "document.json").document
    tensors = {"hint": document_hint(layers, outline=True)}
    for mode in CONTROL_MODES:
        control = MaskedControl(load_controlnet(net), tensors["hint"], ControlMap.of(layers, mode=mode))
        latents = given["latents"]
        run = Run(
            unet=pipeline.model.unet,
            scheduler=pipeline.model.scheduler,
            timesteps=torch.tensor([500]),
            latents=latents,
            noise=latents,
            context=given["context"],
            guidance=3.0,
        )
        control.start(run, None)
        more = control.model_inputs(run, torch.cat([latents] * 2), 0)
        for i, residual in enumerate(
            [*more["down_block_additional_residuals"], more["mid_block_additional_residual"]]
        ):
            tensors[f"{mode} {i}"] = residual
    save_file({k: v.contiguous() for k, v in tensors.items()}, out)


main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
