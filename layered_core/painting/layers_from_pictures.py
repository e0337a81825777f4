"""Make a document of pictures with alpha that a model took from one picture, so that it is that picture again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas.compositing import GREY, composite, multiplied, over_colour, straight
from ..canvas.resizing import resized
from ..document import MAX_LAYERS, Layer, LayerDocument, Recipe, short_name, unique_names
from ..errors import LayeredError, invalid
from ..progress import steps
from .layers_from_masks import BACKGROUND
from .recomposing import recomposed, stacked

LEAST = 1 / 255
"""The least alpha that counts: less is gone in a file of 8 bits."""

SLACK = 8
"""Pixels by which a picture's sides may miss the original's shape: models work at multiples of 16."""

_ENOUGH = 64
"""Soft pixels by which it is judged whether colours are multiplied by alpha."""

REST = -1
"""Stands for the number of a picture where a layer was made of what no picture holds."""


@dataclass(frozen=True, eq=False)
class PictureLayers:
    """Layers made of pictures."""

    document: LayerDocument
    """The layers, back to front: each cropped, of recipe noise 0."""
    slots: tuple[int, ...]
    """For each layer the number of its picture, from 0; :data:`REST` for a background that was added."""
    error: float | None
    """Mean difference between the pictures as they came, put together, and the original, 0..1; None if there is
    nothing to compare with."""
    told: tuple[str, ...]
    """What was left out, added or put right, a sentence each."""


def given_names(text: str) -> list[str]:
    """Return the names in a text, one a line; empty lines are none."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def layers_from_pictures(
    pictures: Tensor, names: Sequence[str] = (), *, original: Tensor | None = None, whole: bool = False
) -> PictureLayers:
    """Make a document of a batch of pictures with alpha, such as Qwen-Image-Layered (arXiv 2512.15603) paints.

    Each picture becomes a layer, cropped to where its alpha is at least 1/255, with a margin of one pixel. With an
    ``original`` the document's composite equals it to the bit, and, if the original has 8 bits, also after each
    layer has been rounded to 8 bits:

    * an alpha of 0.99 and more becomes 1, and where such a layer is what is seen, it gets the original's pixels;
    * what then differs goes into the bottom layer, and what the bottom layer cannot hold into the front one's
      colours or alpha;
    * if the bottom picture is no background, a layer ``background`` of the original's pixels that no layer holds is
      laid below; it is transparent where it is wholly covered, because nobody knows what is there;
    * where the original itself is transparent, one layer holds its pixel.

    Args:
        pictures: ``[L, H, W, 4]``, straight alpha, 0..1, back to front.
        names: of the pictures, in their order; they become the layers' names and words. Missing ones are ``layer 1``
            and so on.
        original: ``[H', W', 3 or 4]`` in 0..1, the picture that was taken apart; it sets the canvas.
        whole: whether the first picture is no layer, but all of them together: it is compared with, and left out.

    Raises:
        LayeredError: the pictures have no alpha, are too many, hold no layer at all, or have another shape than the
            original.
    """
    if pictures.shape[-1] != 4:
        raise invalid(
            "image: number of channels",
            pictures.shape[-1],
            "4, RGBA",
            "Decode with the model's VAE that knows alpha, or cut the layers out with Layers from Masks",
        )
    for where, values in (("image", pictures), ("original", original)):
        if values is not None and not bool(values.isfinite().all()):
            raise invalid(
                f"{where}: values", "NaN or infinite", "0..1", "Sample again, with another precision"
            )
    reference = original
    first = 0
    if whole:
        reference = pictures[0] if original is None else original
        pictures, first = pictures[1:], 1
    if not 1 <= len(pictures) <= MAX_LAYERS:
        raise invalid(
            "image: number of layers",
            len(pictures),
            f"1..{MAX_LAYERS}",
            "A model's layers are a batch of a few pictures; a video is none",
        )
    size = tuple(pictures.shape[1:3]) if original is None else tuple(original.shape[:2])
    _check_shape(pictures, size)
    labels, told = _labels(names, len(pictures))
    placed = [on_canvas(picture, *size) for picture in steps(pictures.unbind())]
    error = None if reference is None else _difference(placed, reference)
    slots = [first + i for i in range(len(placed))]
    told += _look_premultiplied(placed, [name for name, _ in labels])
    if original is not None:
        placed, added = recomposed(placed, original)
        if added:
            slots.insert(0, REST)
            labels.insert(0, (BACKGROUND, ""))
            told.append("A background was added below: it holds what no picture does.")
    layers, kept = [], []
    for picture, slot, (name, words) in zip(placed, slots, labels, strict=True):
        box = seen_box(picture[..., 3])
        if box is None:
            told.append(f"Picture {slot + 1}, {name!r}, is empty and was left out.")
            continue
        left, top, right, bottom = box
        cut = picture[top:bottom, left:right].clone()
        layers.append(Layer(name, cut, x=left, y=top, prompt=words, recipe=Recipe(noise=0.0)))
        kept.append(slot)
    if not layers:
        raise LayeredError("image: every picture is empty. Take more steps, or another seed")
    document = LayerDocument(size[1], size[0], unique_names(layers))
    return PictureLayers(document, tuple(kept), error, tuple(told))


