"""Scenes whose layers are made one by one and then held in the picture of all: no training, any model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from layered_core.attention.regional_plan import Settings
from layered_core.canvas.masks import visible_masks
from layered_core.canvas.soft_masks import grow
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError, check_number, invalid
from layered_core.joint.frames import SceneFrames
from layered_core.joint.transplant import (
    PRESENT,
    UNTIL,
    around_layers,
    joined,
    layer_cells,
    moved,
    moves_apart,
)
from layered_core.painting.mattes import difference_matte, uncovered
from layered_core.painting.stages import DRAFT_STRENGTH, changed_region, draft_reach
from layered_core.transparency.transparent_decode import check_augmentations
from layered_diffusers.methods.change_map import ChangeMap
from layered_diffusers.methods.transplant import KeepLatents, Transplant
from layered_diffusers.models.loading import is_transformer
from layered_diffusers.sampling import JoinedProgress, Method, Progress, WordedMethod, check_seeds
from layered_diffusers.together import ScenesMade, SceneWords, check_words, frame_seeds
from layered_diffusers.transparent import OWN_GUIDANCE, read_files, read_transparency

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from layered_diffusers.generator import Generator

ALPHAS = ("transparent", "difference")
"""Sources of a layer's alpha. ``transparent``: LayerDiffuse makes each layer alone, and it is moved away from
the others; for Stable Diffusion. ``difference``: each layer is what differs in a draft on the scene's
background, in which the layers so far are held; for any model."""


class Transplanting(TypedDict, total=False):
    """Options of :func:`transplant_scenes`."""

    alpha: str | None
    """One of ``ALPHAS``; None takes ``difference`` on transformers and else ``transparent``."""
    until: float
    """Share of the steps up to which the layers are held in the picture of all, 0..1. Neutral: 0, then it is
    made as if there were no layers; usual: .5 to .75."""
    apart: bool
    """With ``transparent``: whether layers are moved apart. Neutral: False."""
    places: bool
    """Whether in the picture of all each layer's words act where it is seen. Neutral: False."""
    file: str | Path | None
    """With ``transparent``: as in :class:`~layered_diffusers.transparent.Painting`; the same for ``decoder``
    and ``augmentations``."""
    decoder: str | Path | None
    augmentations: int
    seeds: Sequence[int] | None
    """One for each scene. This and the rest are as in :meth:`LayeredDiffusionPipeline.generate`."""
    negative: str
    width: int | None
    height: int | None
    steps: int
    guidance: float | None
    """None: ``OWN_GUIDANCE`` for layers made by the storybook's own ``file``, or else as for any picture."""
    progress: Progress | None
    """Called with the steps of all runs counted together."""


def transplant_scenes(
    pipeline: Generator, scenes: Sequence[SceneWords], **options: Unpack[Transplanting]
) -> ScenesMade:
    """Make the layers of scenes one by one, then the pictures of all around them, so that they show the same
    objects at the same places. See :mod:`layered_core.joint.transplant`.

    With ``transparent`` the background is made last, from the picture of all, with the layers' places made
    anew. With ``difference`` it is made first, and the layers and the picture of all are drafts on it.

    Args:
        pipeline: samples with the model.
        scenes: their words; each may have another number of layers, 1..4.
        options: see :class:`Transplanting`.

    Raises:
        LayeredError: a value is out of range, or a file is missing, for another model, or not used; raised
            before anything is sampled. A draft does not differ from its background.
    """
    for scene in scenes:
        check_words(scene)
    alpha = options.pop("alpha", None) or ALPHAS[is_transformer(pipeline.model)]
    if alpha not in ALPHAS:
        raise invalid("alpha", alpha, ", ".join(ALPHAS))
    until = options.pop("until", UNTIL)
    check_number("until", until, 0, 1)
    files = {"file": options.pop("file", None), "decoder": options.pop("decoder", None)}
    if alpha == "difference" and any(x is not None for x in files.values()):
        raise LayeredError(
            "file and decoder are used with alpha 'transparent' only. Leave them out, or set alpha to it"
        )
    augmentations = check_augmentations(options.pop("augmentations", 8))
    counts = tuple(len(s.layers) or 1 for s in scenes)
    seeds = check_seeds(options.pop("seeds", None), len(scenes))
    frames = SceneFrames(max(counts, default=0), counts)
    by_frame = torch.tensor(frame_seeds(seeds, frames)).view(len(scenes), -1).T.tolist()
    apart, places = options.pop("apart", True), options.pop("places", True)
    progress, steps = options.pop("progress", None), options.get("steps", 25)
    draft = min(int(steps * DRAFT_STRENGTH + 0.5), steps)
    costs = [steps] * 3 if alpha == "transparent" else [steps, *[draft] * (frames.layers + 1)]
    sampling: dict[str, Any] = {**options, "steps": steps, "progress": JoinedProgress(progress, sum(costs))}
    work = _Work(pipeline, scenes, by_frame, sampling, until, places)
    if alpha == "transparent":
        return work.around_transparent(augmentations, apart, **files)
    return work.on_background(frames.layers)


