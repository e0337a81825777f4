"""Reports of how well a picture keeps to a document's layout: a table, and a drawing of wanted and found
masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.masks import layer_alphas, visible_masks
from ..canvas.resizing import resized
from ..document import LayerDocument
from ..errors import invalid
from .layout_metrics import best_matches, box_iou, leakage, mask_boxes, mask_iou

WANTED = (0.25, 0.55, 1.0)
"""Colour of the outlines of wanted masks."""

FOUND = (1.0, 0.35, 0.2)
"""Colour of found masks."""


class LayerLayout(NamedTuple):
    """How well one layer was met."""

    name: str
    """Name of the layer."""
    found: str
    """The detector's name for the object that belongs to the layer; empty: none was found."""
    iou: float
    """IoU of the found mask and the layer's visible mask, 0..1."""
    box_iou: float
    """IoU of their boxes, 0..1."""
    leakage: float
    """Share of the found mask that lies where other layers are, 0..1; NaN where nothing was found."""


class Layout(NamedTuple):
    """How well the layers of a document were met."""

    layers: tuple[LayerLayout, ...]
    """The layers that are looked for, back to front: those that are visible and not backgrounds."""
    wanted: Tensor
    """Visible masks of ``layers``, ``[L, H, W]``."""
    found: Tensor
    """Masks of the detections that belong to ``layers``, ``[L, H, W]``; an empty mask where there is none."""
    extra: tuple[str, ...]
    """Names of detections that belong to no layer."""


def compare_layout(document: LayerDocument, found: Tensor, names: Sequence[str] = ()) -> Layout:
    """Pair detections with layers, one to one, by overlap.

    A layer that covers nine tenths of the canvas, other layers not counted, is a background: no object is
    looked for in it, and objects found on it do not count as leakage.

    Args:
        document: the wanted layout.
        found: masks of detected objects, ``[D, h, w]`` in 0..1; they are scaled to the canvas. D may be 0.
        names: the detector's names for them; numbers if empty.

    Raises:
        LayeredError: the number of ``names`` is not the number of masks.
    """
    names = list(names) or [str(i + 1) for i in range(len(found))]
    if len(names) != len(found):
        raise invalid("number of names of detections", len(names), f"one a mask, that is {len(found)}")
    alphas = layer_alphas(document)
    shown, _ = visible_masks(alphas)
    objects = [
        i for i in range(len(document)) if float(alphas[i].mean()) < 0.9 and float(shown[i].max()) > 0.5
    ]
    wanted = shown[objects]
    canvas = (document.height, document.width)
    detected = resized(found.float(), *canvas) if len(found) else found.new_zeros(0, *canvas)
    detected = (detected > 0.5).float()
    ious = mask_iou(detected[:, None], (wanted > 0.5)[None])
    boxes = box_iou(mask_boxes(detected), mask_boxes(wanted))
    matches = best_matches(ious).tolist()
    chosen = (
        torch.stack([detected[m] if m >= 0 else torch.zeros(canvas) for m in matches]) if matches else wanted
    )
    leaks = leakage(chosen, wanted).tolist()
    layers = []
    for i, (layer, m) in enumerate(zip(objects, matches, strict=True)):
        found_as, iou, box = (names[m], float(ious[m, i]), float(boxes[m, i])) if m >= 0 else ("", 0.0, 0.0)
        layers.append(LayerLayout(document.layers[layer].name, found_as, iou, box, leaks[i]))
    return Layout(tuple(layers), wanted, chosen, tuple(n for i, n in enumerate(names) if i not in matches))


def layout_table(layout: Layout) -> str:
    """Return a layout as a Markdown table with a line of means."""
    lines = ["| layer | found | mask IoU | box IoU | leakage |", "| --- | --- | --- | --- | --- |"]
    for x in layout.layers:
        lines.append(
            f"| {x.name} | {x.found or '–'} | {x.iou:.2f} | {x.box_iou:.2f} | {_mean([x.leakage])} |"
        )
    count = len(layout.layers)
    if count:
        means = [_mean([getattr(x, what) for x in layout.layers]) for what in ("iou", "box_iou", "leakage")]
        lines.append(
            f"| mean of {count} | {sum(bool(x.found) for x in layout.layers)} of {count} | "
            f"{' | '.join(means)} |"
        )
    if layout.extra:
        lines += ["", f"Found and not asked for: {', '.join(layout.extra)}."]
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    """Return the mean of the values that are not NaN, as text; a dash if there are none."""
    kept = [v for v in values if v == v]
    return f"{sum(kept) / len(kept):.2f}" if kept else "–"


def layout_overlay(picture: Tensor, layout: Layout, side: int = 512) -> Tensor:
    """Draw the picture half greyed, with found masks filled and wanted masks outlined.

    Args:
        picture: ``[H, W, 3]`` in 0..1; it is scaled to the canvas.
        side: a canvas whose longer side is at most half of this is enlarged by a whole factor, at most to
            this, pixels.

    Returns:
        ``[H', W', 3]``.
    """
    height, width = layout.wanted.shape[-2:]
    shown = resized(picture.permute(2, 0, 1).float(), height, width)
    out = (0.5 * shown + 0.5 * shown.mean(0)).permute(1, 2, 0)
    for found, wanted in zip(layout.found, layout.wanted, strict=True):
        out = torch.lerp(out, torch.tensor(FOUND), 0.45 * (found > 0.5).float()[..., None])
        radius = max(1, round(max(height, width) / 256))
        hard = (wanted > 0.5).float()[None, None]
        # The outline lies inside the mask: outside, a mask that fills the canvas would have none.
        rim = hard + functional.max_pool2d(functional.pad(-hard, (radius,) * 4), 2 * radius + 1, 1)
        out = torch.where(rim[0, 0, ..., None] > 0, torch.tensor(WANTED), out)
    scale = max(1, side // max(height, width))
    return out.clamp(0, 1).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
