"""Diffusers' own pipelines that make transparent pictures: the classes of LayerDiffuse's diffusers port, with
the same arguments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from layered_core.errors import LayeredError
from layered_core.formats.pictures import to_image
from layered_core.transparency.layer_diffuse_files import missing_file, read_layer_model_file
from layered_core.transparency.transparent_networks import TransparentDecoder
from layered_diffusers.methods.layer_diffuse import LayerDiffuse
from layered_diffusers.transparent import read_transparency

FOLDER_VARIABLE = "LAYER_MODEL_DIR"
"""Environment variable with the folder of LayerDiffuse's files."""


class _Transparent:
    """Adds transparency to a diffusers pipeline; base of both classes below."""

    FILE = ""
    DECODER = ""

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        layer_models: str | Path | None = None,
        file: str | None = None,
        decoder: str | None = None,
        **options: Any,
    ) -> Any:
        """Load a model as diffusers' ``from_pretrained`` does, but only from disk, and LayerDiffuse's weights
        and transparent decoder with it.

        Args:
            path_or_id: a model of the class's family.
            layer_models: folder of LayerDiffuse's files; None takes $LAYER_MODEL_DIR.
            file, decoder: names of the files in it; None takes the published names.
            options: those of diffusers (``dtype``, which was ``torch_dtype`` before 0.40, ``variant``, ...).

        Raises:
            LayeredError: a file is missing (the text says where to get it, its size and its folder), broken
                or for another model.
        """
        folder = layer_models or os.environ.get(FOLDER_VARIABLE)
        if not folder:
            raise missing_file(file or cls.FILE, f"${FOLDER_VARIABLE}")
        paths = [Path(folder, name) for name in (file or cls.FILE, decoder or cls.DECODER)]
        network = TransparentDecoder.from_weights(read_layer_model_file(paths[1]), paths[1].name)
        pipeline = super().from_pretrained(path_or_id, **{"local_files_only": True, **options})  # type: ignore[misc]  # diffusers' pipeline
        pipeline.transparent_decoder = network
        pipeline.layer_diffuse = LayerDiffuse(pipeline, paths[0])
        return pipeline

    @torch.no_grad()
    def __call__(
        self, *arguments: Any, output_type: str = "pil", return_dict: bool = True, **options: Any
    ) -> Any:
        """Sample as the diffusers pipeline does, but return RGBA ``images``: Pillow images, or in 0..1 a
        tensor ``[B, 4, H, W]`` (``output_type`` "pt") or an array ``[B, H, W, 4]`` ("np").

        From the first call on the UNet stays changed; ``layer_diffuse.switch(False)`` restores it.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise LayeredError(f"output_type is {output_type!r}; allowed: pil, np, pt, latent")
        # Only now is the pipeline sure to be on the device where it runs.
        self.layer_diffuse.switch(True)  # type: ignore[attr-defined]
        out = super().__call__(*arguments, output_type="latent", **options)  # type: ignore[misc]
        if output_type == "latent":
            return out if return_dict else (out.images,)
        images = read_transparency(self, self.transparent_decoder, out.images)  # type: ignore[attr-defined]  # diffusers' pipeline
        pixels = images.permute(0, 2, 3, 1)
        out.images = (
            {"pt": images, "np": pixels.numpy()}.get(output_type)
            if output_type != "pil"
            else [to_image(i) for i in pixels]
        )
        return out if return_dict else (out.images,)


class StableDiffusionXLLayerDiffusePipeline(_Transparent, StableDiffusionXLPipeline):
    """SDXL that makes transparent pictures."""

    FILE = "layer_xl_transparent_attn.safetensors"
    DECODER = "vae_transparent_decoder.safetensors"


class StableDiffusionLayerDiffusePipeline(_Transparent, StableDiffusionPipeline):
    """SD1.5 that makes transparent pictures."""

    FILE = "layer_sd15_transparent_attn.safetensors"
    DECODER = "layer_sd15_vae_transparent_decoder.safetensors"
