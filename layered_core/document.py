"""The data model: a document is a stack of layers, each with its prompt, placement and diffusion settings.

Every class validates its fields on construction, so an existing document is always valid. Change a field with
:func:`dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from .errors import LayeredError, check_number, check_whole, invalid

MAX_SIDE = 16_384
"""Greatest canvas or layer side in pixels."""

MAX_LAYERS = 50
"""Greatest number of layers; ComfyUI's own limit for LAYERS."""

BLEND_MODES = (
    "normal", "multiply", "screen", "overlay", "darken", "lighten", "color-dodge", "color-burn", "hard-light",
    "soft-light",
    "difference", "exclusion", "linear-dodge", "linear-burn", "vivid-light", "pin-light", "linear-light",
    "hard-mix", "subtract",
    "divide", "grain-extract", "grain-merge", "hue", "saturation", "color", "luminosity",
)  # fmt: skip
"""Names of the blend modes, spelt as in ComfyUI's LAYERS type."""

MAX_NAME = 1000
"""Greatest length of a layer's name in letters: it is shown in lists, pictures and errors."""

SHORT_NAME = 40
"""Greatest length of a name that is made of words, letters."""

DEFAULT_NOISE = 0.8
"""How far a layer may change whose recipe does not say it, unless it is a backdrop."""

HINTS = ("none", "picture", "canny", "scribble", "lineart", "depth", "normal", "pose", "segmentation")
"""Kinds of ControlNet hint. ``picture``: the layer itself; ``none``: no control; the others name a
preprocessor."""


@dataclass(frozen=True)
class Control:
    """How a layer steers a ControlNet."""

    hint: str = "none"
    """How the hint is made from the layer's picture, one of ``HINTS``. Neutral: ``none``."""
    strength: float = 1.0
    """Weight of the ControlNet's residuals inside the layer, 0..2. Neutral: 0."""
    start: float = 0.0
    """Fraction of the sampling at which control begins, 0..1. Neutral: 0."""
    end: float = 1.0
    """Fraction of the sampling at which control ends, ``start``..1. Neutral: 1."""

    def __post_init__(self) -> None:
        _one_of("control.hint", self.hint, HINTS)
        check_number("control.strength", self.strength, 0, 2)
        check_number("control.start", self.start, 0, 1)
        check_number("control.end", self.end, self.start, 1)


@dataclass(frozen=True)
class Lora:
    """A LoRA that acts on one layer."""

    name: str
    """File name as the host lists it; with its folder below the host's own one, ``/`` between them, if need be."""
    strength: float = 1.0
    """Factor on the LoRA's weights, -4..4. Neutral: 0."""

    def __post_init__(self) -> None:
        _file_below("lora.name", self.name)
        check_number("lora.strength", self.strength, -4, 4)


