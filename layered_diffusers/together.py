"""Scenes made at once: several layers with alpha, their background, and the model's own picture of all."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional

from demo.world.places import TRANSPARENT
from layered_core.document import Layer, LayerDocument
from layered_core.errors import invalid
from layered_core.joint.frames import SceneFrames
from layered_core.joint.scenes import FOREGROUND, empty_remark, layer_names
from layered_core.transparency.transparent_decode import check_augmentations
from layered_core.transparency.transparent_networks import TransparentDecoder
from layered_diffusers.methods.joint_layers import JointLayers
from layered_diffusers.methods.self_mask import SelfMask
from layered_diffusers.models.loading import require_unet
from layered_diffusers.sampling import Method, Progress, check_seeds
from layered_diffusers.transparent import OWN_GUIDANCE, read_decoder, read_transparency

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from layered_diffusers.generator import Generator

_SEED_STEP = 2**30
"""Distance between the seeds of a scene's pictures: far from those of other scenes, and within the 32 bits
that PyTorch's generator on the CPU reads of a seed."""


DEAR = 4
"""Steps for which the masks of self-mask guidance are kept where reading them is dear."""


@dataclass(frozen=True)
class SceneWords:
    """The words of a scene."""

    prompt: str
    """Describes the whole scene, and the blend."""
    layers: tuple[str, ...] = ()
    """Describe each layer alone, back to front. Neutral: empty, then there is one layer, with the scene's words."""
    background: str = ""
    """Describes the background alone. Neutral: empty, then the scene's words."""


class ScenesMade(NamedTuple):
    """Pictures of B scenes, each float32 in 0..1 on the CPU."""

    layers: tuple[Tensor, ...]
    """The layers of each scene, back to front, straight RGBA ``[K, 4, H, W]``. Each is whole, also where others
    cover it."""
    background: Tensor
    """The pictures behind them, ``[B, 3, H, W]``."""
    blend: Tensor
    """The model's own pictures of all, ``[B, 3, H, W]``, with the shadows and light that one throws on the other."""


class Scenes(TypedDict, total=False):
    """Options of :func:`generate_scenes`."""

    file: str | Path | None
    """The weights that make the layers at once, safetensors, see :class:`JointLayers`; None takes the storybook's:
    LayerDiffuse's kind for scenes of one layer, and this project's own for several."""
    decoder: str | Path | None
    """The transparent decoder of the model's family, safetensors; None takes the storybook's."""
    enhance: float
    """How far the layers' words are completed from the scene's, 0..1. Neutral: 0."""
    weight: float
    """How far ``file`` changes the model, 0..2. Neutral: 0; usual: 1."""
    self_mask: float
    """Amount of self-mask guidance, 0..2, see :mod:`layered_core.joint.self_mask`. Neutral: 0; usual: .5 to 1."""
    augmentations: int
    """Passes of the decoder over mirrored and turned copies of a picture: 1, 2, 4 or 8."""
    seeds: Sequence[int] | None
    """One for each scene. This and the rest are as in :meth:`LayeredDiffusionPipeline.generate`."""
    negative: str
    width: int | None
    height: int | None
    steps: int
    guidance: float | None
    """Classifier-free guidance, 0..50; 1 turns it off. None: ``OWN_GUIDANCE`` if ``file`` is the
    storybook's, or else as for any picture."""
    methods: Sequence[Method]
    progress: Progress | None


def generate_scenes(
    pipeline: Generator, scenes: Sequence[SceneWords], **options: Unpack[Scenes]
) -> ScenesMade:
    """Sample the layers, the backgrounds and the blends of scenes at once; all pictures of a scene attend to each
    other (after LayerDiff, arXiv 2403.11929; see :mod:`layered_core.joint`).

    Args:
        pipeline: samples with the model, SD1.5 or the storybook.
        scenes: their words; each may have another number of layers, 1..4.
        options: see :class:`Scenes`.

    Raises:
        LayeredError: a file is missing or for another model, or a value is out of range; raised before
            anything is sampled.
    """
    require_unet(pipeline.model, "Making layers together")
    for scene in scenes:
        check_words(scene)
    counts = tuple(len(s.layers) or 1 for s in scenes)
    frames = SceneFrames(max(counts, default=0), counts)
    augmentations = check_augmentations(options.pop("augmentations", 8))
    seeds = check_seeds(options.pop("seeds", None), len(scenes))
    prompts = [text for scene in scenes for text in _texts(scene, frames)]
    sampling, decoder = at_once(pipeline, frames, prompts, options)
    sampling["seeds"] = frame_seeds(seeds, frames)
    latents, height, width = pipeline.sample_latents(prompts, **sampling)
    by_scene = latents.unflatten(0, (len(scenes), frames.frames))
    front = torch.cat([x[:k] for x, k in zip(by_scene, counts, strict=True)])
    layers = read_transparency(pipeline.model, decoder, front, augmentations)[..., :height, :width]
    background, blend = (pipeline.decode(by_scene[:, i])[..., :height, :width] for i in (-2, -1))
    return ScenesMade(layers.split(counts), background, blend)


