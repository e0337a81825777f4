"""LoRA files of every kind for the modules of tiny networks, and stacks of layers that have them."""

from pathlib import Path

import folder_paths
import torch
from safetensors.torch import save_file

RANK = 3
KINDS = ("lora", "mid", "loha", "lokr", "glora", "oft", "boft", "diff")
"""The kinds that ComfyUI's bypass computes, and differences of weights and biases."""


def _random(generator, *shape, std=0.2):
    return torch.randn(shape, generator=generator) * std


def _kronecker(size):
    return next(n for n in (4, 3, 2, 1) if size % n == 0)


def tensors_of(kind, shape, generator):
    """Return the tensors of one module with a weight of that shape, by the endings of their names."""
    out, inner, *kernel = shape

    def random(*s):
        return _random(generator, *s)

    if kind == "mid" and kernel:
        return {
            "lora_up.weight": random(out, RANK, 1, 1), "lora_down.weight": random(RANK, inner, 1, 1),
            "lora_mid.weight": random(RANK, RANK, *kernel), "alpha": torch.tensor(2.0),
        }  # fmt: skip
    if kind in ("lora", "mid"):
        down = random(RANK, inner, *kernel)
        up = random(out, RANK, *[1] * len(kernel))
        return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(2.0)}
    flat = inner * int(torch.tensor(kernel).prod()) if kernel else inner
    if kind == "loha":
        shapes = {"a": (out, RANK), "b": (RANK, flat)}
        names = {f"hada_w{i}_{side}": shapes[side] for i in (1, 2) for side in "ab"}
        return {name: 2 * random(*s) for name, s in names.items()}
    if kind == "lokr":
        a, b = _kronecker(out), _kronecker(inner)
        return {"lokr_w1": random(a, b), "lokr_w2": random(out // a, inner // b, *kernel)}
    if kind == "glora":
        return {
            "a1.weight": random(inner, RANK), "a2.weight": random(RANK, inner),
            "b1.weight": random(out, RANK), "b2.weight": random(RANK, flat),
        }  # fmt: skip
    if kind == "oft":
        return {"oft_blocks": random(out // 4, 4, 4)}
    if kind == "boft":
        return {"oft_blocks": random(2, out // 4, 4, 4), "alpha": torch.tensor(9.0)}
    return {"diff": random(*shape), "diff_b": random(out)}


def shapes_of(root, prefix, chosen=lambda name: True):
    """Return the names, with a prefix, and shapes of the weights of linear layers and convolutions of a network."""
    return {
        prefix + name: tuple(module.weight.shape)
        for name, module in root.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and chosen(name)
    }


def write_lora(name, shapes, kind="lora", seed=0, std=1.0):
    """Write a LoRA for weights of these names and shapes to ComfyUI's folder; return its name in a recipe."""
    generator = torch.Generator().manual_seed(seed)
    file = {}
    for module, shape in shapes.items():
        for ending, tensor in tensors_of(kind, shape, generator).items():
            file[f"{module}.{ending}"] = (tensor if tensor.ndim == 0 else tensor * std).contiguous()
    return write_file(name, file)


def write_file(name, tensors):
    """Write tensors to ComfyUI's folder of LoRAs; return the name."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"{name}.safetensors")
    folder_paths.cache_helper.clear()
    folder_paths.filename_list_cache.clear()
    return name


def path_of(name):
    return Path(folder_paths.get_folder_paths("loras")[0]) / f"{name}.safetensors"


def unet_shapes(model, chosen=lambda name: True):
    return shapes_of(model.model.diffusion_model, "diffusion_model.", chosen)


def text_shapes(clip):
    return shapes_of(
        clip.cond_stage_model, "text_encoders.", lambda name: "layers" in name and "Embedding" not in name
    )


def with_own(regions, layer, *loras):
    """Return a layer with LoRAs, each a name or a name and a strength."""
    from dataclasses import replace

    own = tuple(regions.document.Lora(*((x,) if isinstance(x, str) else x)) for x in loras)
    return replace(layer, recipe=replace(layer.recipe, loras=own))


def stack_of(regions, *layers, side=128):
    return regions.layers.write_stack(regions.document.LayerDocument(side, side, layers))


def layer(regions, name, *loras, x=0, width=128, prompt="a red ball", **more):
    made = regions.document.Layer(name, x=x, width=width, height=128, prompt=prompt, **more)
    return with_own(regions, made, *loras)
