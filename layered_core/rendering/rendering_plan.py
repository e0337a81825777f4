"""The plan of a layered rendering: which words and which place each part of the picture has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.words import join, layer_words
from ..canvas.masks import document_masks, layer_alpha, mask_pyramid
from ..document import Layer, LayerDocument
from ..errors import LayeredError, check_number, invalid

COLOURS = ("words", "picture", "constant", "noise")
"""Where the vector that is planted in a layer's place comes from.

* ``words``: from the model's own prediction for the layer's words, at the first noise level.
* ``picture``: from the layer's picture.
* ``constant``: one colour for all layers; the paper's white.
* ``noise``: from the noise in the cells where the words act, the paper's dynamic vector.
"""

FORMS = ("denoised", "paper")
"""Which predictions are fused: the denoised ones at the shifted latents, or, as the paper's algorithm 1 reads,
the scores there, which take out again what was planted."""

PRESETS = ("faithful", "fast")
"""Whether every layer has an unconditional pass of its own, or all layers share one that sees no shift."""

_OPAQUE = 0.999
"""Least alpha of a layer that hides what is behind it."""

_LEAST = 1e-6
"""A part is seen if some cell shows more of it than this: masks sum to 1 only up to rounding."""


@dataclass(frozen=True)
class Rendering:
    """Settings of layered rendering."""

    share: float = 0.3
    """Share of the run, from its first noise level to none, in which every layer is predicted by itself, 0..1.
    Neutral: 0."""
    strength: float = 0.2
    """How strongly a layer's colour is planted in its place, 0..1. 0: layers are only kept apart."""
    colour: str = "words"
    """One of ``COLOURS``."""
    constant: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """The colour ``constant``, RGB in 0..1."""
    form: str = "denoised"
    """One of ``FORMS``."""
    preset: str = "faithful"
    """One of ``PRESETS``."""

    def __post_init__(self) -> None:
        check_number("share", self.share, 0, 1)
        check_number("strength", self.strength, 0, 1)
        for name, allowed in (("colour", COLOURS), ("form", FORMS), ("preset", PRESETS)):
            if getattr(self, name) not in allowed:
                raise invalid(name, getattr(self, name), ", ".join(allowed))
        if len(self.constant) != 3:
            raise invalid("constant", self.constant, "three numbers: red, green, blue")
        for value in self.constant:
            check_number("constant", value, 0, 1)

    def acts(self, level: float, first: float) -> bool:
        """Return whether layers are predicted by themselves at a noise level.

        Args:
            level: place of the current noise level in the model's whole schedule, 0..1
                (:func:`~layered_core.noise.change_map.noise_level`).
            first: that of the run's first step; 1 for a run from noise alone.
        """
        # A run's last step may be at level 0.
        return self.share == 1 or level > first * (1 - self.share)

    @property
    def asks_model(self) -> bool:
        """Whether the colours come from predictions of the model at the first step."""
        return self.strength > 0 and self.colour in ("words", "noise")

    @property
    def asks_vae(self) -> bool:
        """Whether the colours come from encoded pictures."""
        return self.strength > 0 and self.colour in ("picture", "constant")


@dataclass(frozen=True)
class Part:
    """One part of the picture: a layer, or the background."""

    name: str
    """Name of the layer; empty for the background."""
    words: str
    """The part's own prompt."""
    negative: str
    """The part's own negative prompt, with the main one."""
    led: float = 0.0
    """Share of the strength that it is led with, 0..1; 0 for the background."""


class Seen(NamedTuple):
    """The parts that are seen in latents of one size."""

    parts: tuple[Part, ...]
    """The background, if it is seen anywhere, then the layers, back to front."""
    masks: Tensor
    """Where each is seen, ``[P, h, w]`` in 0..1; they sum to 1 at every cell."""
    missed: list[str]
    """Names of the layers that are too small to be seen."""


