"""One picture taken apart by the four parts, examined, and described in a record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from layered_core.canvas.compositing import GREY, composite, over_colour
from layered_core.canvas.soft_masks import grow
from layered_core.document import LayerDocument, short_name
from layered_core.errors import invalid
from layered_core.formats.to_file import rounded
from layered_core.metrics.layout_metrics import mask_iou
from layered_core.metrics.picture_metrics import outside_mse, psnr
from layered_core.painting.holes import without_rim
from layered_core.painting.layers_from_masks import layers_from_masks
from layered_diffusers.dataset.filtering import Thresholds, at_size, chosen, names_noun
from layered_diffusers.dataset.hidden import Hidden, hidden_part, with_hidden
from layered_diffusers.dataset.protocols import Caption, Found, Picture, looks
from layered_diffusers.dataset.providers import Parts
from layered_diffusers.dataset.refining import nearer_than, refined

AROUND = 0.5
"""How much of a layer's surroundings its own caption is made with, as a share of its longer side."""


@dataclass(frozen=True, eq=False)
class Apart:
    """A picture taken apart, or the reason why it was not."""

    document: LayerDocument | None
    """The background and the layers, back to front; None if no thing became a layer."""
    record: dict[str, Any]
    """What was found, dropped, measured and told: plain JSON values."""
    rejected: str = ""
    """Why the picture is no good example; empty if it is."""


def take_apart(pixels: Tensor, parts: Parts, limits: Thresholds, picture: Picture | None = None) -> Apart:
    """Take a picture apart into a background and a layer for each thing that is found.

    The composite of the layers is the picture. The background is whole, and so are layers that others cover a
    little; one that is covered too far has ``amodal`` false in its record.

    Args:
        pixels: RGB or RGBA, ``[H, W, 3 or 4]`` in 0..1.
        parts: describe, find, order and paint.
        limits: which things and which results are kept.
        picture: what the parts get; None: the pixels, transparent ones over grey.

    Raises:
        LayeredError: a part cannot do it for this picture, or gives values of a wrong kind.
    """
    seen = picture or Picture(opaque(pixels))
    caption = parts.captioner.describe(seen)
    phrases = tuple(dict.fromkeys(x.strip() for x in caption.phrases if x.strip()))[: limits.phrases]
    record: dict[str, Any] = {
        "caption": caption.text, "phrases": list(phrases), "background": caption.background, "layers": [],
    }  # fmt: skip
    found, dropped = chosen(at_size(parts.segmenter.find(seen, phrases), seen), limits)
    record["dropped"] = [x.__dict__ for x in dropped]
    if not found:
        return Apart(None, record, ", ".join(dict.fromkeys(x.reason for x in dropped)) or "nothing found")
    found = _in_order(found, parts, seen)
    masks = torch.stack([x.mask for x in found])
    behind = _filled(parts, seen, grow(masks.amax(0), limits.dilation), caption.background or caption.text)
    without = _without(parts, seen, found, caption, limits)
    masks = refined(seen.pixels, masks, behind, without, limits.band, limits.dilation)
    exact = [replace(x, mask=m) for x, m in zip(found, masks, strict=True)]
    made, kept, told = _layers(pixels, exact, caption, behind, limits)
    hidden = [_hidden(masks, i, behind, without.get(i), limits.band) for i in kept]
    document = with_hidden(made, {i + 1: x for i, x in enumerate(hidden)})
    found = [found[i] for i in kept]
    record["layers"] = [
        _layer_record(document, i, item, part, limits)
        for i, (item, part) in enumerate(zip(found, hidden, strict=True))
    ]
    record["told"] = told
    record["checks"], wrong = _checks(pixels, document, found, behind, parts, limits)
    return Apart(document, record, wrong)


def opaque(pixels: Tensor) -> Tensor:
    """Return a picture ``[H, W, 3 or 4]`` as ``[3, H, W]``, its transparent parts over grey."""
    rgb = over_colour(pixels, GREY) if pixels.shape[-1] == 4 else pixels
    return rgb.permute(2, 0, 1).contiguous()


def _in_order(found: list[Found], parts: Parts, seen: Picture) -> list[Found]:
    """Return what was found from the farthest to the nearest."""
    order = [int(i) for i in parts.depth.order(seen, torch.stack([x.mask for x in found]))]
    if sorted(order) != list(range(len(found))):
        raise invalid("order of the depth", order, f"each of 0..{len(found) - 1} once")
    return [found[i] for i in order]


def _filled(parts: Parts, seen: Picture, hole: Tensor, words: str) -> Tensor:
    """Return the picture ``[3, H, W]`` with its hole painted, and unchanged elsewhere."""
    hole = (hole > 0.5).float()
    made = parts.inpainter.fill(seen, hole, words).detach().cpu().float()
    if made.shape != seen.pixels.shape:
        raise invalid("shape of what the inpainter made", list(made.shape), str(list(seen.pixels.shape)))
    least, most = (float(x) for x in made[:, hole > 0].aminmax()) if bool(hole.any()) else (0.0, 0.0)
    if not -1e-3 <= least <= most <= 1.001:
        raise invalid("values of what the inpainter made", f"{least}..{most}", "0..1 and no NaN")
    return torch.where(hole > 0, made.clamp(0, 1), seen.pixels.float())


