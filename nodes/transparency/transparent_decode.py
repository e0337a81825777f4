"""Decode a sampled layer's picture and latent to colours and alpha."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor, nn

from ...layered_core.document import MAX_LAYERS, Layer
from ...layered_core.errors import check_memory, invalid
from ...layered_core.transparency.transparent_decode import (
    AUGMENTATIONS,
    COMBINE,
    bytes_needed,
    decode,
    pictures_at_once,
)
from ...layered_core.transparency.transparent_networks import TransparentDecoder
from ..layers.pictures import pictures
from ..layers.remarks import warn
from ..layers.socket import LAYERS, append_layers, check_room
from .layer_model import layer_model_choices, read_layer_model

PRECISIONS: dict[str, torch.dtype | None] = {
    "auto": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""The dtype that the decoder calculates in; auto is what ComfyUI takes for a VAE on this device."""

_HAS_ALPHA = (
    "the picture has an alpha of its own, which is not used. If its model's VAE knows alpha, as that of "
    "Qwen-Image 2.1 does, connect VAE Decode to Layers from Pictures instead"
)


class TransparentDecode(io.ComfyNode):
    """Decode IMAGE and LATENT to RGBA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        choices = layer_model_choices("decoder")
        return io.Schema(
            node_id="LD_TransparentDecode",
            display_name="Transparent Decode",
            category="layered diffusion/transparency",
            description="Read the transparency of a layer that LayerDiffuse Apply sampled, from its picture "
            "and latent: RGBA, at any size.",
            search_aliases=["layerdiffuse decode", "layered diffusion decode", "rgba", "alpha", "transparent "
            "vae", "cut out"],
            inputs=[
                io.Image.Input("image", tooltip="The picture that VAE Decode made of the latent; any VAE "
                    "will do. An alpha channel in it is ignored."),
                io.Combo.Input(
                    "file", options=choices, default=choices[0],
                    tooltip="A transparent decoder of models/layer_model, of the model's family. "
                        "Published files that are missing are listed too: on running, the error says "
                        "where to get them.",
                ),
                io.Latent.Input(
                    "latent", optional=True,
                    tooltip="The latent that the image was decoded from, of the same size. Not "
                        "connected: alpha is guessed from the image alone.",
                ),
                LAYERS.Input("layers", optional=True, tooltip="A stack to lay the result on. Not connected: "
                "a new stack."),
                io.String.Input("name", default="layer", tooltip="The new layer's name. Neutral: any name."),
                io.Combo.Input(
                    "augmentations", options=[str(n) for n in AUGMENTATIONS], default="8",
                    tooltip="Number of passes over mirrored and turned pictures: 1, 2, 4 or 8. More "
                        "passes give a steadier result, and take as many times longer. Neutral: 1. "
                        "The default is 8, as LayerDiffuse was published.",
                ),
                io.Combo.Input(
                    "combine", options=list(COMBINE), default=COMBINE[0], advanced=True,
                    tooltip="How the passes are combined, element by element; the median of an even "
                        "number is the lower middle value. Neutral: either, with 1 pass.",
                ),
                io.Int.Input(
                    "tile_size", default=2048, min=256, max=16384, step=64, advanced=True,
                    tooltip="Greatest side that is decoded at once, pixels. Larger pictures are decoded "
                        "in tiles that fade into one another. Neutral: the picture's longer side or more. "
                        "The default is 2048, for which the memory of most cards is enough.",
                ),
                io.Combo.Input(
                    "precision", options=list(PRECISIONS), default="auto", advanced=True,
                    tooltip="The precision that the decoder calculates in. Neutral: auto, as ComfyUI's VAEs.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="RGBA with straight alpha; Save Image "
                    "keeps the alpha."),
                io.Mask.Output(
                    display_name="alpha",
                    tooltip="1 is opaque. Invert it for Join Image with Alpha and Porter-Duff Image "
                    "Composite, where 1 is transparent.",
                ),
                LAYERS.Output(display_name="layers", tooltip="The stack with the result on top, its left and "
                "top edge at 0."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, image: Tensor, file: str, latent: Mapping[str, Any] | None = None,
        layers: Mapping[str, Any] | None = None, name: str = "layer",
        augmentations: str = "8", combine: str = "median", tile_size: int = 2048, precision: str = "auto",
    ) -> io.NodeOutput:  # fmt: skip
        """Load the decoder, decode the picture, and lay it on the stack."""
        image = pictures(image)
        if image.shape[-1] == 4 and bool((image[..., 3] < 1).any()):
            warn("Transparent Decode", _HAS_ALPHA)
        # A batch that is too large for any stack is decoded all the same if no stack is connected.
        stacked = layers is not None or len(image) <= MAX_LAYERS
        if stacked:
            check_room(layers, len(image))
        decoder = TransparentDecoder.from_weights(read_layer_model(file, "decoder"), file)
        pixels = image[..., :3].movedim(-1, 1)
        samples = None if latent is None else latent["samples"]
        if samples is not None and samples.is_nested:
            raise invalid("latent", "a latent of several parts", "a picture's latent, of one part")
        rgba = decode_pictures(
            decoder, pixels, samples, int(augmentations), combine=combine, tile=tile_size, precision=precision
        )
        stack: Any = ExecutionBlocker(
            f"layers: number of pictures is {len(rgba)}; allowed: at most {MAX_LAYERS} in a stack. Decode "
            f"fewer at once to get one"
        )
        if stacked:
            names = [name if len(rgba) == 1 else f"{name} {i + 1}" for i in range(len(rgba))]
            stack = append_layers(
                layers, [Layer(n, picture.cpu()) for n, picture in zip(names, rgba, strict=True)]
            )
        rgba = rgba.to(comfy.model_management.intermediate_device())
        return io.NodeOutput(rgba, rgba[..., 3], stack)


def decode_pictures(
    decoder: TransparentDecoder, pixels: Tensor, latents: Tensor | None, augmentations: int, *,
    combine: str = COMBINE[0], tile: int = 2048, precision: str = "auto",
    held: tuple[comfy.model_patcher.ModelPatcher, torch.dtype] | None = None,
) -> Tensor:  # fmt: skip
    """Load a decoder and decode pictures ``[B, 3, H, W]`` to RGBA ``[B, H, W, 4]``, float32 with straight alpha.

    Args:
        decoder, pixels, latents, augmentations, combine, tile: as for the core's ``decode``.
        precision: one of ``PRECISIONS``.
        held: the decoder under ComfyUI's memory management (:func:`managed`), for callers that decode again and again:
            ComfyUI takes a network whose last manager is gone for a leak. None: managed for this call.

    Raises:
        LayeredError: there is not enough memory, or the latents do not fit the pictures.
    """
    patcher, dtype = held or managed(decoder, PRECISIONS[precision])
    options = {"tile": tile, "augmentations": augmentations}
    needed, result_bytes = bytes_needed(decoder.to(dtype), pixels.shape[2], pixels.shape[3], **options)
    manage = comfy.model_management
    manage.load_models_gpu([patcher], memory_required=needed)
    results = result_bytes * len(pixels)
    check_memory(
        "transparent decode",
        results,
        manage.get_free_memory(torch.device("cpu")),
        "main memory",
        "Scale the picture down, or decode fewer",
    )
    # On devices that share the main memory, the results take a part of it.
    free = manage.get_free_memory(patcher.load_device) - results * (
        patcher.load_device.type in ("cpu", "mps")
    )
    check_memory(
        "transparent decode",
        needed,
        free,
        f"memory on {patcher.load_device}",
        "Take a smaller tile_size or fewer augmentations",
    )
    batch = pictures_at_once(needed, free, len(pixels))
    attend = attention_for(patcher.load_device)
    return decode(decoder, pixels, latents, combine=combine, batch=batch, attend=attend, **options).movedim(
        1, -1
    )


def managed(
    network: nn.Module, dtype: torch.dtype | None
) -> tuple[comfy.model_patcher.ModelPatcher, torch.dtype]:
    """Return a network under ComfyUI's memory management, and the dtype that it calculates in."""
    manage = comfy.model_management
    device = manage.get_torch_device()
    dtype = manage.vae_dtype(device, [torch.float16, torch.bfloat16]) if dtype is None else dtype
    return comfy.model_patcher.ModelPatcher(
        network.to(dtype), load_device=device, offload_device=manage.unet_offload_device()
    ), dtype


def attention_for(device: torch.device) -> Any:
    """Return ComfyUI's attention on ``device``, as the core calls it."""
    return comfy.ldm.modules.attention.optimized_attention_for_device(device)