@dataclass
class _Work:
    """The runs of some scenes, one after the other."""

    pipeline: Generator
    scenes: Sequence[SceneWords]
    seeds: Sequence[Sequence[int]]
    """Of each scene's layers, background and blend, ``[F][S]``."""
    sampling: dict[str, Any]
    until: float
    places: bool
    layers: list[Tensor] = field(default_factory=list)
    """Of each scene, ``[K, 4, H, W]``."""
    cells: list[Tensor] = field(default_factory=list)
    """Of each scene's layers, ``[K, h, w]``."""
    donors: list[Tensor] = field(default_factory=list)
    """Of each scene, ``[T + 1, C, h, w]``."""

    def __post_init__(self) -> None:
        if self.places:
            # Raises its errors before anything is sampled.
            self._regions([torch.ones(len(_layers_of(s)), 4, 8, 8) for s in self.scenes])

    def around_transparent(self, augmentations: int, apart: bool, **files: Any) -> ScenesMade:
        """Make layers alone, the pictures of all around them, and the backgrounds from those."""
        change, decoder = read_files(self.pipeline.model, files["file"], files["decoder"])
        kept, how = KeepLatents(), dict(self.sampling)
        if files["file"] is None and how.get("guidance") is None:
            how["guidance"] = OWN_GUIDANCE
        counts = [len(words) for words in map(_layers_of, self.scenes)]
        seeds = [self.seeds[k][i] for i, count in enumerate(counts) for k in range(count)]
        latents, height, width = self.pipeline.sample_latents(
            [w for s in self.scenes for w in _layers_of(s)], seeds=seeds, methods=[change, kept], **how
        )
        made = read_transparency(self.pipeline.model, decoder, latents, augmentations)[..., :height, :width]
        for layers, own in zip(made.split(counts), kept.latents.split(counts, 1), strict=True):
            scale = self.pipeline.scale
            whole = max(1, height // scale), max(1, width // scale)
            present = self._cells(layers[:, 3])[:, : whole[0], : whole[1]] >= PRESENT
            moves = moves_apart(present) if apart else [(0, 0)] * len(layers)
            placed = [moved(x, y * scale, z * scale) for x, (y, z) in zip(layers, moves, strict=True)]
            self._add(torch.stack(placed), [moved(own[:, i], *move) for i, move in enumerate(moves)])
        kept = KeepLatents()
        blend = self._blend([kept])
        around = ~torch.stack([around_layers(c) for c in self.cells])
        background = self._made(
            [s.background or s.prompt for s in self.scenes],
            -2,
            [Transplant(kept.latents, around, self.until)],
        )
        return ScenesMade(tuple(self.layers), background, blend)

    def on_background(self, most: int) -> ScenesMade:
        """Make the backgrounds, and on them drafts of up to ``most`` layers, then the pictures of all."""
        pipeline = self.pipeline
        background = self._made([s.background or s.prompt for s in self.scenes], -2, [])
        clean = pipeline.encode(background)
        found: list[list[Tensor]] = [[] for _ in self.scenes]
        own: list[list[Tensor]] = [[] for _ in self.scenes]
        held = torch.zeros_like(clean[:, :1])
        for k in range(most):
            those = [i for i, s in enumerate(self.scenes) if k < len(_layers_of(s))]
            kept, words = KeepLatents(), [_layers_of(self.scenes[i])[k] for i in those]
            drafts = pipeline.generate(
                words, seeds=[self.seeds[k][i] for i in those],
                methods=[*([ChangeMap(clean[those], 1 - held[those])] if k else []), kept],
                start=background[those], strength=DRAFT_STRENGTH, **self.sampling,
            )  # fmt: skip
            for row, (i, draft) in enumerate(zip(those, drafts, strict=True)):
                layer = _taken_out(background[i], draft, f"layer {words[row]!r}")
                found[i].append(layer)
                own[i].append(kept.latents[:, row])
                held[i, 0] = torch.maximum(held[i, 0], (self._cells(layer[3:])[0] >= PRESENT).to(held))
        for layers, trajectories in zip(found, own, strict=True):
            self._add(torch.stack(layers), trajectories)
        return ScenesMade(
            tuple(self.layers), background, self._blend([], start=background, strength=DRAFT_STRENGTH)
        )

    def _add(self, layers: Tensor, trajectories: Sequence[Tensor]) -> None:
        """Add the layers of the next scene, with their latents."""
        words = _layers_of(self.scenes[len(self.layers)])
        cells = layer_cells(self._cells(visible_masks(layers[:, 3])[0]))
        for text, own in zip(words, cells, strict=True):
            if not bool(own.any()):
                logging.getLogger(__name__).warning(
                    "layer %r: it is too small or hidden by others, so it is not held in the picture of all",
                    text,
                )
        self.layers.append(layers)
        self.cells.append(cells)
        self.donors.append(joined(trajectories, cells))

    def _blend(self, more: Sequence[Method], **start: Any) -> Tensor:
        """Make the pictures of all around the layers, ``[S, 3, H, W]``."""
        cells = torch.stack([c.any(0, keepdim=True) for c in self.cells])
        methods: list[Method] = [Transplant(torch.stack(self.donors, 1), cells, self.until), *more]
        prompts = [s.prompt for s in self.scenes]
        if self.places and self.until > 0:
            regions = self._regions(self.layers)
            methods, prompts = [*methods, regions], regions.prompts
        return self._made(prompts, -1, methods, **start)

    def _regions(self, layers_of_scenes: Sequence[Tensor]) -> WordedMethod:
        """Return the method that makes each layer's words act where it is seen."""
        documents = []
        for scene, layers in zip(self.scenes, layers_of_scenes, strict=True):
            stack = [
                Layer(f"layer {i}", x.permute(1, 2, 0), prompt=text)
                for i, (text, x) in enumerate(zip(_layers_of(scene), layers, strict=True), 1)
            ]
            height, width = layers.shape[-2:]
            documents.append(LayerDocument(width, height, tuple(stack), prompt=scene.prompt))
        return self.pipeline.regional_prompts(
            documents, Settings(), prompts=[s.prompt for s in self.scenes],
            negative=self.sampling.get("negative", ""),
        )  # fmt: skip

    def _made(self, prompts: Sequence[str], frame: int, methods: Sequence[Method], **start: Any) -> Tensor:
        """Make a frame of all scenes, ``[S, 3, H, W]``."""
        return self.pipeline.generate(
            list(prompts), seeds=self.seeds[frame], methods=methods, **start, **self.sampling
        )

    def _cells(self, masks: Tensor) -> Tensor:
        """Return masks ``[K, H, W]`` by cells, ``[K, h, w]``."""
        return torch.stack([self.pipeline.latent_mask(x) for x in masks])


def _layers_of(scene: SceneWords) -> tuple[str, ...]:
    return scene.layers or (scene.prompt,)


def _taken_out(before: Tensor, after: Tensor, name: str) -> Tensor:
    """Return what a draft has added to its background, both ``[3, H, W]``, as RGBA ``[4, H, W]``."""
    try:
        region = changed_region(before, after)
    except LayeredError as error:
        raise LayeredError(f"{name}: {error}") from error
    reach = draft_reach(before.shape[-1], before.shape[-2])
    alpha = difference_matte(before, after) * (grow(region, reach) > 0)
    return uncovered(before, after, alpha).permute(2, 0, 1)
