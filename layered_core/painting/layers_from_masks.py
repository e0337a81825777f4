"""Take a picture apart: a layer for each mask of a segmenter, and the background, which together are the
picture."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas.compositing import composite
from ..canvas.resizing import resized
from ..document import MAX_LAYERS, MAX_NAME, Layer, LayerDocument, Recipe, short_name, unique_names
from ..errors import check_whole, invalid
from ..progress import row_bands, steps
from .edges import Mixture, unmix

BACKGROUND = "background"
"""Name of the bottom layer."""

ALIKE = 0.95
"""Masks whose intersection is more than this share of their union are one thing found twice."""

MAX_BAND = 64
"""Greatest width of a matted edge on each side, pixels."""


@dataclass(frozen=True, eq=False)
class FoundLayers:
    """A picture taken apart."""

    document: LayerDocument
    """The layers, back to front. At the bottom lies ``background``, as large as the picture; the others are
    cut to their alpha. All have noise 0."""
    holes: Tensor
    """How far each pixel of the background is not known because a layer covers it, ``[H, W]`` in 0..1; all
    0 if a background was given. Where it is 1, the layer ``background`` is transparent."""
    kept: tuple[int, ...]
    """The index of the mask of each layer but the background, back to front."""
    told: tuple[str, ...]
    """What was left out or changed, and why: a sentence each."""


def layers_from_masks(
    picture: Tensor,
    masks: Tensor,
    names: Sequence[str] = (),
    prompts: Sequence[str] = (),
    *,
    depth: Tensor | None = None,
    background: Tensor | None = None,
    band: int = 3,
) -> FoundLayers:
    """Make layers of a picture and masks of the things in it. Their composite by the rules ``photoshop`` is
    the picture, to the bit; for an 8-bit picture also after the layers have been rounded to 8 bits, as
    files do.

    A pixel that several masks hold belongs to the nearest thing. What a nearer one covers of another is not
    known and stays transparent. Edges are matted (see :func:`~.edges.unmix`): their colours are those of
    the thing, without what was behind it. Where the picture is not opaque, nothing is matted.

    Args:
        picture: ``[H, W, 3 or 4]`` in 0..1, straight alpha.
        masks: ``[K, H', W']`` in 0..1, scaled to the picture if they have its shape; at least 0.5 where the
            thing is. Values between are its alpha if the mask is soft all along its edge.
        names: the layers' names, one for each mask. A single one serves all. Missing ones are made from the
            prompt, or numbered.
        prompts: what the layers show, likewise. Neutral: none.
        depth: ``[H', W']``, greater is nearer, as Depth Anything's pictures. The thing of greater median is
            in front; without it, the smaller one.
        background: ``[H', W', 3]`` in 0..1, what lies behind everything, or None. At soft edges the bottom
            layer may depart from it by as much as the picture needs.
        band: pixels on each side of an edge that may be matted, 0..64. Neutral: 0, every pixel belongs to one
            layer.

    Raises:
        LayeredError: a tensor has another shape, values outside 0..1 or not finite.
    """
    check_whole("edge band", band, 0, MAX_BAND)
    colours, cover = _picture(picture)
    height, width = cover.shape
    masks = _fitted(_checked("masks", masks, 3, "[masks, height, width]"), "masks", height, width)
    depth = None if depth is None else _fitted(_depth(depth), "depth", height, width)
    if background is not None:
        planes = _checked("background", background, 3, "[height, width, 3]", 3).movedim(-1, 0)
        background = _fitted(planes, "background", height, width).movedim(0, -1)
    told: list[str] = []
    names, prompts = _words(len(masks), names, prompts, told)
    chosen = _chosen(masks, names, told)
    order = _ordered(masks, chosen, depth)
    owner = torch.zeros(height, width, dtype=torch.int64, device=colours.device)
    for number, index in enumerate(order, 1):
        owner[masks[index] >= 0.5] = number
    mixture = unmix(colours, owner, masks[order], cover == 1, band, background)
    found = _assembled(
        mixture, colours, cover, background, [names[i] for i in order], [prompts[i] for i in order]
    )
    wrong = (composite(found) != _seen(colours, cover)).any(-1)
    if bool(wrong.any()):  # a processor that rounds in yet another way
        mixture.harden(wrong, colours)
        found = _assembled(
            mixture, colours, cover, background, [names[i] for i in order], [prompts[i] for i in order]
        )
    return _result(found, mixture, cover, background, order, names, told)


def _result(
    layers: LayerDocument,
    mixture: Mixture,
    cover: Tensor,
    background: Tensor | None,
    order: list[int],
    names: list[str],
    told: list[str],
) -> FoundLayers:
    """Leave out layers of which nothing is seen, and tell it."""
    seen = [True] + [bool(x.image is not None and x.image[..., 3].any()) for x in layers.layers[1:]]
    for there, index in zip(seen[1:], order, strict=True):
        if not there:
            told.append(f"{_mask(index, names)} is wholly covered by nearer ones and was left out.")
    hidden = torch.where(mixture.below == 0, mixture.alpha, 1.0)
    covered = torch.where((mixture.top > 0) & (cover == 1), hidden, 0.0)
    if background is None and bool((covered == 1).all()):
        told.append("The masks cover the whole picture: nothing of the background is known.")
    shown = [x for x, there in zip(layers, seen, strict=True) if there]
    for layer, index in zip(
        shown[1:], [i for i, there in zip(order, seen[1:], strict=True) if there], strict=True
    ):
        if layer.name != names[index]:
            told.append(f"{_mask(index, names)} is called {layer.name!r}, as its name is taken.")
    return FoundLayers(
        LayerDocument(layers.width, layers.height, tuple(shown)),
        covered if background is None else torch.zeros_like(covered),
        tuple(i for i, there in zip(order, seen[1:], strict=True) if there),
        tuple(told),
    )


def _assembled(
    mixture: Mixture,
    colours: Tensor,
    cover: Tensor,
    background: Tensor | None,
    names: list[str],
    prompts: list[str],
) -> LayerDocument:
    """Return the document of all layers, those of which nothing is seen too, 1 x 1 pixels large."""
    height, width = cover.shape
    alpha = mixture.alpha * cover
    layers = []
    for number, (name, prompt) in enumerate(zip([BACKGROUND, *names], ["", *prompts], strict=True)):
        top, below = mixture.top == number, mixture.below == number
        own = torch.where(top, alpha, below.to(alpha))
        pixels = torch.where(top[..., None], mixture.front, mixture.back)
        if number == 0 and background is not None:
            hidden = ~top & ~below & (cover == 1)
            own = torch.where(hidden, 1.0, own)
            pixels = torch.where(hidden[..., None], background, pixels)
        rows, columns = (slice(0, height), slice(0, width)) if number == 0 else _box(own > 0)
        own, pixels = own[rows, columns, None], pixels[rows, columns]
        image = torch.cat([torch.where(own > 0, pixels, 0.0), own], -1)
        layers.append(
            Layer(name, image, prompt=prompt, x=columns.start, y=rows.start, recipe=Recipe(noise=0.0))
        )
    return LayerDocument(width, height, unique_names(layers))


def _box(where: Tensor) -> tuple[slice, slice]:
    """Return the rows and columns of the smallest box around ``where`` ``[H, W]``; of one pixel if it is
    False everywhere."""
    found = []
    for axis in (1, 0):
        at = where.any(axis).nonzero()[:, 0]
        found.append(slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 1))
    return found[0], found[1]


def _seen(colours: Tensor, cover: Tensor) -> Tensor:
    """Return the picture as compositing gives it: without colour where it is transparent."""
    alpha = cover[..., None]
    return torch.cat([torch.where(alpha > 0, colours, 0.0), alpha], -1)


def _picture(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Return the colours ``[H, W, 3]`` and the alpha ``[H, W]`` of a picture."""
    pixels = _checked("picture", picture, 3, "[height, width, 3 or 4]", 3, 4)
    if pixels.shape[-1] == 3:
        return pixels, torch.ones_like(pixels[..., 0])
    return pixels[..., :3].contiguous(), pixels[..., 3].contiguous()


