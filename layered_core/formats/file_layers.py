"""The layers of a file, as PSD and OpenRaster know them: plain pixel layers that any program shows.

A layer of a file (:class:`FileLayer`) has a title, a whole-pixel position, pixels, opacity, blend mode and
visibility. Everything else that a document's layer has is stored beside it as ``private`` JSON, where other
programs leave it unchanged:

``{"title", "name", "prompt", "negative", "opacity", "recipe": {...}, "original": {...}}``

``original`` is present if the pixels in the file are not the layer's own, because the layer is rotated,
scaled, flipped, has no picture, or has a higher precision than the file. It holds the placement, the checksum
and position of the visible pixels in the file, and where the layer's own pixels are stored
(``{"width", "height", "type", "key"}``). If another program has changed the pixels since, as the checksum
shows, or has given them a mask, the file's pixels are used, and only prompts and recipe are taken from
``private``. Without ``private``, a title ``name: prompt`` still contains the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..document import MAX_NAME, LayerDocument
from .psd_masks import PixelMask
from .special_blending import Special

VERSION = 1
"""Version of the private data."""

MAX_WORKFLOW_BYTES = 2**24
"""Greatest size of a workflow as JSON."""

MAX_TITLE = 10_000
"""Most letters that are read of a layer's title in a file."""

MISSING_IN_PSD = {"grain-extract": "subtract", "grain-merge": "linear-light"}
"""Blend modes that a Photoshop file lacks, and the most similar ones, which other programs show instead; the real mode
is stored in the private data."""

BITS = (8, 16, 32)
"""Precisions of pixels in a file: 8 or 16 bits a channel, or 32-bit floating point."""

_TITLE = re.compile(r"\s*(\S.*?):\s+(\S.*)", re.DOTALL)
PLACE = ("x", "y", "width", "height", "rotation", "flip_h", "flip_v")


@dataclass(frozen=True)
class LayerFile:
    """A file that was read."""

    document: LayerDocument
    """The layers."""
    workflow: Mapping[str, Any] = field(default_factory=dict)
    """Data of the host that was stored in the file: ComfyUI's ``workflow`` and ``prompt``. Empty: none."""
    warnings: tuple[str, ...] = ()
    """Content of the file that a document cannot hold, and words that are not what they seem, one line each."""
    merged: Callable[[], Tensor | None] | None = field(default=None, compare=False, repr=False)
    """Decodes the program's own picture of all layers, RGBA ``[H, W, 4]``, straight alpha; it or its result is None if
    there is none."""


@dataclass
class FileLayer:
    """One layer of a PSD or OpenRaster file."""

    title: str
    """Name of the layer in the file; ``name: prompt`` if there is a prompt."""
    left: int
    """Left edge, canvas pixels."""
    top: int
    """Top edge, canvas pixels."""
    pixels: Tensor
    """RGBA float32 ``[H, W, 4]``, straight alpha; 0 x 0 if the file has no pixels for the layer."""
    mask: Tensor | None = None
    """Float32 ``[H, W]``, 1 where the layer is; only in formats with masks. None: no mask."""
    opacity: float = 1.0
    """Multiplies the alpha, 0..1. Neutral: 1."""
    blend_mode: str = "normal"
    """One of ``BLEND_MODES``."""
    visible: bool = True
    """Whether the layer is shown."""
    private: Mapping[str, Any] | None = None
    """The private data of the layer; None if another program made it."""
    clipped: str = ""
    """What the layer is cut to, in a file that is read: ``base``, the next layer or group below it that is not clipped
    (Photoshop); ``below``, all that lies below it in the same isolated group (OpenRaster). Neutral: empty."""
    special: Special | None = None
    """How the layer is blended in its file if ``blend_mode`` and ``opacity`` do not say it."""


@dataclass
class FileGroup:
    """A group of layers in a PSD or OpenRaster file."""

    title: str
    """Name of the group in the file."""
    items: list[FileLayer | FileGroup]
    """Its layers and groups, back to front."""
    masks: tuple[PixelMask, ...] = ()
    """They are multiplied. Neutral: none."""
    opacity: float = 1.0
    """Multiplies the alpha, 0..1. Neutral: 1."""
    blend_mode: str = "normal"
    """One of ``BLEND_MODES``."""
    passthrough: bool = False
    """Whether its layers are blended with what lies below the group; otherwise only with each other (isolated)."""
    visible: bool = True
    """Whether the group is shown."""
    clipped: str = ""
    """As for a layer."""
    special: Special | None = None
    """As for a layer."""
    merge: bool = False
    """Whether it must become one layer, as there are too many layers. Neutral: False."""


Item = FileLayer | FileGroup
"""What a group holds."""


ReadBlob = Callable[[str, int], "bytes | None"]
"""A function from a key and a byte count to the stored bytes; None unless there are exactly that many."""


# Writing


def clean_text(text: str) -> str:
    """Return the text without what XML and Photoshop cannot store: control characters, halves of surrogate
    pairs, line breaks."""
    text = "".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\ufffe\uffff" else c for c in text)
    return text.encode("utf-16-be", "replace").decode("utf-16-be")


# Reading


def split_title(title: str, number: int) -> tuple[str, str]:
    """Return name and prompt of a layer titled ``name: prompt`` (a colon and a space). A layer without a
    title is named by its ``number``."""
    match = _TITLE.fullmatch(title)
    if match:
        return match[1][:MAX_NAME], match[2].strip()
    return title.strip()[:MAX_NAME] or f"layer {number}", ""
