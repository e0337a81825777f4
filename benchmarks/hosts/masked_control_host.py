"""Time steps of a UNet with a ControlNet in ComfyUI, with ComfyUI's own nodes and with ours, and print one
line of JSON. ``masked_control.py`` starts this script under ComfyUI's python."""

from __future__ import annotations

import sd15_host as sd15  # isort: skip  # first: it makes ComfyUI importable
import boot  # isort: skip
from collections.abc import Callable
from functools import partial

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.ops
import torch
from answers import ARGUMENTS
from sd15_host import SHAPE, Conditioning, encode, fill, run, text_encoder, unet

import nodes

ROUNDS, SIDE, LAYERS, STEPS = int(ARGUMENTS[0]), int(ARGUMENTS[1]), 4, 1

Words = tuple[Conditioning, Conditioning]


def control_net() -> comfy.controlnet.ControlNet:
    """Return SD1.5's ControlNet with random weights."""
    shape = {k: v for k, v in SHAPE.items() if k != "out_channels"}
    dtype = comfy.model_management.unet_dtype(model_params=360_000_000)
    net = comfy.cldm.cldm.ControlNet(
        **shape, hint_channels=3, dtype=dtype, operations=comfy.ops.disable_weight_init
    )
    fill(net)
    return comfy.controlnet.ControlNet(net.eval(), load_device=comfy.model_management.get_torch_device())


def quarters() -> torch.Tensor:
    """Return four masks that fill the canvas, ``[4, SIDE, SIDE]``."""
    masks = torch.zeros(LAYERS, SIDE, SIDE)
    for i, mask in enumerate(masks):
        mask[:, i * SIDE // LAYERS : (i + 1) * SIDE // LAYERS] = 1
    return masks


def core(words: Words, net: comfy.controlnet.ControlNet, hint: torch.Tensor, strength: float = 1.0) -> Words:
    """Apply the net with ComfyUI's own Apply ControlNet."""
    return nodes.ControlNetApplyAdvanced().apply_controlnet(*words, net, hint, strength, 0.0, 1.0)


def ours(words: Words, net: comfy.controlnet.ControlNet, hint: torch.Tensor, **values: object) -> Words:
    """Apply the net with Masked ControlNet Apply."""
    kind = nodes.NODE_CLASS_MAPPINGS["LD_MaskedControlNetApply"]
    settings = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mode": "balanced", **values}
    return kind.execute(*words, net, image=hint, **settings).result


def layered(
    words: Words, net: comfy.controlnet.ControlNet, hint: torch.Tensor, strengths: list[float]
) -> Words:
    """Apply the net with Masked ControlNet Apply and a layer on every quarter."""
    document, layers = boot.pack_module("layered_core.document"), boot.pack_module("nodes.layers.socket")
    made = []
    for i, strength in enumerate(strengths):
        recipe = document.Recipe(control=document.Control(hint="canny", strength=strength))
        made.append(
            document.Layer(
                f"layer {i}", x=i * SIDE // LAYERS, width=SIDE // LAYERS, height=SIDE, recipe=recipe
            )
        )
    return ours(words, net, hint, layers=layers.write_stack(document.LayerDocument(SIDE, SIDE, tuple(made))))


def chained(
    words: Words, net: comfy.controlnet.ControlNet, hint: torch.Tensor, strengths: list[float]
) -> Words:
    """Apply ComfyUI's own node once for each layer, in a row; the controls are not limited to the layers."""
    for strength in strengths:
        words = core(words, net, hint, strength)
    return words


def masked(
    words: Words, net: comfy.controlnet.ControlNet, hint: torch.Tensor, strengths: list[float]
) -> Words:
    """Apply ComfyUI's own node once for each layer, on a conditioning of its own with ConditioningSetMask,
    and combine these."""
    positive: Conditioning = []
    for mask, strength in zip(quarters(), strengths, strict=True):
        one = core(words, net, hint, strength)[0]
        positive += nodes.ConditioningSetMask().append(one, mask[None], "default", 1.0)[0]
    return positive, words[1]


def main() -> None:
    """Measure and print."""
    sd15.load_pack()
    with torch.inference_mode():
        model, clip, net = unet(), text_encoder(), control_net()
        words: Words = encode(clip, "a picture of many things"), encode(clip, "")
        hint = torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(1))
        strengths = [0.4, 0.6, 0.8, 1.0]
        made: dict[str, Words] = {
            "plain": core(words, net, hint),
            "comfyui_ratio_4": layered(words, net, hint, strengths),
            "core_chained_ratio_4": chained(words, net, hint, strengths),
            "core_masked_ratio_4": masked(words, net, hint, strengths),
        }
        variants: dict[str, Callable[[], torch.Tensor]] = {
            name: partial(run, model, *w, SIDE, STEPS) for name, w in made.items()
        }
        pictures = {
            name: work() for name, work in variants.items()
        }  # a first run is slower: it allocates memory
        pictures["none"] = run(model, *words, SIDE, STEPS)
        for name, picture in pictures.items():
            if not bool(picture.isfinite().all()) or (
                name != "plain" and torch.equal(picture, pictures["plain"])
            ):
                raise SystemExit(f"{name} changes nothing, or its picture is not finite")
        ones = run(model, *ours(words, net, hint, mask=torch.ones(1, SIDE, SIDE)), SIDE, STEPS)
        parts = run(model, *layered(words, net, hint, [1.0] * LAYERS), SIDE, STEPS)
        figures = sd15.time_by_turns(variants, ROUNDS)
    figures["core_max_abs_diff"] = max(float((x - pictures["plain"]).abs().max()) for x in (ones, parts))
    sd15.answer(figures | {"side": SIDE})


if __name__ == "__main__":
    main()
