"""Layers with transparency of their own, from words: LayerDiffuse's change of the model, and its decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor

from layered_core.errors import invalid
from layered_core.layer_model_files import read_layer_model_file
from layered_core.transparent import TransparentDecoder
from layered_core.transparent_decode import check_augmentations, decode
from layered_diffusers import vae
from layered_diffusers.layer_diffuse import LayerDiffuse
from layered_diffusers.loading import STORYBOOK, StableDiffusion
from layered_diffusers.sampling import Method, Progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from layered_diffusers.pipeline import LayeredDiffusionPipeline

STORYBOOK_FILES = STORYBOOK / "transparent"
"""The storybook's own files of transparent layers."""


class Painting(TypedDict, total=False):
    """Options of :func:`generate_transparent`."""

    file: str | Path | None
    """What changes the UNet to paint transparent layers, safetensors; None: the storybook's. See :class:`LayerDiffuse`."""
    decoder: str | Path | None
    """What reads the transparency, safetensors, of the model's family; None: the storybook's."""
    weight: float
    """How far ``file`` changes the model, 0..2. Neutral: 0; usual: 1."""
    augmentations: int
    """Passes of the decoder over mirrored and turned pictures: 1, 2, 4 or 8."""
    seeds: Sequence[int] | None
    """This and the rest as :meth:`LayeredDiffusionPipeline.generate`."""
    negative: str
    width: int | None
    height: int | None
    steps: int
    guidance: float
    methods: Sequence[Method]
    progress: Progress | None


def generate_transparent(pipeline: LayeredDiffusionPipeline, prompts: Sequence[str], **options: Unpack[Painting]) -> Tensor:
    """Sample a batch of layers: straight RGBA ``[B, 4, H, W]`` float32 in 0..1 on the CPU; colours go on under alpha 0.

    Args:
        pipeline: the model.
        prompts: one a layer, each of the layer alone.
        options: see :class:`Painting`.

    Raises:
        LayeredError: a file is missing or for another model, or a value is out of range; before anything is sampled.
    """
    file, network = options.pop("file", None), options.pop("decoder", None)
    if (file is None) != (network is None):
        fix = "The file and the decoder belong together: give both, or neither for the storybook's"
        raise invalid("file and decoder", [str(x) for x in (file, network) if x is not None], "two files", fix)
    path = Path(network or STORYBOOK_FILES / "decoder.safetensors")
    decoder = TransparentDecoder.from_weights(read_layer_model_file(path), path.name)
    change = LayerDiffuse(pipeline.model, file or STORYBOOK_FILES / "lora.safetensors", weight=options.pop("weight", 1.0))
    augmentations = check_augmentations(options.pop("augmentations", 8))
    sampling: dict[str, Any] = {**options, "methods": [change, *options.get("methods", ())]}
    latents, height, width = pipeline.sample_latents(prompts, **sampling)
    return read_transparency(pipeline.model, decoder, latents, augmentations)[..., :height, :width]


def read_transparency(model: StableDiffusion, decoder: TransparentDecoder, latents: Tensor, augmentations: int = 8) -> Tensor:
    """Latents ``[B, C, h, w]`` in the UNet's scale to straight RGBA ``[B, 4, 8 h, 8 w]`` float32 in 0..1 on the CPU."""
    inside = vae.in_vae_space(model, latents).float()
    return decode(decoder.to(latents.device), vae.decode(model, latents), inside, augmentations=augmentations)
