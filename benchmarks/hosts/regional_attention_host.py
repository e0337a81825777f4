"""Time steps of a UNet in ComfyUI with and without words per layer, and print one line of JSON.
``regional_attention.py`` starts this script under ComfyUI's python."""

from __future__ import annotations

import sd15_host as sd15  # isort: skip  # first: it makes ComfyUI importable
import boot  # isort: skip
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.model_patcher
import comfy.sd
import torch
from answers import ARGUMENTS
from sd15_host import Conditioning, encode, run, text_encoder, unet

import nodes

ROUNDS, STEPS, ATTENTION, SIDE = (
    int(ARGUMENTS[0]),
    int(ARGUMENTS[1]),
    ARGUMENTS[2],
    int(ARGUMENTS[3]),
)

WORDS = "a picture of many things"


def grid(rows: int, columns: int) -> list[tuple[int, int, int, int]]:
    """Return boxes (x, y, width, height) that fill the canvas."""
    width, height = SIDE // columns, SIDE // rows
    return [(c * width, r * height, width, height) for r in range(rows) for c in range(columns)]


def regional(
    model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, boxes: list[tuple[int, int, int, int]],
    mode: str = "regions"
) -> tuple[Any, ...]:  # fmt: skip
    """Apply Regional Prompt Attention to boxes with words of their own."""
    document, layers = boot.pack_module("layered_core.document"), boot.pack_module("nodes.layers.socket")
    made = [
        document.Layer(f"layer {i}", x=x, y=y, width=w, height=h, prompt=f"thing {i}")
        for i, (x, y, w, h) in enumerate(boxes)
    ]
    stack = layers.write_stack(document.LayerDocument(SIDE, SIDE, tuple(made)))
    kind = nodes.NODE_CLASS_MAPPINGS["LD_RegionalPromptAttention"]
    values = {i.id: i.default for i in kind.GET_SCHEMA().inputs if i.id not in ("model", "clip", "layers")}
    return kind.execute(
        model, clip, stack, **{**values, "prompt": WORDS, "mode": mode, "append": True}
    ).result


def core(
    model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, boxes: list[tuple[int, int, int, int]]
) -> tuple[Any, ...]:
    """Apply ConditioningSetMask for every box and combine the conditionings."""
    positive: Conditioning = []
    for i, (x, y, width, height) in enumerate(boxes):
        mask = torch.zeros(1, SIDE, SIDE)
        mask[:, y : y + height, x : x + width] = 1
        positive += nodes.ConditioningSetMask().append(encode(clip, f"thing {i}"), mask, "default", 1.0)[0]
    return model, positive, encode(clip, "")


def coupling(
    model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, boxes: list[tuple[int, int, int, int]]
) -> tuple[Any, ...]:
    """Apply Attention Couple: at every cross-attention the cond rows are repeated for each region, and the
    outputs are masked and added."""
    contexts = torch.cat([encode(clip, f"thing {i}")[0][0] for i in range(len(boxes))])
    masks = torch.zeros(len(boxes), 1, SIDE // 8, SIDE // 8)
    for mask, (x, y, width, height) in zip(masks, boxes, strict=True):
        mask[:, y // 8 : (y + height) // 8, x // 8 : (x + width) // 8] = 1

    def spread(
        q: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict[str, Any]
    ) -> tuple[torch.Tensor, ...]:
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
    return patched, encode(clip, WORDS), encode(clip, "")


def main() -> None:
    """Measure and print."""
    sd15.load_pack()
    backends = {
        "pytorch": attention.attention_pytorch,
        "sub-quadratic": attention.attention_sub_quad,
        "split": attention.attention_split,
    }
    attention.optimized_attention = attention.optimized_attention_masked = backends[ATTENTION]
    with torch.inference_mode():
        model, clip = unet(), text_encoder()
        four, sixteen = grid(2, 2), grid(4, 4)
        made: dict[str, tuple[Any, ...]] = {
            "plain": (model, encode(clip, WORDS), encode(clip, "")),
            "ratio_4": regional(model, clip, four),
            "ratio_16": regional(model, clip, sixteen),
            "collage_ratio_4": regional(model, clip, four, "collage"),
            "coupling_ratio_4": coupling(model, clip, four),
            "core_ratio_4": core(model, clip, four),
        }
        variants: dict[str, Callable[[], torch.Tensor]] = {
            name: partial(run, *v, SIDE, STEPS) for name, v in made.items()
        }
        pictures = {
            name: work() for name, work in variants.items()
        }  # a first run is slower: it allocates memory
        for name, picture in pictures.items():
            if not bool(picture.isfinite().all()) or (
                name != "plain" and torch.equal(picture, pictures["plain"])
            ):
                raise SystemExit(f"{name} changes nothing, or its picture is not finite")
        figures = sd15.time_by_turns(variants, ROUNDS)
    sd15.answer(figures | {"attention": ATTENTION, "steps": STEPS, "side": SIDE})


if __name__ == "__main__":
    main()
