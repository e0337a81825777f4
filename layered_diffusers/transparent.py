"""Layers with their own transparency from prompts, each made alone: LayerDiffuse's change of the model, and its
decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor

from demo.world.places import TRANSPARENT
from layered_core.errors import LayeredError
from layered_core.painting.stages import into_place
from layered_core.transparency.layer_diffuse_files import read_layer_model_file
from layered_core.transparency.transparent_decode import check_augmentations, decode
from layered_core.transparency.transparent_networks import TransparentDecoder
from layered_diffusers.methods.layer_diffuse import LayerDiffuse
from layered_diffusers.models import vae
from layered_diffusers.models.loading import StableDiffusion, require_unet
from layered_diffusers.sampling import Method, Progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from layered_diffusers.generator import Generator

OWN_GUIDANCE = 2.0
"""Classifier-free guidance for the storybook's transparent layers if none is given: with more of it the model
leaves more alpha around the object (``docs/storybook.md``)."""


class Painting(TypedDict, total=False):
    """Options of :func:`generate_transparent`."""

    file: str | Path | None
    """LayerDiffuse's weights, which make the UNet paint transparent layers, safetensors; None takes the
    storybook's. See :class:`LayerDiffuse`."""
    decoder: str | Path | None
    """The transparent decoder of the model's family, safetensors; None takes the storybook's."""
    weight: float
    """How far ``file`` changes the model, 0..2. Neutral: 0; usual: 1."""
    augmentations: int
    """Passes of the decoder over mirrored and turned copies of a picture: 1, 2, 4 or 8."""
    seeds: Sequence[int] | None
    """This and the rest are as in :meth:`LayeredDiffusionPipeline.generate`."""
    negative: str
    width: int | None
    height: int | None
    steps: int
    guidance: float | None
    """Classifier-free guidance, 0..50; 1 turns it off. None: ``OWN_GUIDANCE`` if ``file`` is the
    storybook's, or else as for any picture."""
    methods: Sequence[Method]
    progress: Progress | None


def generate_transparent(pipeline: Generator, prompts: Sequence[str], **options: Unpack[Painting]) -> Tensor:
    """Sample a batch of layers: straight RGBA ``[B, 4, H, W]``, float32 in 0..1 on the CPU. Colours are
    continued where alpha is 0.

    Args:
        pipeline: samples with the model.
        prompts: one for each layer; it describes the layer alone.
        options: see :class:`Painting`.

    Raises:
        LayeredError: a file is missing or for another model, or a value is out of range; raised before
            anything is sampled.
    """
    files = options.pop("file", None), options.pop("decoder", None), options.pop("weight", 1.0)
    change, decoder = read_files(pipeline.model, *files)
    augmentations = check_augmentations(options.pop("augmentations", 8))
    sampling = _sampling(change, options, own=files[0] is None and files[2] > 0)
    latents, height, width = pipeline.sample_latents(prompts, **sampling)
    return read_transparency(pipeline.model, decoder, latents, augmentations)[..., :height, :width]


def _sampling(change: LayerDiffuse, options: Painting, own: bool) -> dict[str, Any]:
    """Return the options of a run with ``change``; ``own``: the storybook's, which acts."""
    sampling: dict[str, Any] = {**options, "methods": [change, *options.get("methods", ())]}
    if own and sampling.get("guidance") is None:
        sampling["guidance"] = OWN_GUIDANCE
    return sampling


def generate_in_place(
    pipeline: Generator,
    prompt: str,
    region: Tensor,
    *,
    seed: int = 0,
    size: int = 0,
    **options: Unpack[Painting],
) -> Tensor:
    """Make one layer alone and move it to its region. See :func:`layered_core.painting.stages.into_place`.

    Args:
        pipeline: samples with the model.
        prompt: describes the layer alone.
        region: ``[H, W]`` in 0..1, 1 where the layer may be.
        seed: seed of the noise.
        size: side of the square that is sampled, pixels; 0 for the model's own.
        options: as in :func:`generate_transparent`.

    Returns:
        Straight RGBA ``[H, W, 4]`` in 0..1 on the CPU.
    """
    options["seeds"], options["width"], options["height"] = (
        [seed],
        size or pipeline.side,
        size or pipeline.side,
    )
    made = generate_transparent(pipeline, [prompt], **options)[0]
    return into_place(made.permute(1, 2, 0), region)


def read_files(
    model: StableDiffusion,
    file: str | Path | None = None,
    decoder: str | Path | None = None,
    weight: float = 1.0,
) -> tuple[LayerDiffuse, TransparentDecoder]:
    """Read LayerDiffuse's weights and the transparent decoder, see :class:`Painting`.

    Raises:
        LayeredError: the model has no UNet; only one of the two files is given, or one is missing, broken or for
            another model.
    """
    require_unet(model, "LayerDiffuse")
    network = read_decoder(file, decoder)
    return LayerDiffuse(model, file or TRANSPARENT / "lora.safetensors", weight=weight), network


def read_decoder(file: str | Path | None, decoder: str | Path | None) -> TransparentDecoder:
    """Read the transparent decoder that belongs to ``file``; None for both takes the storybook's.

    Raises:
        LayeredError: only one of the two is given, or the decoder is missing or broken.
    """
    if (file is None) != (decoder is None):
        raise LayeredError(
            f"The file and the decoder belong together, but only {str(file or decoder)!r} is given. Give both, or "
            f"neither of them to use the storybook's"
        )
    path = Path(decoder or TRANSPARENT / "decoder.safetensors")
    return TransparentDecoder.from_weights(read_layer_model_file(path), path.name)


def read_transparency(
    model: StableDiffusion, decoder: TransparentDecoder, latents: Tensor, augmentations: int = 8
) -> Tensor:
    """Decode latents ``[B, C, h, w]`` in the UNet's scale to straight RGBA ``[B, 4, 8 h, 8 w]``, float32 in
    0..1 on the CPU."""
    inside = vae.in_vae_space(model, latents).float()
    return decode(decoder.to(latents.device), vae.decode(model, latents), inside, augmentations=augmentations)
