"""Read Photoshop documents (PSD, PSB) through the structures of psd-tools, written by :mod:`.psd_write` or
any other program.

Groups are flattened: their opacity, visibility and masks are applied to their layers. Clipped layers are cut.
Layers are matched with their private data by title, by name, or by id and pixels, so that recipes survive
changes by other programs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from psd_tools.constants import BlendMode, Clipping, ColorMode, Resource, SectionDivider, Tag
from psd_tools.psd.adjustments import ADJUSTMENT_TYPES
from psd_tools.psd.header import FileHeader
from psd_tools.psd.layer_and_mask import (
    ChannelDataList,
    LayerRecord,
)
from psd_tools.psd.patterns import Pattern
from torch import Tensor

from ..errors import LayeredError, invalid
from ..progress import steps
from .file_layers import FileLayer, LayerFile, clean_text
from .from_file import layers_to_read, restore
from .limits import Budget, Limits, check_file
from .psd_errors import in_words, listening
from .psd_fills import drawn_fill, is_fill
from .psd_masks import PixelMask, is_translucent, product
from .psd_names import NAMES
from .psd_parts import check_parts
from .psd_paths import vector_mask
from .psd_pixels import Channels
from .psd_records import (
    VECTOR_MASKS,
    inflate,
    is_rendered,
    is_shape,
    match_private,
    section_divider,
    unpaired_dividers,
)
from .psd_sections import read_sections
from .psd_sizes import check_sizes
from .psd_text import names_encoding, title
from .untrusted import NAMESPACE, parse_json, parse_xml

_SIMILAR = {
    BlendMode.DISSOLVE: "normal",
    BlendMode.DARKER_COLOR: "darken",
    BlendMode.LIGHTER_COLOR: "lighten",
}
"""Photoshop modes that a document lacks, and the modes that they are read as, with a warning."""

_EFFECTS = (
    Tag.EFFECTS_LAYER,
    Tag.OBJECT_BASED_EFFECTS_LAYER_INFO,
    Tag.OBJECT_BASED_EFFECTS_LAYER_INFO_V0,
    Tag.OBJECT_BASED_EFFECTS_LAYER_INFO_V1,
)
_ARTBOARDS = (Tag.ARTBOARD_DATA1, Tag.ARTBOARD_DATA2, Tag.ARTBOARD_DATA3)
_PATTERNS = (Tag.PATTERNS1, Tag.PATTERNS2, Tag.PATTERNS3)
_MAX_DEPTH = 64
"""Greatest depth of nested groups."""


def read_psd(path: str | Path, limits: Limits | None = None) -> LayerFile:
    """Read a PSD or PSB with 8 or 16 bits a channel, in RGB or greyscale.

    Raises:
        LayeredError: the file is broken, exceeds the limits, or has another colour mode or depth.
    """
    path, limits = Path(path), limits or Limits()
    check_file(path, "PSD", limits)
    noted: list[str] = []
    with _errors_named(path), listening(noted):
        result = _Reader(path, limits).read()
    return replace(result, warnings=(*result.warnings, *noted))


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turn all errors, and the warnings of psd-tools, into a :class:`LayeredError` that names the file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except LayeredError as error:
            raise LayeredError(f"{path.name}: {error}") from None
        except Exception as error:  # a broken file may make the parser fail with any exception
            raise LayeredError(
                f"{path.name} cannot be read as PSD: {in_words(error)}. Save the file anew"
            ) from error
    for warning in caught:  # psd-tools warns and uses black if a channel cannot be decoded
        if warning.category.__module__.startswith("psd_tools"):
            said = str(warning.message).partition(" (")[0].partition(";")[0]
            raise LayeredError(f"{path.name} is damaged: {said} for a channel. Save the file anew")


@dataclass
class _Group:
    """An open group, or the document itself; opacity and visibility include those of the groups around it."""

    opacity: float = 1.0
    visible: bool = True
    masks: tuple[PixelMask, ...] = ()
    """Masks of the group and of the groups around it."""
    number: int = 0
    """Unique number of the group; 0 is the document."""
    clipped_in: tuple[int, ...] = ()
    """Numbers of the groups in which the group, or a group around it, is clipped to the layer below it."""


@dataclass
class _Found:
    """A layer of the file before clipping and matching."""

    layer: FileLayer | None
    """The layer; None if it has no pixels, such as an adjustment."""
    group: int
    """Number of the group that contains the layer."""
    id: int | None
    """Photoshop's id of the layer; None if the file has none."""
    clipped_in: tuple[int, ...] = ()
    """Numbers of the groups in which the layer, or a group around it, is clipped to the layer below it."""
    shape: PixelMask | None = None
    """The layer's own alpha times its own masks, without those of its groups."""
    opacity: float = 1.0
    """The layer's own opacity, without that of its groups."""
    left_out: bool = False
    """Hidden, and skipped because a document holds at most 50 layers; layers clipped to it are skipped
    too."""


