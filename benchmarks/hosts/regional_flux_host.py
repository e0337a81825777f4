"""Time steps of a Flux in ComfyUI with and without words per layer, measure the memory of each way to compute one
attention, and print one line of JSON. ``regional_attention.py`` starts this script under ComfyUI's python."""

from __future__ import annotations

import sd15_host as sd15  # isort: skip  # first: it makes ComfyUI importable
import boot  # isort: skip
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.flux
import torch
from answers import ARGUMENTS
from sd15_host import Conditioning, encode
from table_texts import POOLED, encoder
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import nodes

ROUNDS, STEPS, HIDDEN, SIDE, MEMORY = (int(x) for x in ARGUMENTS)
WIDTH, HEAD = 64, 128
MAIN, OWN = 512, 48
"""Tokens of the main prompt and of a layer's words."""


def flux() -> comfy.model_patcher.ModelPatcher:
    """Return a Flux with one double and one single block, random weights."""
    config = comfy.supported_models.Flux({
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED,
        "context_in_dim": WIDTH, "hidden_size": HIDDEN, "mlp_ratio": 4.0, "num_heads": HIDDEN // HEAD,
        "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
    })  # fmt: skip
    device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(comfy.model_management.unet_dtype(model_params=100_000_000), None)
    model = config.get_model({}, device=device)
    sd15.fill(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, device, comfy.model_management.unet_offload_device())


def text_encoder() -> comfy.sd.CLIP:
    """Return Flux's text encoder with tables in place of its networks."""
    kind = encoder(
        comfy.text_encoders.flux.FluxClipModel,
        clip_l={"width": WIDTH, "masked": False}, t5xxl={"width": WIDTH, "masked": False},
    )  # fmt: skip
    target = comfy.supported_models_base.ClipTarget(comfy.text_encoders.flux.FluxTokenizer, kind)
    return comfy.sd.CLIP(target, parameters=1)


def words(count: int, word: str = "red") -> str:
    """Return a text of ``count`` tokens, the end token among them."""
    return " ".join([word] * (count - 1))


