"""Time steps of a UNet in ComfyUI with and without LoRAs of layers, and print one line of JSON.
``layer_lora.py`` starts this script under ComfyUI's python."""

from __future__ import annotations

import sd15_host as sd15  # isort: skip  # first: it makes ComfyUI importable
import boot  # isort: skip
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from answers import ARGUMENTS
from sd15_host import Conditioning, encode, run, text_encoder, unet

import nodes

ROUNDS, STEPS, SIDE, RANK, CORE = (int(x) for x in ARGUMENTS[:5])

WORDS = "a picture of many things"

Box = tuple[int, int, int, int]
"""Left, top, width and height of a layer, pixels."""

HALF = SIDE // 2
FOUR: list[Box] = [(x, y, HALF, HALF) for y in (0, HALF) for x in (0, HALF)]


def write_loras(model: comfy.model_patcher.ModelPatcher, count: int) -> None:
    """Write LoRAs with random weights for all projections of all attentions, named ``lora_0.safetensors`` and so on."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    projections = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")
    weights = {k: w for k, w in model.model.state_dict().items() if k.endswith(projections) and ".attn" in k}
    for number in range(count):
        generator, tensors = torch.Generator().manual_seed(number), {}
        for key, weight in weights.items():
            name, (out, inside) = key.removesuffix(".weight"), weight.shape
            tensors[f"{name}.lora_down.weight"] = (
                torch.randn(RANK, inside, generator=generator) * inside**-0.5
            )
            tensors[f"{name}.lora_up.weight"] = torch.randn(out, RANK, generator=generator) * 0.1 * RANK**-0.5
        comfy.utils.save_torch_file(tensors, str(folder / f"lora_{number}.safetensors"))


def regional(
    model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, boxes: list[Box], loras: int
) -> tuple[Any, ...]:
    """Apply Regional Prompt Attention to layers with words of their own, of which the first ``loras`` have a LoRA
    each."""
    document, layers = boot.pack_module("layered_core.document"), boot.pack_module("nodes.layers.socket")
    made = [
        document.Layer(
            f"layer {i}", x=x, y=y, width=w, height=h, prompt=f"thing {i}",
            recipe=document.Recipe(loras=(document.Lora(f"lora_{i}.safetensors"),) if i < loras else ()),
        )
        for i, (x, y, w, h) in enumerate(boxes)
    ]  # fmt: skip
    stack = layers.write_stack(document.LayerDocument(SIDE, SIDE, tuple(made)))
    kind = nodes.NODE_CLASS_MAPPINGS["LD_RegionalPromptAttention"]
    values = {i.id: i.default for i in kind.GET_SCHEMA().inputs if i.id not in ("model", "clip", "layers")}
    return kind.execute(model, clip, stack, **{**values, "prompt": WORDS}).result


def hooks(
    model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, boxes: list[Box], loras: int
) -> tuple[Any, ...]:
    """Give every box a masked conditioning, the first ``loras`` of them with Create Hook LoRA, and combine them."""
    positive: Conditioning = []
    for i, (x, y, width, height) in enumerate(boxes):
        mask = torch.zeros(1, SIDE, SIDE)
        mask[:, y : y + height, x : x + width] = 1
        hook = None
        if i < loras:
            create = nodes.NODE_CLASS_MAPPINGS["CreateHookLoraModelOnly"]()
            (hook,) = create.create_hook_model_only(f"lora_{i}.safetensors", 1.0)
        masked = nodes.NODE_CLASS_MAPPINGS["ConditioningSetProperties"]()
        positive += masked.set_properties(encode(clip, f"thing {i}"), 1.0, "default", mask=mask, hooks=hook)[
            0
        ]
    return model, positive, encode(clip, "")


def main() -> None:
    """Measure and print."""
    sd15.load_pack()
    with torch.inference_mode():
        model, clip = unet(), text_encoder()
        write_loras(model, len(FOUR))
        made: dict[str, tuple[Any, ...]] = {
            "plain": (model, encode(clip, WORDS), encode(clip, "")),
            "regions_4": regional(model, clip, FOUR, 0),
            "ratio_1": regional(model, clip, FOUR, 1),
            "ratio_4": regional(model, clip, FOUR, 4),
        }
        compared = [("ratio_4", "regions_4")]
        if CORE:
            counts = {"core_regions_4": 0, "core_ratio_1": 1, "core_ratio_4": 4}
            made |= {name: hooks(model, clip, FOUR, count) for name, count in counts.items()}
            compared.append(("core_ratio_4", "core_regions_4"))
        variants: dict[str, Callable[[], torch.Tensor]] = {
            name: partial(run, *v, SIDE, STEPS) for name, v in made.items()
        }
        pictures = {name: work() for name, work in variants.items()}  # a first run is slower
        for name, without in compared:
            if not bool(pictures[name].isfinite().all()) or torch.equal(pictures[name], pictures[without]):
                raise SystemExit(f"{name}: the LoRAs change nothing, or the picture is not finite")
        figures = sd15.time_by_turns(variants, ROUNDS)
    sd15.answer(figures | {"steps": STEPS, "side": SIDE, "rank": RANK})


if __name__ == "__main__":
    main()
