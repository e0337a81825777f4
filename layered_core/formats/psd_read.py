"""Read Photoshop documents (PSD, PSB) through the structures of psd-tools, written by :mod:`.psd_write` or
any other program.

:mod:`.file_groups` makes a plain list of layers of the groups, clipped layers and blending that a document lacks.
Layers are matched with their private data by title, by name, or by id and pixels, so that recipes survive changes by
other programs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from psd_tools.constants import BlendMode, ChannelID, Clipping, Resource, SectionDivider, Tag
from psd_tools.psd.adjustments import ADJUSTMENT_TYPES
from psd_tools.psd.header import FileHeader
from psd_tools.psd.layer_and_mask import (
    ChannelDataList,
    LayerRecord,
)
from psd_tools.psd.patterns import Pattern
from torch import Tensor

from ..errors import LayeredError, invalid
from ..progress import part, step
from .file_groups import check_groups, flatten_groups
from .file_layers import FileGroup, FileLayer, Item, LayerFile, clean_text
from .file_nodes import Node, leaves, make_room
from .from_file import restore
from .limits import Budget, Limits, check_file
from .psd_blending import (
    SIMILAR,
    cut_at_once,
    has_own_ranges,
    knock_out,
    opacity_of,
    shown_by_own_colours,
    special_of,
    untold,
)
from .psd_colours import PsdColours, check_mode
from .psd_errors import in_words, listening
from .psd_fills import drawn_fill, is_fill
from .psd_masks import PixelMask, product
from .psd_names import NAMES
from .psd_parts import check_parts
from .psd_paths import vector_mask
from .psd_pixels import Channels
from .psd_records import (
    VECTOR_MASKS,
    blend_mode,
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


def read_psd(path: str | Path, limits: Limits | None = None, groups: str = "auto") -> LayerFile:
    """Read a PSD or PSB of any colour mode and depth; its colours become sRGB.

    Args:
        path: file to read.
        limits: limits on sizes; None: the default ones.
        groups: what becomes of groups, one of :data:`.file_groups.GROUPS`.

    Raises:
        LayeredError: the file is broken or exceeds the limits; ``groups`` is unknown.
    """
    path, limits = Path(path), limits or Limits()
    check_groups(groups)
    check_file(path, "PSD", limits)
    noted: list[str] = []
    with _errors_named(path), listening(noted):
        result = _Reader(path, limits, groups).read()
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


class _Reader:
    def __init__(self, path: Path, limits: Limits, groups: str) -> None:
        self.path = path
        self.limits = limits
        self.groups = groups
        self.budget = Budget(limits)
        self.warnings: list[str] = []
        self.transparent = False
        self.found: list[tuple[FileLayer, int | None]] = []
        self.knockouts: dict[int, int] = {}
        self.done = self.count = 0

    def read(self) -> LayerFile:
        with self.path.open("rb") as file:
            self._check_header(file)
            check_parts(file)
        self.psd, self.blobs = read_sections(self.path)
        self.header = self.psd.header
        self.size = self.header.width, self.header.height
        resources = self.psd.image_resources
        pairs = self._pairs()
        colours = PsdColours(
            self.header, self.psd.color_mode_data.value, resources, len(pairs) > 1, self.warnings
        )
        self.channels = Channels(self.header, colours, self.budget, self.warnings)
        private = self._private(resources.get_data(Resource.XMP_METADATA))
        self.encoding = names_encoding((record for record, _ in pairs), self.warnings)
        check_sizes(
            [record for record, _ in pairs],
            self.size,
            self.budget,
            lambda record: title(record, self.encoding),
            self.warnings,
        )
        nodes = self._nodes(pairs)
        entries = private.pop("layers", None)
        backdrop = isinstance(entries, list) and any(
            isinstance(e, dict) and "background" in e for e in entries
        )
        make_room(nodes, self.limits.max_layers + backdrop, self.groups, self.warnings)
        self.count = sum(node.read for node, _ in leaves(nodes))
        items = self._items(nodes)
        step(self.count, self.count)
        if not pairs and entries != []:  # a picture without layers, not an empty document of this project
            picture = self.channels.merged(self.psd.image_data, False)
            only = FileLayer(clean_text(self.path.stem), 0, 0, picture)
            items, self.found = [only], [(only, None)]
        match_private(self.found, entries or [])
        self.warnings += knock_out(items[self._is_background(pairs) :], self.knockouts, ())
        layers = flatten_groups(items, self.size, self.groups, self.budget, self.warnings)
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
        check_mode(header)
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

    def _nodes(self, pairs: Sequence[tuple[LayerRecord, ChannelDataList]]) -> list[Node]:
        """Return the file's layers and groups, back to front."""
        open_groups: list[list[Node]] = [[]]
        for record, channels in pairs:
            kind = section_divider(record)
            if kind == SectionDivider.BOUNDING_SECTION_DIVIDER:
                if len(open_groups) > _MAX_DEPTH:
                    raise invalid("depth of groups", len(open_groups), f"at most {_MAX_DEPTH}")
                open_groups.append([])
                continue
            items = open_groups.pop() if kind is not None else None
            counts = bool(record.width * record.height) or record.mask_data is not None or is_fill(record)
            open_groups[-1].append(Node((record, channels), record.flags.visible, items, counts))
        return open_groups[0]

    def _items(self, nodes: Sequence[Node]) -> list[Item]:
        """Decode layers and groups, back to front; those for which there is no room are left out, with what is clipped
        to them."""
        out: list[Item] = []
        base: Node | None = None
        bottom: Item | None = None
        clipped: list[Item] = []
        for node in nodes:
            record = node.source[0]
            to_base = record.clipping == Clipping.NON_BASE
            if not to_base:
                self._cut_at_once(base, bottom, clipped)
                base, bottom, clipped = node, None, []
            if not node.read or (to_base and base is not None and not base.read):
                continue
            item = self._leaf(*node.source) if node.items is None else self._group(node)
            if item is None:
                continue
            if to_base and bottom is None:
                self.warnings.append(
                    f"layer {item.title!r} is clipped to a layer without pixels; the clipping is left out"
                )
            elif to_base:
                item.clipped = "base"
                clipped.append(item)
            else:
                bottom = item
            out.append(item)
        self._cut_at_once(base, bottom, clipped)
        return out

    def _cut_at_once(self, base: Node | None, bottom: Item | None, clipped: Sequence[Item]) -> None:
        """Cut clipped layers that are not blended together with the layer that they are clipped to."""
        if base is None or not isinstance(bottom, FileLayer) or not clipped:
            return
        record = base.source[0]
        if not record.tagged_blocks.get_data(Tag.BLEND_CLIPPING_ELEMENTS, 1):
            cut_at_once(bottom, record.opacity / 255, clipped)

    def _is_background(self, pairs: Sequence[tuple[LayerRecord, ChannelDataList]]) -> bool:
        """Return whether the lowest layer is Photoshop's background, which has no transparency."""
        ids = [info.id for info in pairs[0][0].channel_info] if pairs else []
        return bool(ids) and ChannelID.TRANSPARENCY_MASK not in ids

    def _group(self, node: Node) -> FileGroup:
        record, channels = node.source
        name = title(record, self.encoding)
        where = f"group {name!r}"
        if any(tag in record.tagged_blocks for tag in _ARTBOARDS):
            self.warnings.append(
                f"{where} is an artboard: its colour is left out, and its layers are not cut at its edges"
            )
        self._warn(record, where)
        passthrough = blend_mode(record) == BlendMode.PASS_THROUGH
        special = special_of(record, self.header.color_mode)
        if has_own_ranges(record) or (passthrough and special):
            self.warnings.append(f"{where} shows in some colours only (blend-if); this is left out")
        vector = self._vector(record, where)
        masks = self.channels.masks(record, channels, where) + (() if vector is None else (vector,))
        group = FileGroup(
            name, self._items(node.items or []), masks,
            opacity_of(record), "normal" if passthrough else self._blend_mode(record, where), passthrough,
            record.flags.visible, special=None if passthrough else special, merge=node.merge,
        )  # fmt: skip
        self._note_knockout(record, group)
        return group

    def _leaf(self, record: LayerRecord, channels: ChannelDataList) -> FileLayer | None:
        """Return a layer as :meth:`_layer` does, and report it as a piece of the file."""
        done = min(self.done, self.count)
        self.done += 1
        step(done, self.count)
        with part(done, self.count):
            return self._layer(record, channels)

    def _layer(self, record: LayerRecord, channels: ChannelDataList) -> FileLayer | None:
        """Return a layer; None for one of a kind that is left out."""
        name = title(record, self.encoding)
        where = f"layer {name!r}"
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
            return None
        self._warn(record, where)
        mask = product(own, box)
        shown = shown_by_own_colours(record, pixels, self.header.color_mode)
        if shown is not None:
            mask = shown if mask is None else mask * shown
        layer = FileLayer(
            name, box[0], box[1], pixels, mask, opacity_of(record), self._blend_mode(record, where),
            record.flags.visible, special=special_of(record, self.header.color_mode),
        )  # fmt: skip
        identity = record.tagged_blocks.get_data(Tag.LAYER_ID)
        self.found.append((layer, identity if isinstance(identity, int) else None))
        self._note_knockout(record, layer)
        return layer

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

    def _note_knockout(self, record: LayerRecord, item: Item) -> None:
        depth = record.tagged_blocks.get_data(Tag.KNOCKOUT_SETTING, 0)
        if depth in (1, 2):
            self.knockouts[id(item)] = depth

    def _blend_mode(self, record: LayerRecord, where: str) -> str:
        mode = blend_mode(record)
        if mode not in NAMES and mode not in SIMILAR:
            raise invalid(f"{where}: blend mode", mode.name.lower(), ", ".join(NAMES.values()))
        return NAMES.get(mode) or SIMILAR[mode]

    def _warn(self, record: LayerRecord, where: str) -> None:
        blocks = record.tagged_blocks
        self.warnings += untold(record, where)
        if any(tag in blocks for tag in _EFFECTS):
            self.warnings.append(
                f"{where} has layer effects, which are left out: rasterize them to keep them"
            )
