"""Write a storybook transformer of random weights and what diffusers computes with it: ``python
reference_transformer.py FOLDER``. This script runs in the repository's environment."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from demo.train.transformer import new_transformer, positions


@torch.no_grad()
def main(folder):
    torch.manual_seed(0)
    model = new_transformer()
    for parameter in model.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    t, context, pooled = torch.tensor([0.3, 0.9]), torch.randn(2, 20, 64), torch.randn(2, 64)
    tokens = torch.randn(2, 48, 16)
    v = model(tokens, context, pooled, t, positions(8, 6, 0), torch.zeros(20, 3)).sample
    tensors = {"tokens": tokens, "t": t, "context": context, "pooled": pooled, "v": v}
    save_file(tensors, folder / "reference.safetensors")


main(Path(sys.argv[1]))