class _Reader:
    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self.limits = limits
        self.budget = Budget(limits)
        self.warnings: list[str] = []
        self.read_hidden = True
        self.transparent = False

    def read(self) -> LayerFile:
        with self.path.open("rb") as file:
            self._check_header(file)
            check_parts(file)
        self.psd, self.blobs = read_sections(self.path)
        self.header = self.psd.header
        self.size = self.header.width, self.header.height
        self.channels = Channels(self.header, self.budget, self.warnings)
        resources = self.psd.image_resources
        profile = resources.get_data(Resource.ICC_PROFILE)
        if isinstance(profile, bytes) and not any(
            "sRGB".encode(code) in profile for code in ("ascii", "utf-16-be")
        ):
            self.warnings.append(
                "the colour profile is not sRGB; the numbers are taken as they are, so colours may look "
                "different"
            )
        private = self._private(resources.get_data(Resource.XMP_METADATA))
        pairs = self._pairs()
        self.encoding = names_encoding((record for record, _ in pairs), self.warnings)
        check_sizes(
            [record for record, _ in pairs],
            self.size,
            self.budget,
            lambda record: title(record, self.encoding),
            self.warnings,
        )
        self._decide_on_hidden(pairs, private)
        found = list(self._layers(pairs))
        found.reverse()
        self._clip(found)
        entries = private.pop("layers", None)
        if not pairs and entries != []:  # a picture without layers, not an empty document of this project
            picture = self.channels.merged(self.psd.image_data, False)
            found = [_Found(FileLayer(clean_text(self.path.stem), 0, 0, picture), 0, None)]
        kept = [(f.layer, f.id) for f in found if f.layer is not None]
        match_private(kept, entries or [])
        layers = [layer for layer, _ in kept]
        read = restore(
            self.size,
            layers,
            private,
            self._blob,
            self.budget,
            self.warnings,
        )
        return replace(read, merged=self._own_picture() if pairs else None)

    def _own_picture(self) -> Callable[[], Tensor] | None:
        """Return a function that decodes the merged picture; None if the program says that it wrote none."""
        version = self.psd.image_resources.get_data(Resource.VERSION_INFO)
        if version is not None and not version.has_composite:
            return None
        channels, image, path, transparent = self.channels, self.psd.image_data, self.path, self.transparent

        def decode() -> Tensor:
            with _errors_named(path), listening([]):
                return channels.merged(image, transparent)

        return decode

    def _blob(self, key: str, count: int) -> bytes | None:
        span = self.blobs.get(key)
        return None if span is None else inflate(span.read(), count)

    def _check_header(self, file: BinaryIO) -> None:
        """Refuse files that cannot be read, before anything large is read."""
        try:
            header = FileHeader.read(file)
        except Exception as error:
            raise LayeredError(f"the file does not begin with a PSD header: {in_words(error)}") from error
        if header.color_mode not in (ColorMode.RGB, ColorMode.GRAYSCALE):
            raise invalid(
                "colour mode",
                header.color_mode.name,
                "RGB, GRAYSCALE",
                "In Photoshop: Image > Mode > RGB Color",
            )
        if header.depth not in (8, 16):
            raise invalid(
                "bits a channel", header.depth, "8, 16", "In Photoshop: Image > Mode > 16 Bits/Channel"
            )
        self.budget.check("the canvas", header.width, header.height)

    def _private(self, xmp: object) -> dict[str, Any]:
        if not isinstance(xmp, bytes):
            return {}
        if NAMESPACE.encode() not in xmp:
            return {}
        tag = f"{{{NAMESPACE}}}document"
        for node in parse_xml(xmp, "XMP packet").iter():
            text = node.text if node.tag == tag else node.get(tag)
            if text:
                return parse_json(text, "layer data")
        return {}

    def _pairs(self) -> list[tuple[LayerRecord, ChannelDataList]]:
        """Return the file's layer records and their channels, back to front."""
        section = self.psd.layer_and_mask_information
        info = section.layer_info
        for tag in (Tag.LAYER_16, Tag.LAYER_32):
            if section.tagged_blocks is not None and tag in section.tagged_blocks:
                info = section.tagged_blocks.get_data(tag)
        if info is None:
            return []
        self.transparent = info.layer_count < 0
        pairs = list(zip(info.layer_records, info.channel_image_data, strict=True))
        alone = unpaired_dividers([record for record, _ in pairs])
        if alone:
            self.warnings.append(
                f"{len(alone)} beginnings or ends of groups have no counterpart and are left out (Krita writes such "
                f"files if a group's name has 256 letters or more): layers are read without the opacity, visibility "
                f"and masks of these groups"
            )
        return [pair for number, pair in enumerate(pairs) if number not in alone]

    def _decide_on_hidden(
        self, pairs: Sequence[tuple[LayerRecord, ChannelDataList]], private: Mapping[str, Any]
    ) -> None:
        """Decide whether hidden layers are read: not if there are too many layers with them."""
        entries = private.get("layers")
        backdrop = isinstance(entries, list) and any(
            isinstance(e, dict) and "background" in e for e in entries
        )
        shown, groups = [], [True]
        for record, _ in reversed(pairs):
            kind = section_divider(record)
            if kind in (SectionDivider.OPEN_FOLDER, SectionDivider.CLOSED_FOLDER):
                groups.append(groups[-1] and record.flags.visible)
            elif kind == SectionDivider.BOUNDING_SECTION_DIVIDER:
                groups.pop()
            elif record.width * record.height or record.mask_data is not None or is_fill(record):
                shown.append(groups[-1] and record.flags.visible)
        self.read_hidden = all(layers_to_read(shown, self.limits.max_layers + backdrop, self.warnings))

    def _layers(self, pairs: Sequence[tuple[LayerRecord, ChannelDataList]]) -> Iterator[_Found]:
        """Yield the file's layers, front to back, with the effects of their groups applied."""
        groups = [_Group()]
        count = 0
        for record, channels in steps(pairs[::-1]):
            kind = section_divider(record)
            if kind in (SectionDivider.OPEN_FOLDER, SectionDivider.CLOSED_FOLDER):
                count += 1
                if len(groups) > _MAX_DEPTH:
                    raise invalid("depth of groups", len(groups), f"at most {_MAX_DEPTH}")
                groups.append(self._group(record, channels, groups[-1], count))
                if record.clipping == Clipping.BASE:
                    yield _Found(None, groups[-2].number, None)
            elif kind == SectionDivider.BOUNDING_SECTION_DIVIDER:
                groups.pop()
            elif self.read_hidden or (groups[-1].visible and record.flags.visible):
                yield self._layer(record, channels, groups[-1])
            else:
                yield _Found(None, groups[-1].number, None, _clipped_in(record, groups[-1]), left_out=True)

    def _group(self, record: LayerRecord, channels: ChannelDataList, around: _Group, number: int) -> _Group:
        name = title(record, self.encoding)
        if record.blend_mode not in (BlendMode.NORMAL, BlendMode.PASS_THROUGH):
            self.warnings.append(f"group {name!r}: a document has no groups; its blend mode is left out")
        if any(tag in record.tagged_blocks for tag in _ARTBOARDS):
            self.warnings.append(
                f"group {name!r} is an artboard: its colour is left out, and its layers are not cut at its "
                f"edges"
            )
        self._warn(record, f"group {name!r}")
        masks = around.masks + self.channels.masks(record, channels, f"group {name!r}")
        vector = self._vector(record, f"group {name!r}")
        masks += () if vector is None else (vector,)
        visible = around.visible and record.flags.visible
        return _Group(
            around.opacity * record.opacity / 255, visible, masks, number, _clipped_in(record, around)
        )

    def _layer(self, record: LayerRecord, channels: ChannelDataList, group: _Group) -> _Found:
        name = title(record, self.encoding)
        where = f"layer {name!r}"
        identity = record.tagged_blocks.get_data(Tag.LAYER_ID)
        vector = self._vector(record, where)
        own = self.channels.masks(record, channels, where) + (() if vector is None else (vector,))
        box = (record.left, record.top, record.right - record.left, record.bottom - record.top)
        pixels = None
        if box[2] > 0 and box[3] > 0:
            self.budget.take(where, box[2], box[3])
            pixels = self.channels.layer(record, channels, where)
        elif is_fill(record):
            box = (0, 0, *self.size) if vector is None or vector.outside else vector.box
            self.budget.take(where, max(1, box[2]), max(1, box[3]))
            pixels = drawn_fill(record, box, self.size, self._patterns(), self.budget, self.warnings, where)
        elif not any(tag in record.tagged_blocks for tag in ADJUSTMENT_TYPES):
            box = own[0].box if own else (0, 0, 0, 0)
            if box[2] and box[3]:
                self.budget.take(where, box[2], box[3])
            pixels = torch.zeros(box[3], box[2], 4)
        else:
            self.warnings.append(f"{where} is an adjustment layer and is left out")
        if pixels is None:
            return _Found(None, group.number, identity, _clipped_in(record, group))
        self._warn(record, where)
        around, inner = product(group.masks, box), product(own, box)
        shape = PixelMask(box[0], box[1], pixels[..., 3] if inner is None else pixels[..., 3] * inner, 0.0)
        combined = around if inner is None else inner if around is None else around * inner
        fill = record.tagged_blocks.get_data(Tag.BLEND_FILL_OPACITY, 255)
        opacity = record.opacity / 255 * (fill if isinstance(fill, int) else 255) / 255
        visible = group.visible and record.flags.visible
        layer = FileLayer(
            name,
            box[0],
            box[1],
            pixels,
            combined,
            opacity * group.opacity,
            self._blend_mode(record, where),
            visible,
        )
        identity = identity if isinstance(identity, int) else None
        return _Found(layer, group.number, identity, _clipped_in(record, group), shape, opacity)

    def _vector(self, record: LayerRecord, where: str) -> PixelMask | None:
        """Return the vector mask of a layer or group, drawn; None unless it has one that the file does not hold as
        pixels."""
        if is_rendered(record) or is_shape(record):
            return None
        mask = vector_mask(record, self.size, self.budget, where)
        if mask is None:
            if any(tag in record.tagged_blocks for tag in VECTOR_MASKS):
                self.warnings.append(f"{where}: the vector mask is switched off or damaged, and is left out")
            return None
        parameters = record.mask_data.parameters if record.mask_data is not None else None
        if parameters is not None and parameters.vector_mask_feather:
            self.warnings.append(f"{where}: the mask's feather is left out")
        return mask.at(None if parameters is None else parameters.vector_mask_density)

    def _patterns(self) -> list[Pattern]:
        """Return the patterns of the file."""
        blocks = self.psd.layer_and_mask_information.tagged_blocks
        found = [] if blocks is None else [blocks.get_data(tag) for tag in _PATTERNS]
        return [pattern for patterns in found if patterns is not None for pattern in patterns]

    def _blend_mode(self, record: LayerRecord, where: str) -> str:
        mode = record.blend_mode
        if mode in _SIMILAR:
            self.warnings.append(f"{where}: blend mode {mode.name.lower()} is read as {_SIMILAR[mode]}")
            return _SIMILAR[mode]
        if mode not in NAMES:
            raise invalid(f"{where}: blend mode", mode.name.lower(), ", ".join(NAMES.values()))
        return NAMES[mode]

    def _warn(self, record: LayerRecord, where: str) -> None:
        blocks = record.tagged_blocks
        if any(tag in blocks for tag in _EFFECTS):
            self.warnings.append(
                f"{where} has layer effects, which are left out: rasterize them to keep them"
            )

    def _clip(self, found: Sequence[_Found]) -> None:
        """Cut each layer that is clipped to the layer below it by that layer's alpha; ``found`` is back to
        front."""
        bases: dict[int, _Found] = {}
        for item in found:
            if item.group not in item.clipped_in:
                bases[item.group] = item
            for group in item.clipped_in:
                base = bases.get(group)
                if base is not None and base.left_out:
                    item.layer = None
                self._cut(item.layer, base)

    def _cut(self, layer: FileLayer | None, base: _Found | None) -> None:
        """Cut ``layer`` by the alpha, masks and opacity of ``base`` alone: the effects of the groups around
        both are already applied to the layer."""
        if layer is None:
            return
        if base is None or base.layer is None or base.shape is None:
            self.warnings.append(
                f"layer {layer.title!r} is clipped to a group or to a layer without pixels; the clipping is "
                f"left out"
            )
            return
        cut = base.shape.over((layer.left, layer.top, layer.pixels.shape[1], layer.pixels.shape[0]))
        layer.mask = cut if layer.mask is None else layer.mask * cut
        layer.opacity *= base.opacity
        layer.visible &= base.layer.visible
        if layer.visible and is_translucent(cut * base.opacity, layer.pixels[..., 3] > 0):
            self.warnings.append(
                f"layer {layer.title!r} is clipped to {base.layer.title!r}, which shines through it where it "
                f"is translucent"
            )


def _clipped_in(record: LayerRecord, group: _Group) -> tuple[int, ...]:
    """Return the numbers of the groups in which a record, or a group around it, is clipped."""
    return (*group.clipped_in, group.number) if record.clipping == Clipping.NON_BASE else group.clipped_in
