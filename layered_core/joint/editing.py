"""Editing layers without training: some layers of a document are made anew among the others, which are held.

After LayerDiff (arXiv 2403.11929), which names layer-wise editing and style transfer and gives no equations. A
document is a scene of :mod:`layered_core.joint.frames`. At every step a held frame is its own latents with that step's
noise, and as the frames attend to each other, those that are made anew come to fit it.

* edit: a layer from noise, with new words;
* inpaint: the same inside a mask;
* style: a layer that keeps its form, freed in the last ``STYLE`` of the sampling, with words added to its own;
* add: a layer that has words and no picture yet;
* decompose: everything but the blend, which is a picture that is given.

>>> import torch
>>> from layered_core.document import Layer, LayerDocument
>>> sea = Layer("sea", torch.ones(8, 8, 4), prompt="by the sea")
>>> ball = Layer("ball", torch.zeros(8, 8, 4), prompt="a red ball")
>>> document = LayerDocument(8, 8, (sea, ball), prompt="a red ball by the sea")
>>> document, free = edited(document, {"ball": Edit("a blue star")})
>>> document.prompt, free
('a blue star by the sea', {'ball': 1.0})
>>> plan_layers(document, free).words
('a blue star', 'by the sea', 'a blue star by the sea')
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..canvas.compositing import GREY, over_colour, premultiplied, straight
from ..canvas.masks import layer_alpha
from ..document import Layer, LayerDocument
from ..errors import LayeredError, check_number, invalid
from .frames import MOST_LAYERS, SceneFrames

BLEND = "blend"
"""Name of the hidden layer that holds the model's own picture of all layers."""

STYLE = 0.5
"""How far a layer changes if words are only added to its own."""

_OPAQUE = 0.999
"""Least alpha of a background: scaling an opaque picture may round its alpha down by a little."""

Free = float | Tensor
"""How far a layer may change: a number 0..1, or one for every pixel of the canvas, ``[H, W]``."""


@dataclass(frozen=True, eq=False)
class Edit:
    """How a layer is made anew."""

    prompt: str | None = None
    """Words in place of the layer's own. None: its own. Neutral: None."""
    style: str = ""
    """Words added to them. Neutral: empty."""
    amount: float | None = None
    """How far the layer may change: the share of the sampling in which it is free, 0..1. None: ``STYLE`` if there is
    a style and no new prompt, else 1. Neutral: 0."""
    mask: Tensor | None = None
    """``[H, W]`` of the canvas in 0..1, 1 where the layer may change. None: everywhere."""


def edited(document: LayerDocument, edits: Mapping[str, str | Edit]) -> tuple[LayerDocument, dict[str, Free]]:
    """Return a document with the edits' words, and how far each edited layer may change.

    The words of the whole scene change with them: where a layer's old words stand in ``document.prompt``, its new ones
    take their place; words that are not in it are added at its end.

    Args:
        document: the layers as they are.
        edits: by the layers' names; a text is an :class:`Edit` with that prompt.

    Raises:
        LayeredError: a layer is not there, or a value is out of range; the text names the layer.
    """
    free: dict[str, Free] = {}
    for name, edit in edits.items():
        layer = document.layer(name)
        if isinstance(edit, str):
            edit = Edit(edit)
        if edit.prompt is not None and not edit.prompt.strip():
            raise invalid(f"layer {name!r}: prompt", edit.prompt, "words that say what the layer shows")
        amount = edit.amount
        if amount is None:
            amount = STYLE if edit.style and edit.prompt is None else 1.0
        check_number(f"layer {name!r}: amount", amount, 0, 1)
        words = ", ".join(x for x in (layer.prompt if edit.prompt is None else edit.prompt, edit.style) if x)
        document = _reworded(document, layer, words)
        free[name] = amount if edit.mask is None else amount * _checked_map(name, edit.mask, document)
    for layer in document:
        if layer.image is None and layer.visible and layer.prompt:
            document = _reworded(document, layer, layer.prompt)
    return document, free


def _reworded(document: LayerDocument, layer: Layer, words: str) -> LayerDocument:
    """Return the document with other words for a layer."""
    prompt, old = document.prompt, layer.prompt.strip()
    if prompt and words:
        found = re.search(rf"(?<!\w){re.escape(old)}(?!\w)", prompt) if old else None
        if found is not None:
            prompt = prompt[: found.start()] + words + prompt[found.end() :]
        elif words not in prompt:
            prompt = f"{prompt}, {words}"
    return replace(document.with_layer(replace(layer, prompt=words)), prompt=prompt)


