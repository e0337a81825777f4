"""What PSD and OpenRaster share: how a document becomes plain pixel layers that any program shows, and comes
back whole.

A file's own layer (:class:`FileLayer`) has a title, a whole-pixel place, pixels, opacity, blend mode and
visibility. What else a layer of ours has travels beside it as ``private`` JSON, which the formats store where
other programs leave it alone:

``{"title", "name", "prompt", "negative", "opacity", "recipe": {...}, "original": {...}}``

``original`` is there when the pixels in the file are not the layer's own: it is turned, scaled, flipped, has
no picture, or is finer than the file. It holds the placement, the checksum and the place of what is seen in
the file, and where the layer's own pixels are stored (``{"width", "height", "type", "key"}``). If another
program changed the pixels since, which the checksum tells, or gave them a mask, then they count, and only
words and recipe are taken from ``private``. Without ``private`` a title ``name: prompt`` still carries the
prompt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..document import LayerDocument

VERSION = 1
"""Version of the private data."""

MAX_WORKFLOW_BYTES = 2**24
"""Greatest size of a workflow as JSON."""

BITS = (8, 16, 32)
"""How exactly a file may keep pixels: 8 or 16 bits a channel, or 32-bit floating point."""

_TITLE = re.compile(r"\s*(\S.*?):\s+(\S.*)", re.DOTALL)
PLACE = ("x", "y", "width", "height", "rotation", "flip_h", "flip_v")
TYPES: dict[str, Any] = {"u1": np.dtype("u1"), "u2": np.dtype("<u2"), "f4": np.dtype("<f4")}
SCALE = {"u1": 255.0, "u2": 65535.0}


@dataclass(frozen=True)
class LayerFile:
    """What was read from a file."""

    document: LayerDocument
    """The layers."""
    workflow: Mapping[str, Any] = field(default_factory=dict)
    """What the host stored with it: ComfyUI's ``workflow`` and ``prompt``. Empty: nothing."""
    warnings: tuple[str, ...] = ()
    """What the file holds and a document cannot, one line each."""


@dataclass
class FileLayer:
    """One layer as PSD and OpenRaster know it."""

    title: str
    """Name in the file; ``name: prompt`` where there is a prompt."""
    left: int
    """Left edge, canvas pixels."""
    top: int
    """Top edge, canvas pixels."""
    pixels: Tensor
    """RGBA float32 ``[H, W, 4]``, straight alpha; 0 x 0 where the file has no pixels for it."""
    mask: Tensor | None = None
    """Float32 ``[H, W]``, 1 where the layer is; only in formats with masks."""
    opacity: float = 1.0
    """0..1."""
    blend_mode: str = "normal"
    """One of ``BLEND_MODES``."""
    visible: bool = True
    """Whether it is shown."""
    private: Mapping[str, Any] | None = None
    """What other programs do not know, or None where it was made elsewhere."""


ReadBlob = Callable[[str, int], "bytes | None"]
"""Gives the stored bytes of a key if there are exactly as many as said, else None."""


# Writing


def clean_text(text: str) -> str:
    """The text without what XML and Photoshop cannot hold: control characters, halves of surrogate pairs,
    more than one line."""
    text = "".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\ufffe\uffff" else c for c in text)
    return text.encode("utf-16-be", "replace").decode("utf-16-be")


def as_stored(pixels: Tensor, mask: Tensor | None, bits: int) -> tuple[Tensor, Tensor | None]:
    """Pixels and mask rounded to ``bits`` a channel, as a file has them."""
    top = 2**bits - 1
    return (pixels * top).round() / top, None if mask is None else (mask * top).round() / top


def look_of(pixels: Tensor, mask: Tensor | None) -> tuple[str, tuple[int, int] | None]:
    """Checksum and left top corner of what is seen of a layer, or of its mask where it has no visible pixel;
    None where that is nothing.

    Programs cut layers to their visible part, change the colours of transparent pixels, and may give them 16
    bits: that does not count.
    """
    alpha = pixels[..., 3] > 0
    if bool(alpha.any()):
        values, seen = torch.where(pixels[..., 3:] > 0, pixels, 0.0), alpha
    elif mask is not None and bool((mask > 0).any()):
        values, seen = mask, mask > 0
    else:
        return "", None
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    top, left = int(rows[0]), int(columns[0])
    part = values[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    digest = hashlib.sha256(repr(tuple(part.shape)).encode())
    digest.update((part * 65535).round().to(torch.int32).contiguous().numpy().tobytes())
    return digest.hexdigest(), (left, top)


# Reading


def split_title(title: str, number: int) -> tuple[str, str]:
    """Name and prompt of a layer titled ``name: prompt`` (a colon and a space); the ``number`` of a nameless
    one becomes its name."""
    match = _TITLE.fullmatch(title)
    if match:
        return match[1], match[2].strip()
    return title.strip() or f"layer {number}", ""
