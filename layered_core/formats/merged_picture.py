"""Compare what was read of a file with the merged picture that its program stored in it.

Whatever a reader leaves out or gets wrong, known or not, shows as a difference between the two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..canvas.compositing import composite, over_colour
from ..canvas.placement import bounds
from ..document import MAX_LAYERS, Layer, LayerDocument, unique_names
from ..errors import LayeredError
from .file_layers import LayerFile

SAME = 2 / 255
"""Greatest mean difference of two pictures that count as the same: rounding, dithering and small differences
between programs stay below."""

_NAME = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_FEW = 3
_NONE = "the program that wrote the file stored none"


def checked(file: LayerFile) -> LayerFile:
    """Return the file with one more warning, the first, if its layers do not give the file's own picture: if the mean
    of :func:`difference` exceeds :data:`SAME`. If that picture cannot be compared, the last warning says why."""
    picture, why = _decoded(file)
    if picture is None:
        told = () if why == _NONE else (f"not compared with the file's own picture: {why}",)
        return replace(file, warnings=(*file.warnings, *told))
    apart = _difference(file.document, picture)
    if apart is None or float(apart.mean()) <= SAME:
        return file
    text = (
        f"the layers do not give the file's own picture: they differ by {float(apart.mean()) * 255:.1f}/255 on average "
        f"and by up to {float(apart.max()) * 255:.0f}/255, {_part(_where(apart), file.document)}. {_cause(file, apart)}"
    )
    return replace(file, warnings=(text, *file.warnings))


def difference(file: LayerFile) -> Tensor | None:
    """Return how much the composite by Photoshop's rules differs from the file's own picture, ``[H, W]``, means over
    the colours, 0..1; None if the file has no such picture.

    Programs store transparent pictures in different ways: with straight colours, or over white or black. The
    nearest of these is taken. A picture of one colour is taken for a stand-in, which some programs write, unless the
    layers give one colour too.
    """
    picture, _ = _decoded(file)
    return None if picture is None else _difference(file.document, picture)


def _difference(document: LayerDocument, picture: Tensor) -> Tensor | None:
    ours = composite(document, "photoshop")
    if _is_stand_in(picture, ours):
        return None
    return min(_differences(ours, picture), key=lambda apart: float(apart.mean()))


def with_merged(file: LayerFile, name: str = "merged picture") -> LayerFile:
    """Return the file with its own picture as a hidden layer on top; with a warning instead, if it has none or
    has as many layers as a document can hold."""
    picture, why = _decoded(file)
    if picture is None:
        return replace(file, warnings=(*file.warnings, f"no merged picture is added: {why}"))
    if len(file.document) >= MAX_LAYERS:
        full = (
            f"no merged picture is added: there are {MAX_LAYERS} layers already, the most that there can be"
        )
        return replace(file, warnings=(*file.warnings, full))
    layers = unique_names([*file.document.layers, Layer(name, picture, visible=False)])
    return replace(file, document=replace(file.document, layers=layers))


def _decoded(file: LayerFile) -> tuple[Tensor | None, str]:
    """Return the file's own picture; else None and the reason."""
    try:
        picture = None if file.merged is None else file.merged()
    except LayeredError as error:
        return None, str(error)
    if picture is None:
        return None, _NONE
    (height, width), size = picture.shape[:2], (file.document.width, file.document.height)
    if (width, height) != size:
        return None, f"it has {width}x{height} pixels, the canvas {size[0]}x{size[1]}"
    return picture, ""


def condensed(warnings: Sequence[str]) -> tuple[str, ...]:
    """Return the warnings with those of one kind, which differ in a name only, as one line where there are more
    than three."""
    kinds: dict[str, list[str]] = {}
    for line in warnings:
        kinds.setdefault(_NAME.sub("''", line, count=1), []).append(line)
    out: list[str] = []
    for kind, lines in kinds.items():
        if len(lines) <= _FEW or "''" not in kind:
            out += lines
            continue
        names = [name[0] for line in lines[1:] if (name := _NAME.search(line))]
        more = ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")
        out.append(f"{lines[0]} (the same for {len(names)} more: {more})")
    return tuple(out)


