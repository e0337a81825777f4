"""Times steps of a UNet in ComfyUI with and without words per layer: started by ``regional_attention.py`` under ComfyUI's python.

Prints one line of JSON. Everything of the project's reaches this process through the pack: the repository must not be on its path.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what ComfyUI prints must not look like an answer
ROUNDS, STEPS, ATTENTION = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]  # before ComfyUI reads the command line

HOST = str(Path(__file__).resolve().parent.parent / "tests" / "comfyui" / "host")
sys.path[0] = HOST
import boot  # noqa: E402

sys.path.remove(HOST)

import comfy.ldm.modules.attention as attention  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import nodes  # noqa: E402

Conditioning = list[list[Any]]

WORDS = "a picture of many things"


def unet() -> comfy.model_patcher.ModelPatcher:
    """SD1.5's UNet with random weights."""
    shape = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1, "context_dim": 768, "num_heads": 8, "num_head_channels": -1, "use_spatial_transformer": True,
        "use_linear_in_transformer": False, "legacy": False, "adm_in_channels": None, "use_temporal_attention": False, "use_temporal_resblock": False,
    }  # fmt: skip
    device = comfy.model_management.get_torch_device()
    config = comfy.supported_models.SD15(shape)
    config.set_inference_dtype(comfy.model_management.unet_dtype(model_params=860_000_000), None)
    model = config.get_model({}, device=device)
    _fill(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, device, comfy.model_management.unet_offload_device())


def text_encoder() -> comfy.sd.CLIP:
    """SD1.5's text encoder with random weights."""
    clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel), parameters=123_000_000)
    _fill(clip.cond_stage_model)
    return clip


def _fill(module: torch.nn.Module) -> None:
    """Weights as small as trained ones, so that values stay in range through all layers."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(float("norm" in name and name.endswith("weight")))


def grid(rows: int, columns: int) -> list[tuple[int, int, int, int]]:
    """Boxes that fill a canvas of 512 x 512: x, y, width, height."""
    width, height = 512 // columns, 512 // rows
    return [(c * width, r * height, width, height) for r in range(rows) for c in range(columns)]


def run(model: comfy.model_patcher.ModelPatcher, positive: Conditioning, negative: Conditioning) -> torch.Tensor:
    """Sample ``STEPS`` Euler steps of one picture."""
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(7.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)


def regional(
    model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, boxes: list[tuple[int, int, int, int]], mode: str = "regions"
) -> tuple[Any, ...]:  # fmt: skip
    """Regional Prompt Attention on boxes with words of their own."""
    pack = str(boot.PACK).replace(".", "_x_")
    document, layers = sys.modules[f"{pack}.layered_core.document"], sys.modules[f"{pack}.nodes.layers"]
    made = [document.Layer(f"layer {i}", x=x, y=y, width=w, height=h, prompt=f"thing {i}") for i, (x, y, w, h) in enumerate(boxes)]
    stack = layers.write_stack(document.LayerDocument(512, 512, tuple(made)))
    kind = nodes.NODE_CLASS_MAPPINGS["LD_RegionalPromptAttention"]
    values = {i.id: i.default for i in kind.GET_SCHEMA().inputs if i.id not in ("model", "clip", "layers")}
    return kind.execute(model, clip, stack, **{**values, "prompt": WORDS, "mode": mode, "append": True}).result


def core(model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, boxes: list[tuple[int, int, int, int]]) -> tuple[Any, ...]:
    """ConditioningSetMask for every box, combined."""
    positive: Conditioning = []
    for i, (x, y, width, height) in enumerate(boxes):
        mask = torch.zeros(1, 512, 512)
        mask[:, y : y + height, x : x + width] = 1
        positive += nodes.ConditioningSetMask().append(_encode(clip, f"thing {i}"), mask, "default", 1.0)[0]
    return model, positive, _encode(clip, "")


def coupling(model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, boxes: list[tuple[int, int, int, int]]) -> tuple[Any, ...]:
    """Attention Couple: the conditional rows are repeated once a region at every cross-attention, and their outputs masked and added."""
    contexts = torch.cat([_encode(clip, f"thing {i}")[0][0] for i in range(len(boxes))])
    masks = torch.zeros(len(boxes), 1, 64, 64)
    for mask, (x, y, width, height) in zip(masks, boxes, strict=True):
        mask[:, y // 8 : (y + height) // 8, x // 8 : (x + width) // 8] = 1

    def spread(q: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        rows, words = [], []
        for row, mark in enumerate(extra["cond_or_uncond"]):
            rows += [q[row : row + 1]] * (1 if mark else len(boxes))
            words.append(context[row : row + 1] if mark else contexts.to(context))
        return torch.cat(rows), torch.cat(words), torch.cat(words)

    def gather(out: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        height, width = extra["activations_shape"][-2:]
        shown = torch.nn.functional.interpolate(masks, (height, width)).flatten(2).movedim(1, 2).to(out)
        rows, at = [], 0
        for mark in extra["cond_or_uncond"]:
            count = 1 if mark else len(boxes)
            rows.append(out[at : at + 1] if mark else (out[at : at + count] * shown).sum(0, keepdim=True))
            at += count
        return torch.cat(rows)

    patched = model.clone()
    patched.set_model_attn2_patch(spread)
    patched.set_model_attn2_output_patch(gather)
    return patched, _encode(clip, WORDS), _encode(clip, "")


def _encode(clip: comfy.sd.CLIP, words: str) -> Conditioning:
    return clip.encode_from_tokens_scheduled(clip.tokenize(words))


def main() -> None:
    """Measure and print."""
    boot.load_extras()
    if not boot.load_pack():
        raise SystemExit("ComfyUI could not load the pack")
    backends = {"pytorch": attention.attention_pytorch, "sub-quadratic": attention.attention_sub_quad, "split": attention.attention_split}
    attention.optimized_attention = attention.optimized_attention_masked = backends[ATTENTION]
    with torch.inference_mode():
        model, clip = unet(), text_encoder()
        four, sixteen = grid(2, 2), grid(4, 4)
        variants: dict[str, tuple[Any, ...]] = {
            "plain": (model, _encode(clip, WORDS), _encode(clip, "")),
            "ratio_4": regional(model, clip, four),
            "ratio_16": regional(model, clip, sixteen),
            "collage_ratio_4": regional(model, clip, four, "collage"),
            "coupling_ratio_4": coupling(model, clip, four),
            "core_ratio_4": core(model, clip, four),
        }
        pictures = {name: run(*variant) for name, variant in variants.items()}  # the first run of a kind pays for its memory
        for name, picture in pictures.items():
            if not bool(picture.isfinite().all()) or (name != "plain" and torch.equal(picture, pictures["plain"])):
                raise SystemExit(f"{name} does nothing, or breaks")
        rounds = [{name: _seconds(lambda v=variant: run(*v)) for name, variant in variants.items()} for _ in tqdm(range(ROUNDS), file=sys.stderr)]
    figures: dict[str, Any] = {}
    for name in variants:
        if name != "plain":
            ratios = [r[name] / r["plain"] for r in rounds]
            figures[name] = round(statistics.median(ratios), 4)
            figures[f"{name}_range"] = [round(min(ratios), 4), round(max(ratios), 4)]
    figures |= {"threads": torch.get_num_threads(), "device": str(model.load_device), "attention": ATTENTION, "rounds": ROUNDS, "steps": STEPS}
    ANSWER.write(json.dumps(figures) + "\n")
    ANSWER.flush()


def _seconds(work: Callable[[], object]) -> float:
    """By the clock; the result lies on the CPU, so a GPU has finished."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
