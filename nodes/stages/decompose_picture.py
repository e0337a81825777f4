"""Take a picture apart into layers with Qwen-Image-Layered: core's own nodes, laid as a graph."""

from __future__ import annotations

import math
from typing import Any

import comfy.samplers
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder
from torch import Tensor

from ...layered_core.document import MAX_LAYERS
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.painting.layers_from_pictures import given_names
from ..attention.embeddings import check_words
from ..layers.pictures import one_picture
from ..layers.socket import LAYERS
from .stage_graph import Sampler
from .stage_inputs import CATEGORY, MAX_SEED

ALL, NAMED = "all layers", "named layers"
"""The modes: the model finds the layers by itself, or takes out one after the other by name."""

UNIT = 16
"""The model's latents are cut into patches of 16x16 pixels."""

SHIFT = 1.0
"""The shift of the noise levels that the model is sampled with, as in ComfyUI's own template."""

_FILES = (
    "qwen_image_layered_bf16.safetensors, or qwen_image_layered_control_bf16.safetensors for named layers"
)


class DecomposePicture(io.ComfyNode):
    """Take a picture apart into layers. Runs as a graph of core's nodes for Qwen-Image-Layered and of Layers from
    Pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_DecomposePicture",
            display_name="Decompose Picture",
            category=CATEGORY,
            description=(
                "Take a picture apart into layers with Qwen-Image-Layered: the model paints each layer with "
                "its alpha, and also what lies behind it. Put together again, the layers are the picture, "
                "to the pixel."
            ),
            search_aliases=["decompose", "image to layers", "unflatten", "Qwen-Image-Layered", "layered control",
            "separate layers", "split picture", "PSD from picture"],
            inputs=[
                io.Model.Input("model", tooltip="Qwen-Image-Layered; for named layers "
                    "Qwen-Image-Layered-Control."),
                io.Clip.Input("clip", tooltip="The text encoder of Qwen-Image."),
                io.Vae.Input("vae", tooltip="qwen_image_layered_vae.safetensors, which knows alpha."),
                io.Image.Input("image", tooltip="The picture, one. It may have any size: the layers have "
                    "that size too."),
                io.Combo.Input(
                    "mode", options=[ALL, NAMED], default=ALL,
                    tooltip="all layers: the model finds as many layers as layer count says. named layers: for "
                        "each line of names it takes out the layer of that name, and the rest becomes the "
                        "background. Neutral: none.",
                ),
                io.String.Input(
                    "names", default="", multiline=True,
                    tooltip="One line for each layer, from the back. named layers: what to take out, in "
                        "English. all layers: what the layers are called; empty: layer 1, layer 2 and so "
                        "on. Neutral: empty, with all layers.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, dynamic_prompts=True,
                    tooltip="What the whole picture shows, also what is partly covered; it names no layers. "
                        "named layers do not use it. Neutral: empty.",
                ),
                io.String.Input("negative", default="", multiline=True, dynamic_prompts=True,
                tooltip="What must not be there. Neutral: empty."),
                io.Int.Input(
                    "layer_count", default=3, min=1, max=MAX_LAYERS - 1,
                    tooltip="With all layers: how many layers the model makes. More take longer; those that "
                        "come out empty are left out. Neutral: any, with named layers. The default is 3: a "
                        "background and two things.",
                ),
                io.Int.Input(
                    "long_side", default=640, min=64, max=2048, step=UNIT,
                    tooltip="Longer side at which the model works, pixels; the picture is scaled to it, and "
                        "the layers back. 640 is what the model was made for, 1024 gives more detail. "
                        "Neutral: the picture's own, if it is a multiple of 16.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=MAX_SEED, control_after_generate=False,
                    tooltip="Seed of the noise, the same for all runs. Neutral: any.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Sampling steps. The model was "
                    "published with 50. Neutral: any."),
                io.Float.Input("cfg", default=2.5, min=0.0, max=100.0, step=0.1, tooltip="Classifier-free "
                    "guidance. Neutral: 1, none. The default is 2.5, as in ComfyUI's template; the model was "
                    "published with 4."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS,
                tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS,
                tooltip="As in KSampler."),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="The layers, from the back, each with its alpha. "
                    "Their noise is 0: they stay as they are until a node makes one anew."),
                io.String.Output(display_name="report", tooltip="What was left out or put right, and how far "
                    "the model's layers were from the picture, one line each."),
            ],
            enable_expand=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, image: Tensor, mode: str, names: str, prompt: str, negative: str,
        layer_count: int, long_side: int, seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str,
    ) -> io.NodeOutput:  # fmt: skip
        """Lay the nodes."""
        fix = "Take one picture with Get Image from Batch"
        picture = one_picture(image, "image", fix, batch="image: number of pictures")
        _check(model, vae)
        lines = given_names(names)
        if mode == NAMED and not lines:
            raise LayeredError(
                "names: there is none, and mode is named layers. Write one line for each layer to take out, "
                "or set mode to all layers"
            )
        if len(lines) >= MAX_LAYERS:
            raise invalid(
                "names: number of lines",
                len(lines),
                f"at most {MAX_LAYERS - 1}",
                "Take out the layers in several runs",
            )
        for where, text in (("prompt", prompt), ("negative", negative), *(("names", x) for x in lines)):
            check_words(clip, text, f"{where}: ")
        size = fitted_size(picture.shape[1], picture.shape[0], long_side)
        made = _Decomposition(
            model, clip, vae, image, size, Sampler(steps, cfg, sampler_name, scheduler), seed
        )
        found = made.named(lines, negative) if mode == NAMED else made.all(prompt, negative, layer_count)
        result = made.graph.node(
            "LD_LayersFromPictures", image=found, names=names, first="a layer", original=image, prompt=prompt,
            made_by="Qwen-Image-Layered-Control" if mode == NAMED else "Qwen-Image-Layered", seed=seed,
        )  # fmt: skip
        return io.NodeOutput(result.out(0), result.out(1), expand=made.graph.finalize())


class _Decomposition:
    """The nodes of a run; ``graph`` holds them. Both methods return the decoded layers, an IMAGE with alpha."""

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        image: Tensor,
        size: tuple[int, int],
        sampler: Sampler,
        seed: int,
    ) -> None:
        """Lay the nodes that encode the picture at ``size``, width and height."""
        self.graph = GraphBuilder()
        self.clip, self.vae, self.size, self.sampler, self.seed = clip, vae, size, sampler, seed
        self.model = self.graph.node("ModelSamplingAuraFlow", model=model, shift=SHIFT).out(0)
        scaled = self.graph.node(
            "ImageScale",
            image=image,
            upscale_method="lanczos",
            width=size[0],
            height=size[1],
            crop="disabled",
        ).out(0)
        self.picture = self.graph.node("VAEEncode", pixels=scaled, vae=vae).out(0)

    def all(self, prompt: str, negative: str, layer_count: int) -> Any:
        """As many layers as the model is asked for. Its first frame is the picture itself, which is cut off."""
        sampled = self._sampled(prompt, self._words(negative), layer_count)
        cut = self.graph.node("LatentCut", samples=sampled, dim="t", index=1, amount=16_384).out(0)
        return self._decoded(cut)

    def named(self, names: list[str], negative: str) -> Any:
        """One run for each name. The model that knows names makes a single frame, the layer."""
        unwanted = self._words(negative)
        pictures = [self._decoded(self._sampled(name, unwanted, 0)) for name in names]
        batch = pictures[0]
        for picture in pictures[1:]:
            batch = self.graph.node("ImageBatch", image1=batch, image2=picture).out(0)
        return batch

    def _words(self, text: str) -> Any:
        words = self.graph.node("CLIPTextEncode", clip=self.clip, text=text).out(0)
        return self.graph.node("ReferenceLatent", conditioning=words, latent=self.picture).out(0)

    def _sampled(self, text: str, unwanted: Any, layers: int) -> Any:
        width, height = self.size
        empty = self.graph.node(
            "EmptyQwenImageLayeredLatentImage", width=width, height=height, layers=layers, batch_size=1
        ).out(0)
        return self.graph.node(
            "KSampler", model=self.model, positive=self._words(text), negative=unwanted, latent_image=empty,
            seed=self.seed, denoise=1.0, **self.sampler._asdict(),
        ).out(0)  # fmt: skip

    def _decoded(self, latent: Any) -> Any:
        """Without being cut to a batch, the frames would be decoded as a video."""
        batch = self.graph.node("LatentCutToBatch", samples=latent, dim="t", slice_size=1).out(0)
        return self.graph.node("VAEDecode", samples=batch, vae=self.vae).out(0)


def fitted_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """Return width and height, multiples of 16, of a picture whose longer side is scaled to ``long_side``
    pixels."""
    scale = long_side / max(width, height)
    sides = (max(UNIT, UNIT * math.floor(side * scale / UNIT + 0.5)) for side in (width, height))
    return next(sides), next(sides)


def _check(model: Any, vae: Any) -> None:
    """Raise :class:`LayeredError` unless a MODEL and a VAE are those of Qwen-Image-Layered."""
    config = getattr(getattr(model, "model", None), "model_config", None)
    kind = "an unknown model" if config is None else type(config).__name__
    if not getattr(config, "unet_config", {}).get("use_additional_t_cond"):
        raise invalid("model", kind, "Qwen-Image-Layered or Qwen-Image-Layered-Control", f"Load {_FILES}")
    channels = getattr(vae, "output_channels", None)
    if channels != 4:
        raise invalid(
            "vae: number of channels", channels, "4, RGBA", "Load qwen_image_layered_vae.safetensors"
        )
