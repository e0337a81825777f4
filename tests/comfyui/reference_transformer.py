"""Write a storybook transformer of random weights, what diffusers computes with it, and what training's own
sampler makes of words: ``python reference_transformer.py FOLDER WORDS``. This script runs in the repository's
environment."""

import sys
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from demo.train.transformer import SHIFT, RecordingJointAttention, new_transformer, positions, sample
from demo.world.places import MODEL, TRANSFORMER, TRANSFORMER_SCHEDULER


@torch.no_grad()
def main(folder, words):
    torch.manual_seed(0)
    model = new_transformer()
    for parameter in model.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder / TRANSFORMER.name)
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(folder / TRANSFORMER_SCHEDULER.name)
    t, context, pooled = torch.tensor([0.3, 0.9]), torch.randn(2, 20, 64), torch.randn(2, 64)
    tokens = torch.randn(2, 48, 16)
    v = model(tokens, context, pooled, t, positions(8, 6, 0), torch.zeros(20, 3)).sample
    tensors = {"tokens": tokens, "t": t, "context": context, "pooled": pooled, "v": v}

    text = CLIPTextModel.from_pretrained(MODEL / "text_encoder").float()
    ids = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")(
        [words] * 2 + [""] * 2, padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    record = RecordingJointAttention()
    model.set_attn_processor(record)
    tensors["noise"] = torch.randn(2, 4, 16, 16)
    tensors["words"], tensors["words_pooled"] = text(ids)[:2]
    told = tensors["words"], tensors["words_pooled"]
    tensors["sampled"] = sample(model, record, tensors["noise"], *told, steps=20, guidance=4)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "reference.safetensors")


main(Path(sys.argv[1]), sys.argv[2])