def boxes(count: int) -> list[tuple[int, int, int, int]]:
    """Return ``count`` boxes (x, y, width, height), a square number, that fill the canvas."""
    rows = round(count**0.5)
    side = SIDE // rows
    return [(i % rows * side, i // rows * side, side, side) for i in range(count)]


def regional(model: Any, clip: comfy.sd.CLIP, count: int, **values: Any) -> tuple[Any, ...]:
    """Apply Regional Prompt Attention to boxes with words of their own."""
    document, layers = boot.pack_module("layered_core.document"), boot.pack_module("nodes.layers.socket")
    made = [
        document.Layer(f"layer {i}", x=x, y=y, width=w, height=h, prompt=words(OWN))
        for i, (x, y, w, h) in enumerate(boxes(count))
    ]
    stack = layers.write_stack(document.LayerDocument(SIDE, SIDE, tuple(made)))
    kind = nodes.NODE_CLASS_MAPPINGS["LD_RegionalPromptAttention"]
    defaults = {i.id: i.default for i in kind.GET_SCHEMA().inputs if i.id not in ("model", "clip", "layers")}
    return kind.execute(model, clip, stack, **{**defaults, "prompt": words(MAIN, "blue"), **values}).result


def core(model: Any, clip: comfy.sd.CLIP, count: int) -> tuple[Any, ...]:
    """Apply ConditioningSetMask for every box and combine the conditionings with the main prompt's."""
    positive: Conditioning = encode(clip, words(MAIN, "blue"))
    for x, y, width, height in boxes(count):
        mask = torch.zeros(1, SIDE, SIDE)
        mask[:, y : y + height, x : x + width] = 1
        positive += nodes.ConditioningSetMask().append(encode(clip, words(OWN)), mask, "default", 1.0)[0]
    return model, positive, encode(clip, "")


def run(model: Any, positive: Conditioning, negative: Conditioning) -> torch.Tensor:
    """Sample Euler steps at cfg 1, as people use Flux."""
    import comfy.samplers

    noise = torch.randn(1, 16, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(0))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(1.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    return guider.sample(
        noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True,
        seed=0,
    )  # fmt: skip


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while they live, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.living: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it returns."""
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self._count(x)
        return out

    def _count(self, x: torch.Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self.living.get(key):
            self.now += size
            self.most = max(self.most, self.now)
        self.living[key] = self.living.get(key, 0) + 1
        weakref.finalize(x, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.living[key] -= 1
        if not self.living[key]:
            self.now -= size


def memory(side: int) -> dict[str, int]:
    """Return the MB that each way makes at most in one attention of Flux's size (24 heads of 128, bfloat16) with 16
    layers at the node's shares, beside queries, keys and values, at ``side`` pixels. Only shapes are
    computed."""
    joint = boot.pack_module("layered_core.attention.joint_attention")
    spans_of = boot.pack_module("layered_core.attention.spans")
    grid, texts = side // 16, [range(MAIN + OWN * i, MAIN + OWN * (i + 1)) for i in range(16)]
    image = range(texts[-1].stop, texts[-1].stop + grid * grid)
    spans = spans_of.Spans(image.stop, range(MAIN), tuple(texts), image, (grid, grid))
    places = torch.arange(grid) // (grid // 4)
    owner = places[:, None] * 4 + places[None]
    weights = torch.stack([(owner == i).float() * 0.8 for i in range(16)]).flatten(1)

    def attend(q: Any, k: Any, v: Any, bias: Any) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    found = {}
    for rule, one_softmax in (("mixture", False), ("one softmax", True)):
        read = joint.reading(spans, weights, 1 - weights.sum(0), one_softmax=one_softmax)
        for way in ("bias", "lse") if one_softmax else ("bias", "gather", "lse"):
            found[f"{rule}, {way}"] = _peak(
                spans.length, lambda q, k, v, r=read, way=way: joint.attend_jointly(q, k, v, r, way, attend)
            )
    return found | {"plain": _peak(spans.length, lambda q, k, v: attend(q, k, v, None))}


def _peak(length: int, compute: Callable[..., Any]) -> int:
    """Return the MB that ``compute`` makes at most from queries, keys and values of ``length`` tokens."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        q, k, v = (torch.empty(1, 24, length, HEAD, dtype=torch.bfloat16) for _ in range(3))
        with Peak() as peak:
            compute(q, k, v)
    return round(peak.most / 2**20)


def main() -> None:
    """Measure and print."""
    sd15.load_pack()
    with torch.inference_mode():
        model, clip = flux(), text_encoder()
        exact = {"global_weight": 0.0, "emphasis": 0.0}
        made: dict[str, tuple[Any, ...]] = {
            "plain": (model, encode(clip, words(MAIN, "blue")), encode(clip, "")),
            "ratio_4": regional(model, clip, 4),
            "ratio_16": regional(model, clip, 16),
            "hard_ratio_4": regional(model, clip, 4, **exact),
            "hard_ratio_16": regional(model, clip, 16, **exact),
            "core_ratio_4": core(model, clip, 4),
        }
        variants: dict[str, Callable[[], torch.Tensor]] = {n: partial(run, *v) for n, v in made.items()}
        pictures = {name: work() for name, work in variants.items()}
        for name, picture in pictures.items():
            if not bool(picture.isfinite().all()) or (
                name != "plain" and torch.equal(picture, pictures["plain"])
            ):
                raise SystemExit(f"{name} changes nothing, or its picture is not finite")
        figures = sd15.time_by_turns(variants, ROUNDS)
        figures["memory"] = {str(side): memory(side) for side in ((1024, 2048) if MEMORY else ())}
    sd15.answer(figures | {"attention": "pytorch", "steps": STEPS, "side": SIDE, "hidden": HIDDEN})


if __name__ == "__main__":
    main()
