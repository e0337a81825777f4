"""Where a control acts: the masks that a node gets, and what follows a cut-out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...layered_core.canvas.resizing import resized
from ...layered_core.control.control_map import ControlMap
from ...layered_core.document import Control
from ...layered_core.errors import invalid
from ..layers.pictures import one_mask
from ..noise.cut_out import CutOut, size_of, text_of


def within(control_map: ControlMap, control: Control, mask: Tensor | None) -> ControlMap:
    """Return the layers' map, limited to the node's own range and mask."""
    masks = control_map.masks
    if mask is not None:
        limit = single_mask(mask)
        check_aspect("mask: size", *limit.shape[-2:], masks)
        masks = masks * resized(limit, *masks.shape[-2:])
    ranges = [(max(c.start, control.start), min(c.end, control.end)) for c in control_map.controls]
    kept = [i for i, (start, end) in enumerate(ranges) if start <= end]
    controls = tuple(replace(control_map.controls[i], start=ranges[i][0], end=ranges[i][1]) for i in kept)
    return replace(control_map, masks=masks[kept], controls=controls)


def single_mask(mask: Tensor) -> Tensor:
    """Return a MASK as ``[1, H, W]`` in 0..1 on the CPU."""
    return one_mask(mask, fix="Use layers where several are needed")[None].clamp(0, 1)


def check_aspect(what: str, height: int, width: int, canvas: Tensor) -> None:
    """Raise :class:`LayeredError` unless a picture has the aspect ratio of ``canvas``, to within 2 %."""
    own_height, own_width = canvas.shape[-2:]
    if abs(width * own_height - own_width * height) > 0.02 * width * own_height:
        other = "layers" if what.startswith("mask") else "masks or layers"
        allowed = f"the aspect ratio of the {other}, {own_width}x{own_height}"
        raise invalid(what, f"{width}x{height}", allowed, "Crop it to that")


def is_whole(pictures: Tensor, cut: CutOut, name: str, fix: str) -> bool:
    """Return whether a hint or masks show the whole picture, by their size.

    Args:
        pictures: ``[..., H, W]``.
        cut: the part of the picture that is sampled.
        name: the input, for the error.
        fix: what to do if the size does not tell.

    Raises:
        LayeredError: picture and cut-out have the same size, and ``pictures`` are not the same everywhere.
    """
    size = size_of(pictures)
    if size == cut.picture == cut.part and bool((pictures != pictures.flatten()[0]).any()):
        allowed = "the whole picture's or the cut-out's, where Regenerate Layers gives them different sizes"
        raise invalid(f"{name}: size", text_of(size), allowed, fix)
    return size == cut.picture


def single_map(mask: Tensor | None, control: Control) -> ControlMap:
    """Return the map of a node without layers; without a mask it acts everywhere."""
    return ControlMap(torch.ones(1, 1, 1) if mask is None else single_mask(mask), (control,))