def _checked(where: str, values: object, axes: int, shape: str, *channels: int) -> Tensor:
    """Return a tensor of values in 0..1 as float32."""
    got = list(values.shape) if isinstance(values, Tensor) else values
    if (
        not isinstance(values, Tensor)
        or values.ndim != axes
        or not all(values.shape[-2:])
        or (channels and values.shape[-1] not in channels)
    ):
        raise invalid(f"{where}'s shape", got, shape)
    out = values.detach().float()
    if out.numel():
        least, most = (float(x) for x in out.aminmax())
        if not 0 <= least <= most <= 1:
            raise invalid(f"{where}'s values", f"{least}..{most}", "0..1 and no NaN")
    return out


def _depth(depth: Tensor) -> Tensor:
    """Return a depth ``[1, H, W]``, of any scale."""
    if not isinstance(depth, Tensor) or depth.ndim != 2 or not depth.numel():
        raise invalid(
            "depth's shape", list(depth.shape) if isinstance(depth, Tensor) else depth, "[height, width]"
        )
    if not bool(depth.isfinite().all()):
        raise invalid(
            "depth's values", "infinite or NaN", "finite numbers, greater where the thing is nearer"
        )
    return depth.detach().float()[None]


def _fitted(planes: Tensor, where: str, height: int, width: int) -> Tensor:
    """Return planes ``[C, H', W']`` at the size of the picture.

    Raises:
        LayeredError: they have another shape than the picture, by more than a pixel of theirs.
    """
    high, wide = planes.shape[-2:]
    if abs(wide * height - high * width) > max(height, width):
        raise invalid(
            f"{where}: size", f"{wide}x{high}", f"the picture's, {width}x{height}, or that scaled",
            "Make them from this very picture, without cropping it",
        )  # fmt: skip
    if not len(planes) or (high, wide) == (height, width):
        return planes.reshape(len(planes), height, width)
    out = resized(planes, height, width)
    return out if where == "depth" else out.clamp(0, 1)