def straight_merged(colour: Tensor, alpha: Tensor) -> Tensor:
    """Return RGBA ``[H, W, 4]`` with straight colours of a merged picture, ``[H, W, 3]`` and ``[H, W]``, that may
    have been stored over white, as Photoshop does: then no colour is darker than the white that shines through."""
    through = (1 - alpha)[..., None]
    if bool((colour >= through - 1.5 / 255).all()):
        colour = ((colour - through) / alpha[..., None].clamp_min(1e-6)).clamp(0, 1)
    return torch.cat([torch.where(alpha[..., None] > 0, colour, 0.0), alpha[..., None]], -1)


def _is_stand_in(picture: Tensor, ours: Tensor) -> bool:
    """Return whether ``picture`` is what programs write that do not make one: one colour where we have several,
    or all white, black or transparent."""
    if not _is_one_colour(picture):
        return False
    pixel = picture[0, 0]
    return (
        not _is_one_colour(ours)
        or bool(pixel[3] == 0)
        or bool((pixel[:3] == pixel[0]).all() and pixel[0] in (0, 1))
    )


def _is_one_colour(pixels: Tensor) -> bool:
    return bool((pixels == pixels[0, 0]).all())


def _differences(ours: Tensor, picture: Tensor) -> list[Tensor]:
    """Return the differences ``[H, W]``, means over the colours, for every way in which the transparent parts of
    ``picture`` may have been stored."""
    found = []
    for backdrop in ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)):
        mine = over_colour(ours, backdrop)
        found.append((mine - over_colour(picture, backdrop)).abs_().mean(-1))
        if bool((picture[..., 3] < 1).any()):
            found.append((mine - picture[..., :3]).abs_().mean(-1))
    return found


def _where(apart: Tensor) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the rows and columns that hold 95 % of a difference ``[H, W]``."""
    edges = []
    for sums in (apart.sum(0), apart.sum(1)):
        share = sums.cumsum(0) / sums.sum()
        first = int((share < 0.025).sum())
        edges.append((first, max(first + 1, int((share < 0.975).sum()) + 1)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _part(box: tuple[int, int, int, int], document: LayerDocument) -> str:
    """Return a box on the canvas in words and pixels."""
    left, top, right, bottom = box
    if (right - left) * (bottom - top) > 0.8 * document.width * document.height:
        return "over the whole canvas"
    x, y = (left + right) / 2 / document.width, (top + bottom) / 2 / document.height
    row = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
    column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    place = " ".join(w for w in (row, column) if w) or "middle"
    return f"nearly all of it at the {place}, x {left}..{right}, y {top}..{bottom}".replace(
        "at the middle", "in the middle"
    )


def _cause(file: LayerFile, apart: Tensor) -> str:
    """Return a sentence on the likely cause of a difference ``[H, W]``."""
    if file.warnings:
        return "The likely cause is what was left out, as said below"
    canvas = 0, 0, file.document.width, file.document.height
    total, found = apart.sum(), []
    for layer in reversed(file.document.layers):
        x0, y0, x1, y1 = bounds(layer)
        box = max(x0, canvas[0]), max(y0, canvas[1]), min(x1, canvas[2]), min(y1, canvas[3])
        if layer.visible and box[0] < box[2] and box[1] < box[3]:
            share = apart[box[1] : box[3], box[0] : box[2]].sum() / total
            if share > 0.9:
                found.append(((box[2] - box[0]) * (box[3] - box[1]), layer))
    if not found:
        return "The cause is not known: compare with the file's own picture"
    layer = min(found, key=lambda item: item[0])[1]
    mode = "" if layer.blend_mode == "normal" else f", with the blend mode {layer.blend_mode},"
    return f"Layer {layer.name!r}{mode} is the smallest that covers the place: compare with the file's own picture"