@dataclass(frozen=True)
class RenderingPlan:
    """The parts of one picture."""

    prompt: str
    """The main prompt."""
    negative: str
    """The main negative prompt."""
    background: Part
    """Everything that is none of the layers."""
    layers: tuple[Part, ...]
    """The layers, back to front."""
    masks: Tensor
    """Visible masks of the layers, ``[L, H, W]``."""

    def seen(self, height: int, width: int, cut: Callable[[Tensor], Tensor] | None = None) -> Seen:
        """Return the parts that are seen in latents of a size, with their masks by area.

        ``cut`` cuts masks ``[L, H, W]`` as the picture is cut; None: the whole canvas is stretched over the
        latents.
        """
        whole = self.masks if cut is None else cut(self.masks)
        masks = mask_pyramid(whole, [(height, width)])[0]
        rest = (1 - masks.sum(0)).clamp_min(0)
        found = [(self.background, rest), *zip(self.layers, masks, strict=True)]
        kept = [(part, mask) for part, mask in found if float(mask.max()) > _LEAST]
        missed = [part.name for part, mask in found[1:] if float(mask.max()) <= _LEAST]
        return Seen(tuple(part for part, _ in kept), torch.stack([mask for _, mask in kept]), missed)


def plan_rendering(
    document: LayerDocument,
    rendering: Rendering,
    prompt: str = "",
    negative: str = "",
    embedding_prefix: str = "",
) -> RenderingPlan:
    """Plan the parts of a picture.

    Every layer with words that is seen is a part; so is everything else, the background. The background's words
    are those of the hindmost layer if it covers the whole canvas opaquely (see :func:`background_of`), else the
    main prompt. A layer whose attention inside is 0 belongs to the background.

    Args:
        document: the layers.
        rendering: the settings.
        prompt: main prompt; empty: the document's own.
        negative: main negative prompt; empty: the document's own.
        embedding_prefix: see :func:`~layered_core.attention.words.layer_words`.

    Raises:
        LayeredError: no layer has words, or none of them is seen; or, with the colour ``picture``, a layer has no
            picture or one with NaN.
    """
    given, negative = prompt.strip() or document.prompt.strip(), negative.strip() or document.negative
    shown, _ = document_masks(document)
    behind = background_of(document)
    led = [
        (layer, mask)
        for layer, mask in zip(document, shown, strict=True)
        if layer is not behind and layer.visible and layer_words(layer) and layer.recipe.inside > 0
    ]
    if not led:
        raise LayeredError(
            "layers: none has words of its own that act in front of the background. Write what a layer shows into "
            "its prompt, and leave its attention inside above 0"
        )
    seen = [(layer, mask) for layer, mask in led if bool((mask > 0).any())]
    if not seen:
        names = ", ".join(repr(layer.name) for layer, _ in led)
        raise LayeredError(
            f"layers {names}: none of them is seen on the canvas. Move them onto it, raise their opacity, or put "
            "them in front"
        )
    if rendering.asks_vae and rendering.colour == "picture":
        for layer, _ in seen:
            _check_picture(layer)
    layers = tuple(
        Part(
            layer.name,
            layer_words(layer, embedding_prefix),
            join(negative, layer.negative),
            layer.recipe.inside,
        )
        for layer, _ in seen
    )
    words = given if behind is None else layer_words(behind, embedding_prefix)
    background = Part("", words, negative if behind is None else join(negative, behind.negative))
    masks = torch.stack([mask for _, mask in seen])
    return RenderingPlan(prompt.strip() or document.words, negative, background, layers, masks)


def background_of(document: LayerDocument) -> Layer | None:
    """Return the layer whose words are the background's: the hindmost visible one, if it has words and covers
    every pixel of the canvas opaquely, and others lie in front of it; else None."""
    shown = [layer for layer in document if layer.visible and layer.opacity > 0]
    if len(shown) < 2 or not layer_words(shown[0]) or shown[0].blend_mode != "normal":
        return None
    return shown[0] if bool((layer_alpha(shown[0], document) >= _OPAQUE).all()) else None


def _check_picture(layer: Layer) -> None:
    if layer.image is None:
        raise invalid(
            f"layer {layer.name!r}: its picture, of which the colour is taken",
            None,
            "a picture in every layer with words",
            "Choose the colour 'words', or give the layer a picture",
        )
    if bool(layer.image.isnan().any()):
        raise invalid(f"layer {layer.name!r}: its picture", "NaN", "numbers 0..1", "Load the picture again")