def _without(
    parts: Parts, seen: Picture, found: Sequence[Found], caption: Caption, limits: Thresholds
) -> dict[int, Tensor]:
    """Return, for each thing that others cover a little, the picture ``[3, H, W]`` without those others."""
    masks = torch.stack([x.mask for x in found])
    pictures = {}
    for i, item in enumerate(found):
        front = nearer_than(masks, i)
        part = hidden_part(masks[i], front)
        if limits.hidden <= part.covered <= limits.covered and bool(part.mask.any()):
            words = ", ".join(filter(None, [item.phrase, caption.background]))
            pictures[i] = _filled(parts, seen, grow(front, limits.dilation), words)
    return pictures


def _layers(
    pixels: Tensor, found: Sequence[Found], caption: Caption, behind: Tensor, limits: Thresholds
) -> tuple[LayerDocument, list[int], list[str]]:
    """Return the document, the indices of the things that are its layers, back to front, and what is to be told. A
    pixel that several things have belongs to the nearest."""
    masks = torch.stack([x.mask for x in found])
    shown = torch.stack([m * (nearer_than(masks, i) < 0.5) for i, m in enumerate(masks)])
    rank = torch.zeros(masks.shape[1:])
    for i, mask in enumerate(shown):
        rank[mask >= 0.5] = i + 1
    made = layers_from_masks(
        pixels, shown, [name_of(x.phrase) for x in found], [x.phrase for x in found], depth=rank,
        background=behind.permute(1, 2, 0), band=limits.matte,
    )  # fmt: skip
    back, *layers = made.document
    document = replace(
        made.document,
        layers=(replace(back, prompt=caption.background or caption.text), *layers),
        prompt=caption.text,
    )
    return without_rim(document), list(made.kept), list(made.told)


def _hidden(masks: Tensor, index: int, behind: Tensor, without: Tensor | None, band: int) -> Hidden:
    """Return the hidden part of a thing, painted where there is a picture without what covers it."""
    part = hidden_part(masks[index], nearer_than(masks, index), band)
    return part if without is None or not bool(part.mask.any()) else part.painted(without, behind)


def name_of(phrase: str) -> str:
    """Return the name of a layer that shows a phrase: without its article."""
    return short_name(re.sub(r"^(?:an?|the)\s+(?=\S)", "", " ".join(phrase.split()), flags=re.IGNORECASE))


def _layer_record(
    document: LayerDocument, index: int, item: Found, part: Hidden, limits: Thresholds
) -> dict[str, Any]:
    layer = document.layers[index + 1]
    return {
        "name": layer.name, "phrase": item.phrase, "score": round(item.score, 4),
        "area": round(float(item.mask.mean()), 4), "box": [int(layer.x), int(layer.y), layer.width, layer.height],
        "covered": round(part.covered, 4), "amodal": part.colours is not None or part.covered <= limits.hidden,
    }  # fmt: skip


def _checks(
    pixels: Tensor,
    document: LayerDocument,
    found: Sequence[Found],
    behind: Tensor,
    parts: Parts,
    limits: Thresholds,
) -> tuple[dict[str, Any], str]:
    """Examine a picture that was taken apart.

    Returns:
        the figures, None for a check that no part can make, and why the picture is no good example.
    """
    wrong = []
    likeness = composite_psnr(document, pixels)
    if likeness is not None and likeness < limits.psnr:
        wrong.append("composite")
    left: dict[str, float] | None = None
    if looks(parts.segmenter):
        left = {}
        for layer, item in zip(document.layers[1:], found, strict=True):
            again = at_size(parts.segmenter.find(Picture(behind), (item.phrase,)), Picture(behind))
            ious = [float(mask_iou(x.mask, item.mask)) for x in again if x.score >= limits.score]
            left[layer.name] = round(max(ious, default=0.0), 4)
        if any(x >= limits.still_there for x in left.values()):
            wrong.append("still there")
    named: dict[str, str] | None = None
    if looks(parts.captioner):
        named = {}
        for i, item in enumerate(found):
            text = parts.captioner.describe(Picture(_alone(document, i + 1, behind))).text
            named[document.layers[i + 1].name] = text
            if not names_noun(text, item.phrase):
                wrong.append("caption")
    figures = {
        "composite_psnr": None if likeness is None else round(likeness, 2), "still_there": left, "captions": named,
    }  # fmt: skip
    return figures, ", ".join(dict.fromkeys(wrong))


def composite_psnr(document: LayerDocument, pixels: Tensor) -> float | None:
    """Compute the PSNR of a document's composite, its layers rounded to 8 bits, to a picture ``[H, W, 3 or 4]`` away
    from the layers' edges, dB; None if all is edges."""
    edges = torch.zeros(document.height, document.width)
    for layer in document.layers[1:]:
        alone = composite(replace(document, layers=(layer,), background=None))[..., 3]
        edges = torch.maximum(edges, ((alone > 0) & (alone < 1)).float())
    if bool(edges.all()):
        return None
    made, wanted = (opaque(x).float() for x in (composite(rounded(document, 8)), pixels))
    return psnr(outside_mse(made, wanted, edges))


def _alone(document: LayerDocument, index: int, behind: Tensor) -> Tensor:
    """Return one layer on the background with its surroundings, ``[3, h, w]``."""
    layer = document.layers[index]
    shown = composite(replace(document, layers=(layer,), background=None)).permute(2, 0, 1)
    whole = shown[:3] * shown[3:] + behind * (1 - shown[3:])
    around = round(AROUND * max(layer.width, layer.height))
    left, top = max(0, int(layer.x) - around), max(0, int(layer.y) - around)
    right, bottom = int(layer.x) + layer.width + around, int(layer.y) + layer.height + around
    return whole[:, top:bottom, left:right]
