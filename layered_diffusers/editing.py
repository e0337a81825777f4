"""Some layers of a document made anew among the others, and a picture taken apart into layers, without training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor
from torch.nn import functional

from demo.world.places import TRANSPARENT
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError, invalid
from layered_core.joint.editing import (
    BLEND,
    Edit,
    Free,
    LayersPlan,
    edited,
    frames_to_encode,
    plan_layers,
    with_frames,
)
from layered_core.joint.scenes import empty_remark, layer_names
from layered_core.transparency.layer_diffuse_files import offset_scale_of, read_layer_model_file
from layered_core.transparency.transparent_decode import check_augmentations
from layered_core.transparency.transparent_encode import encode
from layered_core.transparency.transparent_networks import TransparentEncoder
from layered_diffusers.methods.change_map import ChangeMap
from layered_diffusers.models import vae
from layered_diffusers.models.loading import require_unet
from layered_diffusers.sampling import Method, Progress, check_seeds
from layered_diffusers.together import SceneWords, at_once, check_words, frame_seeds
from layered_diffusers.transparent import read_transparency

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from layered_diffusers.generator import Generator


class Editing(TypedDict, total=False):
    """Options of :func:`sample_layers`."""

    file: str | Path | None
    """As in :class:`~layered_diffusers.together.Scenes`; the same for ``decoder``, ``enhance``, ``weight``,
    ``self_mask`` and ``augmentations``."""
    decoder: str | Path | None
    encoder: str | Path | None
    """The transparent encoder of the model's family, safetensors; None takes the storybook's."""
    enhance: float
    weight: float
    self_mask: float
    augmentations: int
    seed: int
    """Seed of the noise. The rest is as in :meth:`LayeredDiffusionPipeline.generate`."""
    negative: str
    steps: int
    guidance: float | None
    methods: Sequence[Method]
    progress: Progress | None


def sample_layers(
    pipeline: Generator,
    document: LayerDocument,
    free: Mapping[str, Free],
    *,
    hold_blend: bool = False,
    **options: Unpack[Editing],
) -> LayerDocument:
    """Make some layers of a document anew; the others come back bit for bit. See :mod:`layered_core.joint.editing`.

    Args:
        pipeline: samples with the model, SD1.5 or the storybook.
        document: 1 to 4 visible layers on a background.
        free: how far layers may change, by name: a number 0..1, or one for every pixel of the canvas, ``[H, W]``.
            Layers that have no picture yet are made too.
        hold_blend: the hidden layer ``blend`` has a picture that is held. Otherwise it is made anew where there is
            one.
        options: see :class:`Editing`.

    Returns:
        The document with new pictures of the free layers, each as large as the canvas; the document itself if no layer
        is free, without a pass of the model.

    Raises:
        LayeredError: as :func:`~layered_core.joint.editing.plan_layers`; a file is missing or for another model, or a
            value is out of range; raised before anything is sampled.
    """
    require_unet(pipeline.model, "Making layers together")
    plan = plan_layers(document, free, hold_blend)
    if plan is None:
        return document
    given: dict[str, Any] = {**options}
    augmentations = check_augmentations(given.pop("augmentations", 8))
    seeds = check_seeds([given.pop("seed", 0)], 1)
    encoder, scale = read_encoder(given.get("file"), given.pop("encoder", None))
    sampling, decoder = at_once(pipeline, plan.scene, plan.words, given)
    held = ChangeMap(
        encode_frames(pipeline, plan, encoder, scale),
        torch.stack([pipeline.latent_mask(change) for change in plan.change])[:, None],
    )
    sampling["methods"] = [*sampling["methods"], held]
    sampling["seeds"] = frame_seeds(seeds, plan.scene)
    sampling |= {"width": document.width, "height": document.height}
    latents, height, width = pipeline.sample_latents(plan.words, **sampling)
    made, free_frames = {}, [i for i, change in enumerate(plan.change) if bool(change.any())]
    layers = [i for i in free_frames if i < plan.scene.layers]
    if layers:
        shown = read_transparency(pipeline.model, decoder, latents[layers], augmentations)
        made = dict(zip(layers, shown[..., :height, :width], strict=True))
    for i in free_frames[len(layers) :]:
        picture = pipeline.decode(latents[i : i + 1])[0, :, :height, :width].clamp(0, 1)
        made[i] = functional.pad(picture, (0, 0, 0, 0, 0, 1), value=1.0)
    done = with_frames(plan, made)
    if remark := empty_remark(done, [plan.names[i] or "" for i in layers]):
        logging.getLogger(__name__).warning(remark)
    return done


def edit_layers(
    pipeline: Generator, document: LayerDocument, edits: Mapping[str, str | Edit], **options: Unpack[Editing]
) -> LayerDocument:
    """Give layers other words and make them anew, with those that have words and no picture yet; all others come back
    bit for bit.

    Args:
        pipeline: samples with the model, SD1.5 or the storybook.
        document: 1 to 4 visible layers on a background.
        edits: new words, or more, by the layers' names. See :func:`~layered_core.joint.editing.edited`.
        options: see :class:`Editing`.

    Raises:
        LayeredError: as :func:`sample_layers`, and as :func:`~layered_core.joint.editing.edited`.
    """
    document, free = edited(document, edits)
    return sample_layers(pipeline, document, free, **options)


def decompose(
    pipeline: Generator,
    picture: Tensor,
    layers: Sequence[str],
    *,
    background: str = "",
    prompt: str = "",
    **options: Unpack[Editing],
) -> LayerDocument:
    """Take a picture apart: make the layers and the background of which it is the blend.

    Args:
        pipeline: samples with the model, SD1.5 or the storybook.
        picture: RGB or RGBA, ``[H, W, 3 or 4]`` in 0..1.
        layers: words of 1 to 4 layers, back to front.
        background: words of the background. Neutral: empty, then the scene's.
        prompt: words of the whole picture. Empty: the layers' and the background's, joined.
        options: see :class:`Editing`.

    Returns:
        A document of ``background``, the layers, and the hidden ``blend``, which is the picture, bit for bit.

    Raises:
        LayeredError: as :func:`sample_layers`; there is no layer, or one has no words.
    """
    if not layers:
        raise invalid("layers", list(layers), "words of 1 to 4 layers")
    scene = SceneWords(prompt or ", ".join([*layers, *filter(None, [background])]), tuple(layers), background)
    check_words(scene)
    if picture.ndim != 3 or picture.shape[-1] not in (3, 4):
        raise invalid("picture's shape", list(picture.shape), "[height, width, 3 or 4]")
    rgba = picture if picture.shape[-1] == 4 else functional.pad(picture, (0, 1), value=1.0)
    empty = [Layer(name, prompt=text) for name, text in zip(layer_names(layers), layers, strict=True)]
    document = LayerDocument(
        picture.shape[1], picture.shape[0],
        (
            Layer("background", prompt=background or scene.prompt), *empty,
            Layer(BLEND, rgba, prompt=scene.prompt, visible=False),
        ),
        prompt=scene.prompt,
    )  # fmt: skip
    return sample_layers(pipeline, document, {}, hold_blend=True, **options)


def read_encoder(file: str | Path | None, encoder: str | Path | None) -> tuple[TransparentEncoder, float]:
    """Read the transparent encoder that belongs to ``file``, and return it with the factor on its output; None for both
    takes the storybook's.

    Raises:
        LayeredError: only one of the two is given, or the encoder is missing or broken.
    """
    if (file is None) != (encoder is None):
        raise LayeredError(
            f"The file and the encoder belong together, but only {str(file or encoder)!r} is given. Give both, or "
            f"neither of them to use the storybook's"
        )
    path = Path(encoder or TRANSPARENT / "encoder.safetensors")
    network = TransparentEncoder.from_weights(read_layer_model_file(path), path.name)
    return network, offset_scale_of(path.name, network.latent_channels)


def encode_frames(
    pipeline: Generator, plan: LayersPlan, encoder: TransparentEncoder, scale: float = 1.0
) -> Tensor:
    """Return the latents of all frames of a plan in the UNet's scale, ``[F, C, h, w]``; ``scale`` is the factor on the
    encoder's output."""
    model, count = pipeline.model, plan.scene.layers
    flat = pipeline.encode(frames_to_encode(plan))
    front = encode(
        encoder.to(model.device), pipeline.filled(plan.pictures[:count]).to(model.device),
        lambda grey: vae.posterior(model, grey), scale,
    )  # fmt: skip
    return torch.cat([front.to(flat) * model.vae.config.scaling_factor, flat])
