"""A picture for a ControlNet, and ComfyUI's own node that applies one."""

import torch

import nodes as comfy_nodes


def hint(height=128, width=128, seed=0):
    return (torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed)) > 0.8).float()


def core(net, positive, negative, image, strength=1.0, start=0.0, end=1.0):
    return comfy_nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, net, image, strength, start, end
    )