@dataclass(frozen=True, eq=False)
class LayersPlan:
    """What is sampled to make some layers of a document anew. F frames, see :class:`SceneFrames`."""

    document: LayerDocument
    scene: SceneFrames
    """The frames: the document's visible layers, the layer or colour behind them, the blend."""
    names: tuple[str | None, ...]
    """The layer of each frame; None for a background or a blend that is no layer of the document."""
    words: tuple[str, ...]
    """The prompt of each frame."""
    pictures: Tensor
    """What each frame shows now, straight RGBA ``[F, 4, H, W]`` on the canvas; 0 where there is nothing yet."""
    change: Tensor
    """How far each pixel of each frame may change, ``[F, H, W]`` in 0..1."""


def plan_layers(
    document: LayerDocument, free: Mapping[str, Free], hold_blend: bool = False
) -> LayersPlan | None:
    """Plan which frames of a document are sampled and which are held; None if there is nothing to do.

    Args:
        document: 1 to 4 visible layers on a background: the layer at the back, if it covers the canvas, or the
            document's background colour. A hidden layer called ``blend`` is the blend; other hidden layers are left
            out.
        free: how far layers may change, by name. Others stay as they are; those without a picture are made in their
            box or mask, and count as 1.
        hold_blend: the blend is given, and is held too.

    Raises:
        LayeredError: a layer is not there, hidden, without words, or without a picture where one is needed; a value is
            out of range; there is no background, or too few or too many layers on it. The text names it.
    """
    amounts = {x.name: _amount(document, x, free.get(x.name)) for x in document}
    for name in free:
        if not document.layer(name).visible:
            fix = "Show it: hidden layers are not made" if name != BLEND else "The blend is always made anew"
            raise invalid(f"layer {name!r}: visible", False, "True", fix)
    if not any(bool((x > 0).any()) for x in amounts.values()):
        return None
    shown = [x for x in document if x.visible]
    back = _background(document, shown)
    layers = shown if back is None else shown[1:]
    if not 1 <= len(layers) <= MOST_LAYERS:
        fix = "Hide or merge some" if layers else "Add a layer, with words that say what it shows"
        raise invalid("visible layers on the background: number", len(layers), f"1..{MOST_LAYERS}", fix)
    for layer in shown:
        if bool((amounts[layer.name] > 0).any()) and not layer.prompt.strip():
            fix = "It is to be made: give it words"
            raise invalid(f"layer {layer.name!r}: prompt", layer.prompt, "words that say what it shows", fix)
    blend = next((x for x in document if x.name == BLEND and not x.visible), None)
    if hold_blend and (blend is None or blend.image is None):
        raise LayeredError(f"the document has no hidden layer {BLEND!r} with a picture, which is to be held")
    behind = document.words if back is None else back.prompt or document.words
    colour = _flat(document, document.background or GREY)
    everywhere = torch.ones(document.height, document.width)
    return LayersPlan(
        document=document,
        scene=SceneFrames(len(layers)),
        names=(*(x.name for x in layers), *(x.name if x is not None else None for x in (back, blend))),
        words=(*(x.prompt for x in layers), behind, document.words),
        pictures=torch.stack([
            *(layer_picture(x, document, opacity=not amounts[x.name].any()) for x in layers),
            colour if back is None else layer_picture(back, document),
            colour if not hold_blend or blend is None else layer_picture(replace(blend, visible=True), document),
        ]),
        change=torch.stack([
            *(amounts[x.name] * everywhere for x in layers),
            0 * everywhere if back is None else amounts[back.name] * everywhere,
            everywhere * (not hold_blend),
        ]),
    )  # fmt: skip


def _amount(document: LayerDocument, layer: Layer, given: Free | None) -> Tensor:
    """Return how far a layer may change, a number or ``[H, W]``."""
    missing = layer.image is None and layer.visible
    if given is None and not missing:
        return torch.tensor(0.0)
    given = 1.0 if given is None else given
    if isinstance(given, Tensor):
        amount = _checked_map(layer.name, given, document)
        if not bool((amount > 0).any()):
            fix = "Make it white where the layer may change"
            raise invalid(f"layer {layer.name!r}: mask", "0 everywhere", "some pixel above 0", fix)
    else:
        check_number(f"layer {layer.name!r}: amount", given, 0, 1)
        amount = torch.tensor(float(given))
    if missing and bool((amount < 1).any()):
        fix = "It has no picture yet that could be kept: leave amount and mask out"
        raise invalid(f"layer {layer.name!r}: amount", float(amount.amin()), "1, everywhere", fix)
    if missing:
        amount = (layer_alpha(layer, document) > 0).float()
        if not bool(amount.any()):
            raise LayeredError(
                f"layer {layer.name!r} is to be made and lies off the canvas. Move it onto the canvas"
            )
    return amount