def _labels(names: Sequence[str], count: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Return name and words of each of ``count`` pictures, and what is to be told of them."""
    told = []
    if len(names) > count:
        more = ", ".join(repr(short_name(x)) for x in names[count:])
        told.append(f"There are {count} pictures, so these names are not used: {more}.")
    labels = [(short_name(x), x) for x in names[:count]]
    return labels + [(f"layer {i + 1}", "") for i in range(len(labels), count)], told


def _look_premultiplied(placed: Sequence[Tensor], names: Sequence[str]) -> list[str]:
    """Tell of the pictures whose colours look multiplied by their alpha: in their soft places hardly any colour
    exceeds the alpha, as it would in light things with straight colours."""
    told = []
    for picture, name in zip(placed, names, strict=True):
        alpha = picture[..., 3]
        soft = picture[(alpha > 0.05) & (alpha < 0.9)]
        light = picture[..., :3][alpha >= 0.9]
        over = soft[:, :3].amax(1) > soft[:, 3] + LEAST
        if (
            len(soft) >= _ENOUGH
            and len(light)
            and float(light.max()) > 0.5
            and float(over.float().mean()) < 0.001
        ):
            told.append(
                f"Picture {name!r}: its colours look multiplied by its alpha, where straight ones are wanted. If its "
                "soft edges are dark, it comes from a node that gives premultiplied pictures."
            )
    return told


def _check_shape(pictures: Tensor, size: tuple[int, ...]) -> None:
    """Raise :class:`LayeredError` unless the pictures have the shape of ``size``, height and width, at any scale."""
    low = max((x - SLACK) / y for x, y in zip(pictures.shape[1:3], size, strict=True))
    high = min((x + SLACK) / y for x, y in zip(pictures.shape[1:3], size, strict=True))
    if low > high:
        raise invalid(
            "image: size",
            f"{pictures.shape[2]}x{pictures.shape[1]}",
            f"the original's shape, {size[1]}x{size[0]} at any scale",
            "Connect the picture that the layers were made of",
        )


def on_canvas(picture: Tensor, height: int, width: int) -> Tensor:
    """Return a picture ``[H, W, 4]`` with straight alpha at the canvas's size, ``[height, width, 4]``; all 0 where its
    alpha is below 1/255."""
    picture = picture.detach().float().cpu().clamp(0, 1)
    if picture.shape[:2] != (height, width):
        premultiplied = multiplied(picture[..., :3], picture[..., 3]).movedim(-1, 0)
        picture = straight(resized(premultiplied, height, width).movedim(0, -1).clamp(0, 1))
    # Half a level of 16 bits of tolerance, as a decoder may round 1/255 down.
    return torch.where(picture[..., 3:] >= LEAST - 1e-5, picture, 0.0)


def _difference(placed: Sequence[Tensor], reference: Tensor) -> float:
    """Return the mean difference between layers put together and a picture, both over grey, 0..1."""
    height, width = placed[0].shape[:2]
    reference = reference.detach().float().cpu().clamp(0, 1)
    if reference.shape[-1] == 4:
        reference = over_colour(on_canvas(reference, height, width), GREY)
    together = over_colour(composite(stacked(placed)), GREY)
    return float((together - reference).abs().mean())


def seen_box(alpha: Tensor) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of where an alpha ``[H, W]`` is above 0, with a margin of one pixel inside the
    canvas; None if it is 0 everywhere."""
    rows, columns = ((alpha > 0).any(d).nonzero()[:, 0].tolist() for d in (1, 0))
    if not rows:
        return None
    height, width = alpha.shape
    return (
        max(0, columns[0] - 1), max(0, rows[0] - 1), min(width, columns[-1] + 2), min(height, rows[-1] + 2),
    )  # fmt: skip