@dataclass(frozen=True)
class Recipe:
    """The diffusion settings of one layer."""

    inside: float = 1.0
    """How strongly pixels inside the layer's visible mask attend to its prompt, 0..1. Neutral: 0."""
    outside: float = 1.0
    """How strongly pixels outside the mask are kept from attending to its prompt, 0..1. Neutral: 0."""
    noise: float | None = None
    """How far the layer may change, 0 (frozen) to 1 (free). None: it was not said, which counts as 0 for a
    backdrop (:func:`~layered_core.canvas.backdrop.find_backdrop`) and as 0.8 for any other layer.
    Neutral: 1."""
    control: Control = field(default_factory=Control)
    """How the layer steers a ControlNet. Neutral: hint ``none``."""
    embedding: str | None = None
    """Name of a textual-inversion embedding that is put before the layer's prompt, a file name without a
    folder, or None. Neutral: None."""
    loras: tuple[Lora, ...] = ()
    """LoRAs that act on this layer. Neutral: empty."""
    seed: int | None = None
    """Seed of the layer's own noise, 0..2**63-1, or None to use the picture's noise. Neutral: None."""

    def __post_init__(self) -> None:
        check_number("inside", self.inside, 0, 1)
        check_number("outside", self.outside, 0, 1)
        if self.noise is not None:
            check_number("noise", self.noise, 0, 1)
        if not isinstance(self.control, Control):
            raise invalid("control", self.control, "a control: hint, strength, start, end")
        if self.embedding not in (None, ""):
            _file_name("embedding", self.embedding)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: a picture with a prompt, or only a place where one is to be generated."""

    name: str
    """Name of the layer, at most 1000 letters; unique in its document."""
    image: Tensor | None = None
    """RGBA float32 ``[H, W, 4]``, straight alpha, 0..1, of any size: it is scaled to ``width`` x ``height``.
    None: the picture is still to be generated."""
    mask: Tensor | None = None
    """Float32 ``[H, W]``, 1 where the layer is, in the same frame as ``image``; multiplies the image's alpha.
    None: 1 everywhere."""
    prompt: str = ""
    """Prompt: what the layer shows. Neutral: empty."""
    negative: str = ""
    """Negative prompt: what the layer must not show. Neutral: empty."""
    x: float = 0
    """Left edge before rotation, in canvas pixels; may be off the canvas. Neutral: 0."""
    y: float = 0
    """Top edge before rotation, in canvas pixels. Neutral: 0."""
    width: int = 0
    """Width on the canvas in pixels, 1..16384. 0: the width of the image or mask; without both, it stays 0
    until the layer comes into a document, and then is the canvas's. Neutral: 0."""
    height: int = 0
    """Height on the canvas in pixels, 1..16384; 0 as for ``width``. Neutral: 0."""
    rotation: float = 0.0
    """Rotation about the centre, degrees clockwise. Neutral: 0."""
    flip_h: bool = False
    """Mirror left to right, before rotation. Neutral: False."""
    flip_v: bool = False
    """Mirror top to bottom, before rotation. Neutral: False."""
    opacity: float = 1.0
    """Multiplies the alpha, 0..1. Neutral: 1."""
    blend_mode: str = "normal"
    """One of ``BLEND_MODES``. Neutral: ``normal``."""
    visible: bool = True
    """Whether the layer is shown. Hidden layers are ignored everywhere. Neutral: True."""
    recipe: Recipe = field(default_factory=Recipe)
    """Diffusion settings, see :class:`Recipe`."""

    def __post_init__(self) -> None:
        _text("name", self.name)
        if not self.name.strip():
            raise invalid("a layer's name", self.name, "a non-empty string")
        if len(self.name) > MAX_NAME:
            got = f"{self.name[:40]!r}... of {len(self.name):,} letters"
            raise LayeredError(
                f"a layer's name is {got}; allowed: at most {MAX_NAME:,} letters. Give it a short one"
            )
        try:
            self._check()
        except LayeredError as error:
            raise LayeredError(f"layer {self.name!r}: {error}") from None

    def _check(self) -> None:
        frame = None
        for what, tensor, channels in (("image", self.image, 4), ("mask", self.mask, 0)):
            if tensor is None:
                continue
            shape = tuple(getattr(tensor, "shape", ()))
            if (
                not isinstance(tensor, Tensor)
                or len(shape) != (3 if channels else 2)
                or (channels and shape[-1] != channels)
            ):
                raise invalid(
                    f"{what}'s shape",
                    list(shape),
                    "[height, width, 4] (RGBA)" if channels else "[height, width]",
                )
            if not all(1 <= s <= MAX_SIDE for s in shape[:2]):
                raise invalid(f"{what}'s size", f"{shape[1]}x{shape[0]}", f"1..{MAX_SIDE} pixels a side")
            if not tensor.is_floating_point():
                raise invalid(f"{what}'s type", str(tensor.dtype), "a floating-point type with values 0..1")
            least, most = (float(value) for value in tensor.aminmax())  # both are NaN if any value is
            if not 0 <= least <= most <= 1:
                raise invalid(f"{what}'s values", f"{least}..{most}", "0..1 and no NaN")
            frame = frame or (shape[1], shape[0])
        _text("prompt", self.prompt)
        _text("negative", self.negative)
        check_number("x", self.x, -4 * MAX_SIDE, 4 * MAX_SIDE)
        check_number("y", self.y, -4 * MAX_SIDE, 4 * MAX_SIDE)
        for axis, size in (("width", self.width), ("height", self.height)):
            check_whole(axis, size, 0, MAX_SIDE)
            if size == 0 and frame is not None:
                object.__setattr__(self, axis, frame[0] if axis == "width" else frame[1])
        check_number("rotation", self.rotation, -36_000, 36_000)
        check_number("opacity", self.opacity, 0, 1)
        _one_of("blend_mode", self.blend_mode, BLEND_MODES)
        for what, value in (("flip_h", self.flip_h), ("flip_v", self.flip_v), ("visible", self.visible)):
            if not isinstance(value, bool):
                raise invalid(what, value, "true or false")
        if not isinstance(self.recipe, Recipe):
            raise invalid("recipe", self.recipe, "a recipe")

    @property
    def coverage(self) -> Tensor:
        """Alpha times mask in the layer's own frame, float32 ``[H, W]``; all ones for a layer without image
        and mask, which take no memory. It may share memory: not to be written into."""
        if self.image is None:
            return torch.ones(()).expand(self.height, self.width) if self.mask is None else self.mask.float()
        alpha = self.image[..., 3].float()
        if self.mask is None:
            return alpha
        mask = self.mask.float()
        if mask.shape != alpha.shape:
            mask = torch.nn.functional.interpolate(
                mask[None, None], alpha.shape, mode="bilinear", antialias=True
            )[0, 0]
        return alpha * mask