def _checked_map(name: str, given: Tensor, document: LayerDocument) -> Tensor:
    size = document.height, document.width
    if tuple(given.shape) != size:
        got = "x".join(str(s) for s in reversed(given.shape))
        raise invalid(f"layer {name!r}: size of the mask", got, f"{size[1]}x{size[0]}, as the canvas")
    least, most = (float(x) for x in given.float().aminmax())
    if not 0 <= least <= most <= 1:
        raise invalid(f"layer {name!r}: values of the mask", f"{least}..{most}", "0..1 and no NaN")
    return given.float()


def _background(document: LayerDocument, shown: Sequence[Layer]) -> Layer | None:
    """Return the layer that is the background; None if it is the document's colour."""
    first = shown[0] if shown else None
    if first is not None and bool((layer_alpha(first, document) >= _OPAQUE).all()):
        return first
    if document.background is not None:
        return None
    got = "no layer" if first is None else f"layer {first.name!r}, which does not cover the canvas,"
    raise LayeredError(
        f"the document has no background: {got} is at its back. Give it a background colour, or put a layer behind "
        f"the others that covers the canvas"
    )


def _flat(document: LayerDocument, colour: Sequence[float]) -> Tensor:
    """Return an opaque picture of one colour, ``[4, H, W]``."""
    return torch.tensor([*colour, 1.0])[:, None, None].expand(4, document.height, document.width)


def layer_picture(layer: Layer, document: LayerDocument, opacity: bool = True) -> Tensor:
    """Return a layer on the canvas, straight RGBA ``[4, H, W]``, with its opacity or without; 0 if it has no picture.
    A picture that lies exactly on the canvas keeps its bits."""
    if layer.image is None:
        return torch.zeros(4, document.height, document.width)
    at = (layer.x, layer.y, layer.width, layer.height, layer.rotation % 360, layer.flip_h, layer.flip_v)
    pixels = layer.image.float()
    whole = (0, 0, document.width, document.height, 0, False, False)
    if layer.mask is not None or at != whole or tuple(pixels.shape[:2]) != (document.height, document.width):
        pixels = straight(premultiplied(replace(layer, opacity=1.0), document.width, document.height))
    pixels = pixels.permute(2, 0, 1)
    if not opacity or layer.opacity == 1:
        return pixels
    return torch.cat([pixels[:3], pixels[3:] * layer.opacity])


def with_frames(plan: LayersPlan, made: Mapping[int, Tensor]) -> LayerDocument:
    """Return the plan's document with the pictures that were made. Layers that were held are as they were.

    Args:
        plan: the plan.
        made: by the number of the frame, straight RGBA ``[4, H, W]``. Of a layer that was free in some places alone,
            the others are kept exactly.
    """
    document = plan.document
    for frame, picture in made.items():
        name = plan.names[frame]
        if name is None:
            continue
        layer, change = document.layer(name), plan.change[frame]
        weight = change / change.max().clamp_min(1e-8)
        pixels = _mixed(picture, plan.pictures[frame], weight).permute(1, 2, 0).contiguous()
        if frame == len(plan.names) - 1:
            layer = replace(layer, prompt=plan.words[frame])
        document = document.with_layer(
            replace(
                layer, image=pixels, mask=None, x=0, y=0, width=document.width, height=document.height,
                rotation=0.0, flip_h=False, flip_v=False,
            )
        )  # fmt: skip
    return document


def _mixed(new: Tensor, old: Tensor, weight: Tensor) -> Tensor:
    """Mix two straight pictures ``[4, H, W]``, exactly ``new`` where the weight ``[H, W]`` is 1 and exactly ``old``
    where it is 0."""
    a, b = (torch.cat([x[:3] * x[3:], x[3:]]) for x in (old, new))
    mixed = straight(torch.lerp(a, b, weight).movedim(0, -1)).movedim(-1, 0)
    return torch.where(weight >= 1, new, torch.where(weight > 0, mixed, old))


def frames_to_encode(plan: LayersPlan) -> Tensor:
    """Return the pictures of the background and of the blend as the model sees them, opaque, ``[2, 3, H, W]``."""
    return over_colour(plan.pictures[-2:].movedim(1, -1), GREY).movedim(-1, 1)