def _words(
    count: int, names: Sequence[str], prompts: Sequence[str], told: list[str]
) -> tuple[list[str], list[str]]:
    """Return a name and a prompt for each of ``count`` masks."""
    for what, given in (("names", names), ("prompts", prompts)):
        if len(given) > count:
            told.append(
                f"There are {len(given)} {what} for {count} masks; those from {given[count]!r} on are unused."
            )
        elif 1 < len(given) < count:
            told.append(f"There are {len(given)} {what} for {count} masks; the last masks have none.")
    many = list(prompts) * count if len(prompts) == 1 else list(prompts)[:count]
    many += [""] * (count - len(many))
    called = [_clean(x) for x in (list(names) * count if len(names) == 1 else list(names)[:count])]
    called += [""] * (count - len(called))
    for i in range(count):
        called[i] = called[i] or short_name(_clean(many[i])) or f"layer {i + 1}"
    return called, many


def _clean(name: str) -> str:
    """Return a name as one line without control characters and halves of letters."""
    line = "".join(" " if unicodedata.category(x) in ("Cc", "Cs", "Zl", "Zp") else x for x in name)
    return " ".join(line.split())[: MAX_NAME - 10].strip()


def _mask(index: int, names: Sequence[str]) -> str:
    return f"Mask {index + 1} ({names[index]!r})"


def _chosen(masks: Tensor, names: list[str], told: list[str]) -> list[int]:
    """Return the indices of the masks that become layers, and tell of the others."""
    if not len(masks):
        told.append("There is no mask: the picture is one layer.")
        return []
    common = _overlaps(masks)
    areas = common.diagonal()
    chosen: list[int] = []
    for i in range(len(masks)):
        if areas[i] == 0:
            told.append(f"{_mask(i, names)} is empty and was left out.")
            continue
        twin = next((j for j in chosen if common[i, j] > ALIKE * (areas[i] + areas[j] - common[i, j])), None)
        if twin is None:
            chosen.append(i)
        else:
            told.append(
                f"{_mask(i, names)} is the same thing as mask {twin + 1} ({names[twin]!r}) and was left out."
            )
    if len(chosen) >= MAX_LAYERS:
        largest = sorted(chosen, key=lambda i: -float(areas[i]))
        dropped = sorted(largest[MAX_LAYERS - 1 :])
        told.append(
            f"There are {len(chosen)} things, and a document holds {MAX_LAYERS} layers with the background: "
            f"the largest {MAX_LAYERS - 1} were kept; left out: "
            f"{', '.join(repr(names[i]) for i in dropped)}."
        )
        chosen = [i for i in chosen if i not in dropped]
    return chosen


def _overlaps(masks: Tensor) -> Tensor:
    """Return how many pixels each pair of masks ``[K, H, W]`` has in common, ``[K, K]``."""
    count, height, width = masks.shape
    common = torch.zeros(count, count, dtype=torch.float64)
    for rows in steps(row_bands(height, width, count)):
        part = (masks[:, rows] >= 0.5).float().flatten(1)
        common += (part @ part.mT).double().cpu()
    return common


def _ordered(masks: Tensor, chosen: list[int], depth: Tensor | None) -> list[int]:
    """Return the masks' indices back to front: farther ones first, then larger ones."""

    def key(index: int) -> tuple[float, float]:
        inside = masks[index] >= 0.5
        near = 0.0 if depth is None else float(depth[0][inside].median())
        return near, -float(inside.sum())

    return sorted(chosen, key=key)
