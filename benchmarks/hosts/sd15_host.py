"""SD1.5-size models with random weights in ComfyUI, and a comparison of the times of several ways to sample.

Scripts that run under ComfyUI's python import this module first. Such a process reaches the project's code
only
through the pack: the repository must not be on its path.
"""

from __future__ import annotations

from answers import ANSWERS  # isort: skip  # first: reserves standard output for answers
import boot  # isort: skip  # second: it makes ComfyUI importable

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from tqdm import tqdm

Conditioning = list[list[Any]]

SHAPE = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1, "context_dim": 768, "num_heads": 8, "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False, "legacy": False, "adm_in_channels": None,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
"""Configuration of SD1.5's UNet."""


def load_pack() -> None:
    """Load ComfyUI's own nodes and this pack's.

    Raises:
        SystemExit: the pack could not be loaded.
    """
    boot.load_extras()
    if not boot.load_pack():
        raise SystemExit("ComfyUI could not load the pack. The log above says why")


def unet() -> comfy.model_patcher.ModelPatcher:
    """Return SD1.5's UNet with random weights."""
    device = comfy.model_management.get_torch_device()
    config = comfy.supported_models.SD15(dict(SHAPE))
    config.set_inference_dtype(comfy.model_management.unet_dtype(model_params=860_000_000), None)
    model = config.get_model({}, device=device)
    fill(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, device, comfy.model_management.unet_offload_device())


def text_encoder() -> comfy.sd.CLIP:
    """Return SD1.5's text encoder with random weights."""
    clip = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        parameters=123_000_000,
    )
    fill(clip.cond_stage_model)
    return clip


def fill(module: torch.nn.Module) -> None:
    """Fill a module with random weights as small as trained ones, so that values stay in range in all
    layers."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(float(name.endswith("weight")))  # weights of norms are 1, biases 0


def encode(clip: comfy.sd.CLIP, words: str) -> Conditioning:
    """Encode words as ComfyUI's own node does."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(words))


def run(
    model: comfy.model_patcher.ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    side: int,
    steps: int,
) -> torch.Tensor:
    """Sample one picture of ``side`` pixels with Euler steps."""
    noise = torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(7.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    return guider.sample(
        noise,
        torch.zeros_like(noise),
        comfy.samplers.sampler_object("euler"),
        sigmas,
        disable_pbar=True,
        seed=0,
    )


def time_by_turns(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Time all variants by turns and return each one's cost relative to ``plain``: in every round its time is
    divided by plain's; ``<name>`` is the median over the rounds, ``<name>_range`` the least and greatest.

    ``<name>_processor`` is the same in processor time, which other programs on the machine disturb less; it
    does not include a GPU's work.
    """
    taken = [
        {name: _seconds(work) for name, work in variants.items()}
        for _ in tqdm(range(rounds), file=sys.stderr)
    ]
    figures: dict[str, Any] = {}
    for name in variants:
        if name != "plain":
            by_clock, by_processor = zip(
                *[[a / b for a, b in zip(r[name], r["plain"], strict=True)] for r in taken], strict=True
            )
            figures[name] = round(statistics.median(by_clock), 4)
            figures[f"{name}_range"] = [round(min(by_clock), 4), round(max(by_clock), 4)]
            figures[f"{name}_processor"] = round(statistics.median(by_processor), 4)
    return figures | {
        "threads": torch.get_num_threads(),
        "device": str(comfy.model_management.get_torch_device()),
        "rounds": rounds,
    }


def answer(figures: Mapping[str, Any]) -> None:
    """Print the one line of JSON that the caller reads."""
    ANSWERS.write(json.dumps(figures) + "\n")
    ANSWERS.flush()


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of ``work`` by the clock and in processor time. Its result is on the CPU, so a GPU
    has finished by then."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]