@dataclass(frozen=True, eq=False)
class LayerDocument:
    """A canvas and its layers."""

    width: int
    """Canvas width in pixels, 1..16384."""
    height: int
    """Canvas height in pixels, 1..16384."""
    layers: tuple[Layer, ...] = ()
    """The layers, back to front; at most 50, with unique names. One without a width or height gets the
    canvas's."""
    background: tuple[float, float, float] | None = None
    """Colour behind all layers, RGB 0..1, or None for transparent. Neutral: None."""
    prompt: str = ""
    """Prompt for the whole picture. Empty: the prompts of the visible layers, joined."""
    negative: str = ""
    """Negative prompt for the whole picture. Neutral: empty."""

    def __post_init__(self) -> None:
        check_whole("canvas width", self.width, 1, MAX_SIDE)
        check_whole("canvas height", self.height, 1, MAX_SIDE)
        object.__setattr__(self, "layers", tuple(_sized(x, self.width, self.height) for x in self.layers))
        if len(self.layers) > MAX_LAYERS:
            raise invalid("number of layers", len(self.layers), f"at most {MAX_LAYERS}")
        for name in (names := [layer.name for layer in self.layers]):
            if names.count(name) > 1:
                raise invalid(
                    "layer name",
                    name,
                    "names that occur once",
                    f"{names.count(name)} layers have it: rename one",
                )
        if self.background is not None:
            if not isinstance(self.background, Sequence) or len(self.background) != 3:
                raise invalid("background", self.background, "three numbers 0..1 (red, green, blue), or null")
            for value in self.background:
                check_number("background", value, 0, 1)
        _text("prompt", self.prompt)
        _text("negative", self.negative)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def layer(self, name: str) -> Layer:
        """Return the layer called ``name``.

        Raises:
            LayeredError: there is none; the error lists the existing names.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        if not self.layers:
            raise LayeredError(f"layer {name!r} was not found: the document is empty. Add a layer first")
        raise invalid("layer name", name, ", ".join(repr(x.name) for x in self.layers))

    def with_layer(self, layer: Layer) -> LayerDocument:
        """Return a document in which ``layer`` replaces the layer of the same name, or lies on top if there
        is none."""
        if any(x.name == layer.name for x in self.layers):
            return replace(self, layers=tuple(layer if x.name == layer.name else x for x in self.layers))
        return replace(self, layers=(*self.layers, layer))

    def with_noise(self, noise: float | Mapping[str, float]) -> LayerDocument:
        """Return a document whose layers may change that far: their ``recipe.noise``.

        ``document.with_noise(0.4).with_noise({"house": 0})`` keeps the house, and all else may change by 0.4.

        Args:
            noise: 0 (frozen) to 1 (free), for every layer, or by the names of layers, and others stay as they are.

        Raises:
            LayeredError: there is no layer of a name, or a value is out of range; the text names it.
        """
        document = self
        for name, value in (noise if isinstance(noise, Mapping) else {x.name: noise for x in self}).items():
            layer = self.layer(name)
            try:
                document = document.with_layer(replace(layer, recipe=replace(layer.recipe, noise=value)))
            except LayeredError as error:
                raise LayeredError(f"layer {name!r}: {error}") from None
        return document

    @property
    def words(self) -> str:
        """The prompt of the whole picture: ``prompt``, or else the visible layers' prompts joined, front to
        back."""
        return self.prompt or ", ".join(x.prompt for x in reversed(self.layers) if x.visible and x.prompt)


def short_name(words: str) -> str:
    """Return a name made of words: their beginning, cut between two of them; empty if there are none."""
    line = " ".join(words.split())
    if len(line) <= SHORT_NAME:
        return line
    return line[:SHORT_NAME].rpartition(" ")[0] or line[:SHORT_NAME]


def unique_names(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the layers; those whose name an earlier one has get a number at its end."""
    taken: set[str] = set()
    unique = []
    for layer in layers:
        name, number = layer.name, 2
        while name in taken:
            name, number = f"{layer.name[: MAX_NAME - 10]} {number}", number + 1
        taken.add(name)
        unique.append(layer if name == layer.name else replace(layer, name=name))
    return tuple(unique)