def at_once(
    pipeline: Generator, frames: SceneFrames, prompts: Sequence[str], options: Mapping[str, Any]
) -> tuple[dict[str, Any], TransparentDecoder]:
    """Return the options of a run in which frames are made at once, and the transparent decoder.

    Args:
        pipeline: samples with the model.
        frames: of the scenes.
        prompts: of all rows.
        options: those of :class:`Scenes` but for ``seeds`` and ``augmentations``.

    Raises:
        LayeredError: as :func:`generate_scenes`.
    """
    sampling = {**options}
    file = sampling.pop("file", None)
    own = TRANSPARENT / ("joint.safetensors" if frames.layers == 1 else "joint_layers.safetensors")
    decoder = read_decoder(file, sampling.pop("decoder", None))
    weight, enhance = sampling.pop("weight", 1.0), sampling.pop("enhance", 1.0)
    change = JointLayers(pipeline.model, file or own, frames, enhance=enhance, weight=weight)

    def alphas(latents: Tensor) -> Tensor:
        return read_transparency(pipeline.model, decoder, latents, 1)[:, 3]

    # The storybook's decoder costs less than a step of its UNet; those of large VAEs cost several.
    every = 1 if isinstance(pipeline.model.vae, AutoencoderTiny) else DEAR
    self_mask = SelfMask(frames, prompts, alphas, sampling.pop("self_mask", 0.0), every=every)
    sampling["methods"] = [change, self_mask, *sampling.get("methods", ())]
    if file is None and weight > 0 and sampling.get("guidance") is None:
        sampling["guidance"] = OWN_GUIDANCE
    return sampling, decoder


def check_words(scene: SceneWords) -> None:
    """Raise :class:`LayeredError` if a layer of a scene has no words, or there are too many layers."""
    SceneFrames(len(scene.layers) or 1)
    for number, words in enumerate(scene.layers, 1):
        if not words.strip():
            raise invalid(f"layer {number}: words", words, "words that say what the layer shows")


def _texts(scene: SceneWords, frames: SceneFrames) -> list[str]:
    """Return the prompt of every row of a scene; absent layers have none."""
    layers = scene.layers or (scene.prompt,)
    return [*layers, *[""] * (frames.layers - len(layers)), scene.background or scene.prompt, scene.prompt]


def frame_seeds(seeds: Sequence[int], frames: SceneFrames) -> list[int]:
    """Return the seed of every row of the scenes that have ``seeds``."""
    return [_seed(seed, frame, frames) for seed in seeds for frame in range(frames.frames)]


def _seed(seed: int, frame: int, frames: SceneFrames) -> int:
    """Return the seed of a frame: the first layer's, the background's and the blend's are the same whatever the
    number of layers."""
    others = frame - frames.layers
    place = others + 1 if others >= 0 else frame + 2 if frame else 0
    return (seed + place * _SEED_STEP) % 2**63


def scene_document(scene: SceneWords, made: ScenesMade) -> LayerDocument:
    """Return the first scene of ``made`` as a document: ``background``, the layers back to front, and ``blend``, which
    is hidden, with their prompts. A layer is called by its words, or ``foreground`` if the scene names none. Layers in
    which nothing came out are told."""
    behind, both = (functional.pad(x[0].permute(1, 2, 0), (0, 1), value=1.0) for x in made[1:])
    front = [x.permute(1, 2, 0) for x in made.layers[0]]
    words = [*(scene.layers or (scene.prompt,))]
    layers = [Layer("background", behind, prompt=scene.background or scene.prompt)]
    for name, text, pixels in zip(layer_names(scene.layers) or [FOREGROUND], words, front, strict=True):
        layers.append(Layer(name, pixels, prompt=text))
    layers.append(Layer("blend", both, prompt=scene.prompt, visible=False))
    height, width = made.blend.shape[-2:]
    document = LayerDocument(width, height, tuple(layers), prompt=scene.prompt)
    if remark := empty_remark(document, [x.name for x in layers]):
        logging.getLogger(__name__).warning(remark)
    return document
