"""Run UNet passes with LayerDiffuse files in layered_diffusers: ``python layer_diffuse_reference.py FOLDER``.

This script runs in the repository's environment; host/transparency/test_layer_diffuse.py writes ``jobs.json``
for it and reads ``out.safetensors``.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from layered_diffusers.methods.layer_diffuse import LayerDiffuse
from layered_diffusers.pipeline import LayeredDiffusionPipeline

SCALES = {"sd15": 0.18215, "sdxl": 0.13025}


@torch.no_grad()
def main(folder):
    pictures = load_file(folder / "pictures.safetensors")
    storybook = LayeredDiffusionPipeline.from_pretrained(device="cpu").model
    out = {}
    for number, job in enumerate(json.loads((folder / "jobs.json").read_text())):
        data = load_file(job["data"])
        storybook.vae.register_to_config(scaling_factor=SCALES[job["family"]])
        unet = UNet2DConditionModel.from_pretrained(job["unet"]).float()
        model = storybook
        model.unet = unet
        mode = job["mode"]
        takes = [p for p in pictures if p in mode.split(" to ")[0]] if " to " in mode else []
        makes = [p for p in ("foreground", "background", "blend") if p in mode.split(" to ")[-1]]
        words = {f: f"a {f}" for f in makes[:-1]} if job["words"] else {}
        change = LayerDiffuse(
            model, job["file"], mode, pictures={p: pictures[p] for p in takes}, words=words,
            weight=job["weight"]
        )  # fmt: skip
        more = {}
        if "y" in data:
            # The rest of y embeds six numbers: by ComfyUI's default the sampled size, cropped at
            # its corner.
            numbers = torch.tensor([64.0, 64, 0, 0, 64, 64]).expand(len(data["y"]), 6)
            more["added_cond_kwargs"] = {"text_embeds": data["y"][:, :1280], "time_ids": numbers}
        change.switch(True)
        out[str(number)] = unet(data["x"], data["t"], data["context"], **more).sample
        change.switch(False)
    save_file(out, folder / "out.safetensors")


main(Path(sys.argv[1]))
