"""Write a storybook transformer of random weights, and what the headless host samples with it from layers:
``python regional_transformer_reference.py FOLDER``. This script runs in the repository's environment."""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from demo.train.transformer import new_transformer
from demo.world.places import MODEL
from layered_core.attention.regional_plan import REGION_MODES, Settings
from layered_core.document import Layer, LayerDocument
from layered_diffusers.pipeline import TransformerPipeline

WORDS = ("a red ball", "a blue star")


@torch.no_grad()
def main(folder):
    torch.manual_seed(0)
    transformer = new_transformer()
    for parameter in transformer.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5)
    transformer.save_pretrained(folder)
    model = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5),
        vae=AutoencoderTiny.from_pretrained(MODEL / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(MODEL / "text_encoder").float(),
        tokenizer=CLIPTokenizer.from_pretrained(MODEL / "tokenizer"),
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer.eval(),
    )
    model.set_progress_bar_config(disable=True)
    pipeline = TransformerPipeline(model, side=128)
    layers = [
        Layer(f"layer {i}", x=64 * i, y=0, width=64, height=128, prompt=words, negative="a white house")
        for i, words in enumerate(WORDS)
    ]
    document = LayerDocument(128, 128, tuple(layers))
    given = {"prompt": "a red ball and a blue star", "negative": "dark", "guidance": 3.0}
    how = {"seeds": [0], "steps": 3, "guidance": 3.0, "negative": "dark"}
    tensors = {"plain": pipeline.sample_latents([given["prompt"]], **how)[0]}
    for mode in REGION_MODES:
        method = pipeline.regional_prompts(
            [document], Settings(mode=mode), prompts=[given["prompt"]], negative="dark"
        )
        tensors[mode] = pipeline.sample_latents([given["prompt"]], methods=[method], **how)[0]
    tensors["noise"] = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    tensors["sigmas"] = model.scheduler.sigmas
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sampled.safetensors")
    (folder / "given.json").write_text(json.dumps(given))


main(Path(sys.argv[1]))