def identical(a: LayerDocument, b: LayerDocument) -> bool:
    """Return whether two documents are equal in every field and every pixel."""
    if len(a) != len(b) or any(
        getattr(a, f.name) != getattr(b, f.name) for f in fields(a) if f.name != "layers"
    ):
        return False
    return all(_identical_layers(x, y) for x, y in zip(a, b, strict=True))


def _identical_layers(a: Layer, b: Layer) -> bool:
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        same = (
            torch.equal(x, y)
            if isinstance(x, Tensor) and isinstance(y, Tensor)
            else (x is y if isinstance(x, Tensor) or isinstance(y, Tensor) else x == y)
        )
        if not same:
            return False
    return True


def _sized(layer: Layer, width: int, height: int) -> Layer:
    """Return the layer with the canvas's size where it has none of its own."""
    if layer.width and layer.height:
        return layer
    return replace(layer, width=layer.width or width, height=layer.height or height)


def _text(where: str, value: object) -> None:
    if not isinstance(value, str):
        raise invalid(where, value, "a string")


def _file_name(where: str, value: object) -> None:
    _text(where, value)
    assert isinstance(value, str)
    if not value or "/" in value or "\\" in value or value.startswith("."):
        fix = "Put the file into the host's own folder for such files, and give its name"
        raise invalid(where, value, "a file name without folder", fix)


def _file_below(where: str, value: object) -> None:
    _text(where, value)
    assert isinstance(value, str)
    if "\\" in value or any(not part or part.startswith(".") for part in value.split("/")):
        fix = "Put the file into the host's own folder for such files, and give its name"
        raise invalid(where, value, "a file name, or folder/name below the host's own folder", fix)


def _one_of(where: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise invalid(where, value, ", ".join(allowed))
